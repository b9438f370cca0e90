"""The work on a BootVerification: waits for the host, confirms its boot, compares it with what is wanted."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from homelab.errors import HomelabError, raise_all
from homelab.host import kernel_log, names, plan
from homelab.host.facts import HostFacts
from homelab.host.judge import verified
from homelab.host.reboot import in_short, stopping
from homelab.provider.base import Work
from homelab.remote import boots, host_session, scripts, ssh
from homelab.resources.boot_verification import BootVerification
from homelab.settings import Host
from homelab.shapes import BootSeen
from homelab.text import tell, tell_meanwhile
from remote_scripts.both import cluster_turn, nothing, start_guests

# For so long this run waits for the guests that the host starts, one after the other; the host goes on without it.
STARTS_SECONDS = 900.0
# A running guest in what the layer reboot answers: `VM 103 (Sandbox), container 901 (ai-lab)`. Names hold no brackets.
_GUEST = re.compile(r"(?:VM|container) (\d+) \(")


class BootVerificationWork(Work[BootVerification.Inputs, BootVerification.Outputs]):
    """Waits for a reboot, confirms the boot, compares the host with what is wanted, and starts its guests."""

    resource = BootVerification

    def create(self, inputs: BootVerification.Inputs) -> BootVerification.Outputs:
        return self._verified(inputs, scripts.answer(inputs.reboot))

    def update(
        self, inputs: BootVerification.Inputs, before: BootVerification.Inputs, outputs: BootVerification.Outputs
    ) -> BootVerification.Outputs:
        # The guests that an earlier reboot stopped were seen to then.
        is_over = inputs.reboot == before.reboot
        verified = self._verified(inputs, scripts.answer(inputs.reboot) | ({"reboot": "no"} if is_over else {}))
        return replace(verified, boot=outputs.boot) if verified.boot_id == outputs.boot_id else verified

    def _verified(self, inputs: BootVerification.Inputs, reboot: dict[str, Any]) -> BootVerification.Outputs:
        """:param reboot: what the layer reboot answered."""
        want = plan.Wanted(inputs.iommu_words, inputs.vfio_words, inputs.functions, [], inputs.gpus)
        if reboot["reboot"] == "yes":
            is_told = host_session.of(inputs.host).is_reboot_told
            why = "" if is_told else f", because {in_short(reboot['reasons'], inputs.gpus)}"
            tell(f"{inputs.host}: rebooting{why}; {stopping(reboot['guests'])}")
        facts = _verify(self.host(inputs), inputs.host, reboot, want, self._managed_guests(inputs.host))
        groups = f", {facts.iommu.groups} IOMMU groups" if facts.iommu.groups else ""
        tell(f"{inputs.host}: verified: kernel {facts.kernel}{groups}{_bound(facts, inputs)}")
        stopped = _GUEST.findall(reboot["guests"]) if reboot["reboot"] == "yes" else []
        boot = BootSeen(id=facts.boot_id, stopped=[int(vmid) for vmid in stopped], at=int(time.time()))
        return _outputs(facts, inputs, boot)

    def _managed_guests(self, name: str) -> ManagedGuests:
        """The host's guests in the settings, which this run shuts down and starts itself."""
        vms = {vm.vmid: vm.wanted_power for vm in self.stack.vms(name).values()}
        containers = {container.ctid: container.wanted_power for container in self.stack.containers(name).values()}
        off = [vmid for vmid, power in {**vms, **containers}.items() if power == "stopped"]
        # What is to run in any case isn't looked at again because of a reboot (ContainerProbe's `rebooted_at`).
        later = [vmid for vmid, power in containers.items() if power == "keep"]
        return ManagedGuests([*(vmid for vmid in vms if vmid not in off), *later], off)

    def hold_on(self, inputs: BootVerification.Inputs) -> None:
        """Not now: a reboot ends whatever holds its host, which is taken again once the boot is confirmed."""


class ManagedGuests(NamedTuple):
    """Ids of a host's guests in the settings. `start_later`: the run starts them once they have what they are to have;
    `stay_off`: they aren't to run."""

    start_later: Sequence[int] = ()
    stay_off: Sequence[int] = ()


