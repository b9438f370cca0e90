"""What is done for the resources of NVIDIA's stack: NvidiaSystem reads the system and asks its apt, GuestReboot
restarts a guest, NvidiaVerification uses the stack from inside."""

from __future__ import annotations

import dataclasses

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.facts import names
from homelab.facts.kernel_log import OF_MODULES
from homelab.nvidia import judge, plan, verification
from homelab.nvidia.preview import Stack
from homelab.nvidia.request import Request
from homelab.nvidia.resource import LAYERS, GuestReboot, NvidiaSystem, NvidiaVerification
from homelab.nvidia.settings import Nvidia
from homelab.reading import stacks
from homelab.remote import scripts, ssh
from homelab.resources.work.base import raised
from homelab.resources.work.systems import Ask, SystemWork
from homelab.settings import Vm
from homelab.text import tell
from remote_scripts.both import nothing
from remote_scripts.both.nvidia_packages import Answer as Installed
from remote_scripts.both.nvidia_verification import Answer, Wanted
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.both.read_system import SystemFacts
from remote_scripts.both.symptoms import Target
from remote_scripts.tools.plain import of_plain


class NvidiaSystemWork(SystemWork[NvidiaSystem.Inputs, NvidiaSystem.Outputs]):
    """Reads a system, refuses what its NVIDIA stack can't be, and compares it with what the steps left."""

    resource = NvidiaSystem

    def create(self, inputs: NvidiaSystem.Inputs) -> NvidiaSystem.Outputs:
        return self._plan(inputs, dict.fromkeys(LAYERS, 0))

    def update(
        self, inputs: NvidiaSystem.Inputs, before: NvidiaSystem.Inputs, outputs: NvidiaSystem.Outputs
    ) -> NvidiaSystem.Outputs:
        guest = self.find_guest(inputs)
        if isinstance(guest, Vm) and guest.vmid not in ssh.read(self.host(inputs), guests=True).guests.running:
            tell(
                f"{inputs.system_name}: VM {guest.vmid} is off: what is installed in it stays until an `up` finds it on"
            )
            return dataclasses.replace(outputs, stale=True)
        return self._plan(inputs, outputs.generation)

    def delete(self, inputs: NvidiaSystem.Inputs, outputs: NvidiaSystem.Outputs) -> None:
        # Said whatever the steps do: under `purge` they have taken back what they added by now.
        if inputs.nvidia["on_destroy"] == "keep" and inputs.stays:
            tell(
                f"{inputs.system_name}: NVIDIA's stack stays as it is (onDestroy: keep): what is installed of "
                "driver, CUDA and container toolkit, with repositories and pin"
            )

    def read(self, inputs: NvidiaSystem.Inputs, outputs: NvidiaSystem.Outputs) -> NvidiaSystem.Outputs:
        name = inputs.system_name
        if inputs.target != "vm" and (away := self.facts_of_refresh(inputs).handover.away):
            tell(f"{name}: NVIDIA's stack was not compared: {away}")
            return outputs
        # What leaves the stack isn't looked at.
        reading = self._reading(inputs) if self.wanted_stack(inputs) is not None else None
        if reading is None:
            return outputs
        # Of a VM, which alone keeps one of its own.
        has_agent = reading.agents.get(inputs.agent_owner, "") == inputs.agent
        stack = Nvidia.model_construct(**inputs.nvidia)
        old, new = vars(outputs.facts), vars(lasting(reading, inputs.target))
        changed = [key for key in new if old[key] != new[key]]
        told = [f"{key.replace('_', ' ')} is {new[key]} instead of {old[key]}" for key in changed]
        told += [] if has_agent else ["this program's agent there is missing, or another one"]
        for difference in [*judge.steps(reading, stack), *told]:
            tell(f"{name}: drift: {difference}")
        drifted = {layer for layer, _ in judge.drift(reading, stack)}
        # Mended, the packages' step may answer as it did before (another try after a way back); whether a boot is
        # needed is looked at anew.
        drifted |= {"boot"} if "packages" in drifted else set()
        generation = raised(outputs.generation, drifted, LAYERS)
        return dataclasses.replace(outputs, generation=generation, stale=bool(changed) or not has_agent)

    def _reading(self, inputs: NvidiaSystem.Inputs) -> SystemReading | None:
        """The system as a refresh sees it: a host and its containers on the host's one connection; None where it can't
        be reached."""
        if inputs.target != "vm":
            found = self.facts_of_refresh(inputs).systems.get(str(inputs.ctid or "host"))
            if isinstance(found, HomelabError):
                raise found
            if found is None:
                tell(f"{inputs.system_name}: it doesn't run, or is locked: NVIDIA's stack in it was not compared")
            return found if isinstance(found, SystemReading) else None
        try:
            return self.read_system(inputs)
        except UnreachableError as error:
            # A VM may be off for good reasons; that is no reason to stop the refresh of everything else.
            tell(f"{inputs.system_name}: can't be reached, and wasn't compared: {error.found}")
            return None

    def _plan(self, inputs: NvidiaSystem.Inputs, generation: dict[str, int]) -> NvidiaSystem.Outputs:
        stack = self.needed_stack(inputs)
        system = self.read_system_in_time(inputs, stack.timeouts.reboot)
        session = ssh.Session(self.reached(inputs))
        asked = Stack.of(inputs.target, stack, inputs.system_name, system)
        found = stacks.asked(session, dataclasses.replace(asked, ctid=inputs.ctid or 0))
        raise_all(found.errors)
        for note in plan.notes(found):
            tell(f"{inputs.system_name}: {note}")
        if inputs.agent:
            session.put_agent(inputs.agent_owner, float(self.reached(inputs).timeouts.step))
        return NvidiaSystem.Outputs(facts=lasting(system, inputs.target), generation=generation, stale=False)


