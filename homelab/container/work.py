"""What is done for a container's resources: ContainerProbe plans which cards it gets and compares it on a refresh,
ContainerVerification opens their nodes from inside."""

from __future__ import annotations

import dataclasses

from homelab.container import plan as container_plan
from homelab.container.plan import ContainerWish
from homelab.container.resource import ContainerProbe, ContainerVerification
from homelab.errors import HomelabError, UnreachableError, elsewhere, raise_all
from homelab.facts.guests import guest_note
from homelab.facts.host import HostFacts
from homelab.host import gates
from homelab.nvidia import judge
from homelab.remote import ssh
from homelab.remote.ledger import stack_of
from homelab.resources.work.base import Work, stopped_by_reboot
from homelab.settings import Container, Vm
from homelab.shapes import BootSeen
from homelab.text import tell
from remote_scripts.both.container_cards import Left
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.container_verification import Wanted
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.notes.container_note import ContainerNote
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools.plain import of_plain


class ContainerProbeWork(Work[ContainerProbe.Inputs, ContainerProbe.Outputs]):
    """Plans which cards a container gets, and compares it with that."""

    resource = ContainerProbe

    def id(self, inputs: ContainerProbe.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: ContainerProbe.Inputs) -> ContainerProbe.Outputs:
        return self._plan(inputs, None)

    def update(
        self, inputs: ContainerProbe.Inputs, before: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs
    ) -> ContainerProbe.Outputs:
        planned = self._plan(inputs, before.boot)
        return dataclasses.replace(planned, generation=outputs.generation, again=outputs.again)

    def read(self, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs) -> ContainerProbe.Outputs:
        facts = self.facts_of_refresh(inputs)
        if facts.handover.away and facts.guests.config(inputs.ctid) is not None:
            tell(f"{inputs.container}: not compared: {facts.handover.away}")
            return outputs
        container, gone = self.stack.container(inputs.container), facts.guests.config(inputs.ctid) is None
        drift, device_drift, library_drift = _drift(facts, inputs, stack_of(self.urn)), list[str](), list[str]()
        if container is not None:  # else it leaves the stack
            device_drift = _device_drift(container, facts, inputs, outputs)
            library_drift = _library_drift(container, facts, inputs)
        for difference in [*drift, *device_drift, *library_drift]:
            tell(f"{inputs.container}: drift: {difference}")
        return dataclasses.replace(
            outputs,
            generation=outputs.generation + bool(drift),
            again=outputs.again + bool(library_drift),
            # So that the plan refuses what stands against it, before the container is touched.
            stale=bool(drift or device_drift) or gone,
        )

    def _plan(self, inputs: ContainerProbe.Inputs, boot: BootSeen | None) -> ContainerProbe.Outputs:
        """:param boot: the last one that this container was planned under."""
        container = self.stack.container(inputs.container)
        if container is None:
            raise HomelabError(
                wanted=f"homelab:containers.{inputs.container} in the stack's configuration",
                found="it is missing",
                why="it says which cards the container is to have",
                next="put it back, or run `pulumi up` to give the container up",
            )
        facts = ssh.read(self.host(inputs), guests=True)
        wish = _wish(inputs, container, facts, self.stack.vms(inputs.host))
        judged = container_plan.judge_container(wish, facts, stack_of(self.urn))
        raise_all([*gates.readable(facts), *dataclasses.replace(judged, others_change=True).refusals])
        config = facts.guests.config(inputs.ctid)
        return ContainerProbe.Outputs(
            minors=[*wish.cards.minors],
            functions=[*wish.cards.functions],
            rebooted_at=inputs.boot["at"] if stopped_by_reboot(inputs.ctid, inputs.boot, boot) else 0,
            guest_name=config.values.get("hostname", inputs.container) if config else inputs.container,
            generation=0,
            again=0,
            stale=False,
            shared=dict(wish.shared),
        )

    def delete(self, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs) -> None:
        """It owns nothing. What a container was given is still to be given back where a run was killed while it gave
        that, so that no state has it. One that is removed next keeps it, and one that has moved to another host of the
        settings.
        """
        if inputs.goes_away:
            return
        if inputs.host not in self.stack.host_names():
            tell(
                f"{inputs.container}: note: {inputs.host} is no longer in homelab:hosts: container {inputs.ctid} keeps "
                "what it was given for its cards. To have it taken out, put both back into the settings, run `pulumi "
                "up`, and take this container out before its host"
            )
            return
        wanted = ContainerCards(ctid=inputs.ctid, terms=self.terms(inputs.container, inputs.shutdown))
        host = self.host(inputs)
        seconds = host.timeouts.step + 2 * inputs.shutdown.timeout
        answer = ssh.Session(host).ask("revert", "container_cards", wanted, seconds, goes_on=True)
        left = of_plain(Left, answer)
        if not left.is_here and left.owner == wanted.terms.owner:
            undone = f"what container {inputs.ctid} was given for its cards taken out of it"
            moved = elsewhere(undone, "lxc", inputs.ctid, inputs.node, left.node)
            self.stack.leave_moved(inputs.container, "containers", inputs.ctid, left.node, moved)


