"""The work on an NvidiaSystem: reads the system, and asks its apt for its stack; a refresh compares."""

from __future__ import annotations

import dataclasses

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.nvidia import judge
from homelab.nvidia.plan import notes
from homelab.nvidia.preview import Stack
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request
from homelab.nvidia.state import facts_of
from homelab.provider.base import raised
from homelab.provider.systems import SystemWork
from homelab.remote import host_session, ssh, stacks
from homelab.resources.nvidia import LAYERS, NvidiaSystem
from homelab.settings import Nvidia
from homelab.text import tell


class NvidiaSystemWork(SystemWork[NvidiaSystem.Inputs, NvidiaSystem.Outputs]):
    """Reads a system, refuses what its NVIDIA stack can't be, and compares it with what the steps left."""

    resource = NvidiaSystem

    def create(self, inputs: NvidiaSystem.Inputs) -> NvidiaSystem.Outputs:
        return self._plan(inputs, dict.fromkeys(LAYERS, 0))

    def update(
        self, inputs: NvidiaSystem.Inputs, before: NvidiaSystem.Inputs, outputs: NvidiaSystem.Outputs
    ) -> NvidiaSystem.Outputs:
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
        system = self._reading(inputs) if self.wanted_stack(inputs) is not None else None
        if system is None:
            return outputs
        reading, has_agent = system
        drift = judge.steps(reading, Nvidia.model_construct(**inputs.nvidia))
        old, new = outputs.facts, facts_of(reading, inputs.target)
        changed = [key for key in new if old.get(key) != new.get(key)]
        told = [f"{key.replace('_', ' ')} is {new.get(key)} instead of {old.get(key)}" for key in changed]
        told += [] if has_agent else ["this program's agent there is missing, or another one"]
        for difference in [*drift, *told]:
            tell(f"{name}: drift: {difference}")
        drifted = {line.partition(":")[0] for line in drift}
        # Mended, the packages' step may answer as it did before (another try after a way back); whether a boot is
        # needed is looked at anew.
        drifted |= {"boot"} if "packages" in drifted else set()
        generation = raised(outputs.generation, drifted, LAYERS)
        return dataclasses.replace(outputs, generation=generation, stale=bool(changed) or not has_agent)

    def _reading(self, inputs: NvidiaSystem.Inputs) -> tuple[SystemReading, bool] | None:
        """The system as a refresh sees it, and whether a VM has its agent: a host and its containers on the host's one
        connection; None where it can't be reached."""
        if inputs.target != "vm":
            found = self.facts_of_refresh(inputs).systems.get(str(inputs.ctid or "host"))
            if isinstance(found, HomelabError):
                raise found
            if found is None:
                tell(f"{inputs.system_name}: it doesn't run, or is locked: NVIDIA's stack in it was not compared")
            return (found, True) if isinstance(found, SystemReading) else None
        try:
            system = self.read_system(inputs)
            return system, system.agents.get(inputs.agent_owner, "") == inputs.agent
        except UnreachableError as error:
            # A VM may be off for good reasons; that is no reason to stop the refresh of everything else.
            tell(f"{inputs.system_name}: can't be reached, and wasn't compared: {error.found}")
            return None

    def _plan(self, inputs: NvidiaSystem.Inputs, generation: dict[str, int]) -> NvidiaSystem.Outputs:
        if inputs.target != "vm":
            host_session.of(inputs.host).hold(self.host(inputs))
        stack = self.wanted_stack(inputs)
        if stack is None:
            raise HomelabError(
                wanted=f"homelab:{inputs.system_name}.nvidia in the stack's configuration",
                found="it is missing",
                why="it says what is to be installed there",
                next="put it back, or run `pulumi up` to give NVIDIA's stack there up",
            )
        system = self.read_system_in_time(inputs, stack.timeouts.reboot)
        request = Request(inputs.target, stack, system.system, inputs.system_name)
        session = ssh.Session(self.reached(inputs))
        found = stacks.asked(session, Stack.of(inputs.system_name, request, system, inputs.ctid))
        raise_all(found.errors)
        if inputs.target == "host":
            raise_all(stacks.refused_by_containers(session, found, self.stack.containers(inputs.host)))
        for note in notes(request, found.known):
            tell(f"{inputs.system_name}: {note}")
        if inputs.agent:
            session.put_agent(inputs.agent_owner, float(self.reached(inputs).timeouts.step))
        return NvidiaSystem.Outputs(facts=facts_of(system, inputs.target), generation=generation, stale=False)