def lasting(reading: SystemReading, target: Target) -> SystemFacts:
    """What of a reading isn't changed by the steps themselves."""
    facts = {name: getattr(reading, name) for name in ("distribution", "version", "running", "secure_boot", "cards")}
    kernels = reading.kernels if target == "host" else (reading.running or "",)
    return SystemFacts(**facts, kernels=kernels, host_driver=reading.host_driver)


class GuestRebootWork(SystemWork[GuestReboot.Inputs, GuestReboot.Outputs]):
    """Restarts a guest from inside if its running kernel can't use the installed driver."""

    resource = GuestReboot

    def create(self, inputs: GuestReboot.Inputs) -> GuestReboot.Outputs:
        name, version = inputs.system_name, inputs.driver
        old = ""

        def restart(ask: Ask, current: SystemReading) -> None:
            nonlocal old
            # Asked for and gone down before it could answer, or because of an `up` that was killed: once is enough.
            reason = reboot_reason(current, version)
            if not reason or current.boot_id != (old or current.boot_id):
                return
            if not old:
                tell(f"{name}: rebooting it, because {reason}")
            old = current.boot_id
            ask("apply", "reboot_guest", nothing.Wanted())

        # Over the same connection: a guest that is on its way down takes no new one.
        reading = self.read_system_in_time(inputs, inputs.timeout, then=restart)
        if not old:
            return GuestReboot.Outputs(boot_id=reading.boot_id)
        if reading.boot_id == old:
            reading = self.read_system_in_time(inputs, inputs.timeout, old)
        if reason_left := reboot_reason(reading, version):
            raise HomelabError(
                wanted=f"{name}: NVIDIA's driver {version} in use after a reboot",
                found=reason_left,
                why="the card serves one driver alone, and it is still not this one",
                next="look for what loads the other one early: `lsinitramfs /boot/initrd.img-$(uname -r) | grep -E "
                "'nouveau|nvidia'`, `journalctl -b`",
            )
        tell(f"{name}: it is back, kernel {reading.running}")
        return GuestReboot.Outputs(boot_id=reading.boot_id)


def reboot_reason(reading: SystemReading, version: str) -> str:
    """Why the running kernel can't use the installed driver; empty where it can."""
    if reading.nouveau:
        return "nouveau has the card, and lets go of it at a boot alone"
    if reading.loaded and reading.loaded != version:
        return f"the module of {reading.loaded} is loaded, and {version} is installed"
    return ""


# What the layer's own time limit leaves for the connection and the answer, in seconds.
SLACK_SECONDS = 60


class NvidiaVerificationWork(SystemWork[NvidiaVerification.Inputs, NvidiaVerification.Outputs]):
    """Uses NVIDIA's stack from inside a system."""

    resource = NvidiaVerification

    def create(self, inputs: NvidiaVerification.Inputs) -> NvidiaVerification.Outputs:
        # The state has no secret, and nothing that says only how.
        stack = self.needed_stack(inputs)
        if inputs.target == "vm":
            # It may have been started a moment ago.
            self.read_system_in_time(inputs, stack.timeouts.reboot)
        ask = self.asking(inputs, float(stack.timeouts.verify) + SLACK_SECONDS)
        request = Request.of(inputs.target, stack, inputs.system_name, inputs.facts)
        installed = of_plain(Installed, scripts.answer(inputs.done[0]))
        wanted = tried(request, installed)
        found = of_plain(Answer, ask("apply", "nvidia_verification", wanted, proxy=stack.proxy_address))
        result, errors = verification.judge(found, request, installed)
        raise_all(errors)
        for what in result["unchecked"]:
            tell(f"{inputs.system_name}: not checked: {what}")
        cards = [(card.get("name") or "a card without a name", card.get("address")) for card in result["gpus"]]
        seen = ", ".join(names.told_apart(cards))
        tell(f"{inputs.system_name}: verified from inside: {seen}, driver {result.get('driver')}")
        return NvidiaVerification.Outputs(result=result)


def tried(request: Request, installed: Installed) -> Wanted:
    """What is tried on a system: without cards nothing.

    :param installed: what the packages' step has answered.
    """
    settings, data, has_cards = request.settings, request.data, bool(request.devices)
    engine = settings.container_toolkit if has_cards else None
    of_driver = data.libraries(installed.capabilities)
    return Wanted(
        nvcc=plan.nvcc(request.cuda) if request.cuda else "",
        program=scripts.file("vector_addition.cu") if settings.cuda and has_cards else "",
        engine=engine or "",
        image=data.toolkit.image,
        cdi=bool(engine and plan.cdi(request)),
        uvm=has_cards,
        libraries=(*of_driver, *(row.soname for row in plan.beside_cuda(request))) if has_cards else (),
        bare=data.libraries(installed.capabilities, bare=True) if engine else (),
        loader=scripts.file("load_libraries.py") if has_cards else "",
        kernel_log=OF_MODULES if request.target != "lxc" else "",
        seconds=settings.timeouts.verify,
    )