def _wish(inputs: ContainerProbe.Inputs, container: Container, facts: HostFacts, vms: dict[str, Vm]) -> ContainerWish:
    driver_cards = container_plan.cards(facts, inputs.gpus, vms)
    return container_plan.wish_of(inputs.container, container, facts, inputs.gpus, driver_cards)


def _library_drift(container: Container, facts: HostFacts, inputs: ContainerProbe.Inputs) -> list[str]:
    """Drift of the packages for the container's cards, a sentence each."""
    if not container.libraries or facts.guests.config(inputs.ctid) is None:
        return []
    found = facts.systems.get(str(inputs.ctid))
    if isinstance(found, HomelabError):
        raise found
    if found is None:
        tell(f"{inputs.container}: it doesn't run, or is locked: packages for its cards were not compared")
    return judge.steps(found, None, libraries=True) if isinstance(found, SystemReading) else []


def _device_drift(
    container: Container, facts: HostFacts, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs
) -> list[str]:
    """Numbers and device nodes of the container's cards that have changed since its plan, a sentence each."""
    wish, differences = _wish(inputs, container, facts, {}), list[str]()
    if (minors := [*wish.cards.minors]) != outputs.minors:
        differences.append(f"its cards are /dev/nvidia{minors}, not /dev/nvidia{outputs.minors}")
    for gpu, card in wish.shared.items():
        before = outputs.shared.get(gpu)
        if before is not None and before != card:
            differences.append(
                f"the nodes of gpus.{gpu} are {', '.join(card['nodes'])}, not {', '.join(before['nodes'])}"
            )
    return differences


def _drift(facts: HostFacts, inputs: ContainerProbe.Inputs, stack: str = "") -> list[str]:
    """With what it was given as wanted.

    :param stack: PROJECT/STACK.
    """
    wish = container_plan.as_given(inputs.container, inputs.ctid, facts, inputs.power)
    is_told = guest_note(facts.ledger, CONTAINER, inputs.ctid, ContainerNote) or not facts.guests.config(inputs.ctid)
    lost = [] if is_told else ["nothing on the host tells what was given to it"]
    return [*lost, *container_plan.judge_container(wish, facts, stack).steps]


class ContainerVerificationWork(Work[ContainerVerification.Inputs, ContainerVerification.Outputs]):
    """Opens the device nodes of a container's cards from inside it."""

    resource = ContainerVerification

    def id(self, inputs: ContainerVerification.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: ContainerVerification.Inputs) -> ContainerVerification.Outputs:
        ctid, cards, host = inputs.ctid, inputs.cards, self.host(inputs)
        wanted = Wanted(ctid=ctid, cards=cards, uses=tuple(inputs.uses))
        try:
            answer = ssh.Session(host).ask("apply", "container_verification", wanted)
        except UnreachableError:
            raise
        except HomelabError as error:
            raise error.retold(next=f"{error.next}; `homelab doctor container {ctid}` shows each device") from error
        nodes = answer["nodes"]
        by = {who: ", ".join(path for path in nodes if nodes[path] == who) for who in nodes.values()}
        opened = "; ".join(f"by {who}: {paths}" for who, paths in by.items()) or f"nothing (state: {answer['state']})"
        tell(f"{inputs.host}: opened in container {ctid}: {opened}")
        for remark in answer["tried"]:
            tell(f"{inputs.host}: container {ctid}: {remark}")
        return ContainerVerification.Outputs(state=answer["state"], nodes=[*nodes])