def _verify(host: Host, name: str, reboot: dict[str, Any], want: plan.Wanted, managed: ManagedGuests) -> HostFacts:
    old_boot_id = None
    if reboot["reboot"] == "yes":
        old_boot_id = reboot["boot_id"]
    elif reboot["reboot"] == "manual" and ssh.read(host).boot_id == reboot["boot_id"]:
        raise HomelabError(
            wanted=f"{name} rebooted, because {in_short(reboot['reasons'], want.gpus)}",
            found=f"it has not been since (reboot: manual); a reboot stops {reboot['guests'] or 'no running guest'}",
            why="only a reboot brings the boot configuration into effect; what depends on it waits",
            next=f"reboot {name} when it suits you, then run `pulumi up` again: it continues from here"
            + (
                "; the next boot is a trial: another restart before it is confirmed leads back to what runs now"
                if reboot["armed"]
                else ""
            ),
        )
    # Within reach, the boot on trial becomes the default, whatever the checks say: a person can act.
    facts = boots.confirm(host, old_boot_id, lambda text: tell(f"{name}: {text}"), tell_meanwhile)
    if not facts.rolled_back:
        try:  # before anything else: the host itself starts its guests only while no run holds it
            host_session.of(name).hold(host)  # the reboot has ended what held it
        except HomelabError as error:
            # The boot is confirmed all the same; what would change something is refused.
            tell(f"{name}: note: {error.found}")
    if reboot["turn"] and not facts.rolling_back:
        _end_turn(host, name)
    if reboot["reboot"] == "yes" and not facts.rolling_back:
        # Of a boot that was given back this run changes nothing more.
        _start_guests(host, name, ManagedGuests() if facts.rolled_back else managed)
    if facts.rolled_back:
        raise HomelabError(
            wanted=f"the new boot of {name} confirmed",
            found="it has returned by itself to what it "
            f"was{', except for its restart' if facts.rolling_back else ''}: {facts.rolled_back}",
            why="its default never changed, so each restart leads back. A boot that couldn't be reached has most "
            "likely lost the device of its network; one that left no journal has stopped in its kernel",
            next="compare `journalctl -b -1` on the host (of an earlier boot, if the one on trial left no journal) with"
            " the plan (`pulumi preview`); when the cause is gone, run `pulumi up --refresh`",
        )
    errors, remarks = verified(facts, host, name, want)
    for remark in remarks:
        tell(f"{name}: note: {remark}")
    raise_all(errors)
    return facts


def _end_turn(host: Host, name: str) -> None:
    """Tell the other nodes of the cluster that this one is back: the next may restart. That it can't be told is no
    reason to fail."""
    try:
        seconds = cluster_turn.LOCK_SECONDS + cluster_turn.CLUSTER_SECONDS + host.timeouts.api
        over = ssh.Session(host).ask("apply", "cluster_turn", nothing.Wanted(), seconds)["over"]
    except HomelabError as error:
        tell(f"{name}: note: {error.found}")
        over = False
    if not over:
        tell(
            f"{name}: note: it couldn't tell its cluster that it is back: no other node restarts until the time of its "
            "turn has passed, or until `rm /etc/pve/homelab/turn`"
        )


def _start_guests(host: Host, name: str, managed: ManagedGuests) -> None:
    """Start again what ran before the reboot; what has no `onboot` would stay off. That one doesn't start is no reason
    to fail."""
    try:
        session = ssh.Session(host)
        wanted = start_guests.Wanted(later=tuple(managed.start_later), unwanted=tuple(managed.stay_off))
        # Where it is cut off, the rest waits until this run has ended.
        answer = session.ask(
            "apply",
            "start_guests",
            wanted,
            STARTS_SECONDS,
            lambda line: tell_meanwhile(f"{name}: {line}"),
            goes_on=True,
        )
    except HomelabError as error:
        tell(f"{name}: note: {error.found}; the host itself starts the guests that ran before the reboot")
        return
    if answer["started"]:
        tell(f"{name}: started again what ran before the reboot: {', '.join(answer['started'])}")
    for line in answer["off"]:
        tell(f"{name}: note: {line}")


def _bound(facts: HostFacts, inputs: BootVerification.Inputs) -> str:
    """The end of a message with the models of the cards that vfio-pci has; empty: none."""
    bound = {address for address in inputs.functions if facts.by_address[address].driver == "vfio-pci"}
    cards = [
        model
        for name, model in names.models_of_outputs(inputs.gpus).items()
        if {function["address"] for function in inputs.gpus[name]["functions"]} & bound
    ]
    return f", {', '.join(cards)} on vfio-pci" if cards else ""


def _outputs(facts: HostFacts, inputs: BootVerification.Inputs, boot: BootSeen) -> BootVerification.Outputs:
    cards = {function["address"] for gpu in inputs.gpus.values() for function in gpu["functions"]}
    return BootVerification.Outputs(
        kernel=facts.kernel,
        boot_id=facts.boot_id,
        iommu={"groups": facts.iommu.groups, "kernelLog": kernel_log.of_iommu(facts.iommu.kernel_log.splitlines())},
        devices={
            device.address: {"id": device.id, "driver": device.driver, "iommuGroup": device.group}
            for device in facts.devices
            if device.address in cards
        },
        boot=boot,
    )
