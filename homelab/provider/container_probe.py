"""The work on a ContainerProbe: which cards a container is to have, as numbers; a refresh compares."""

from __future__ import annotations

import dataclasses

from homelab.container import libraries, other_makers
from homelab.container import plan as container_plan
from homelab.container.identity import identity, is_another
from homelab.errors import HomelabError, raise_all
from homelab.host import plan
from homelab.host.facts import GuestConfig, HostFacts
from homelab.nvidia import reading
from homelab.provider.base import Work, stopped_by_reboot
from homelab.provider.peers import ask_peers, container_record_of
from homelab.remote import guard, ssh
from homelab.resources.container_probe import ContainerProbe
from homelab.shapes import BootSeen
from homelab.text import tell
from remote_scripts.layers.container_gpus import Wanted as ContainerGpus
from remote_scripts.layers.container_record import Wanted as ContainerRecord
from remote_scripts.shared.container_power import Shutdown


class ContainerProbeWork(Work[ContainerProbe.Inputs, ContainerProbe.Outputs]):
    """Plans which cards a container gets, compares it with that, and takes along what was noted of it."""

    resource = ContainerProbe

    def id(self, inputs: ContainerProbe.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: ContainerProbe.Inputs) -> ContainerProbe.Outputs:
        return self._plan(inputs, None)

    def update(
        self, inputs: ContainerProbe.Inputs, before: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs
    ) -> ContainerProbe.Outputs:
        planned = self._plan(inputs, before.boot, outputs.generation, outputs.again)
        if before.host != inputs.host:
            _require_same(inputs, outputs.identity, planned.identity)
            tell(
                f"{inputs.container}: container {inputs.ctid} has moved from {before.node} to {inputs.node}: the notes "
                "about it move with it"
            )
            self._move_record(inputs, before.host, inputs.host)
            planned = dataclasses.replace(planned, generation=planned.generation + 1)
        return planned

    def _take_over(self, inputs: ContainerProbe.Inputs, facts: HostFacts, config: GuestConfig) -> None:
        """The state doesn't know the container, as where it was lost: what is noted on the host that the container has
        left meanwhile goes to the one that it is on.

        :raises HomelabError: a node of the cluster doesn't answer, and the container has lines that may be noted there.
        """
        if not config.container.lines or any(container.id == inputs.ctid for container in facts.containers):
            return
        notes = ask_peers(self.stack, inputs.host, lambda peer: container_record_of(self.stack, peer, inputs.ctid))
        for old_host in notes.by_host:
            tell(
                f"{inputs.container}: container {inputs.ctid} has come from {old_host}, and this stack's state doesn't "
                "know it: the notes there move with it"
            )
            self._move_record(inputs, old_host, inputs.host)
        if not notes.by_host:
            notes.require_all(
                f"container {inputs.ctid}",
                "lines that this program gave the container look the same as its owner's: without those notes they "
                "would stay in it for good, beside new ones",
            )

    def _move_record(self, inputs: ContainerProbe.Inputs, old_host: str, new_host: str) -> None:
        """What is noted on the host that the container has left goes to the one that it is on: by it the lines of the
        old node's cards are known as homelab's. A host that is no longer in the settings, such as one that is dead, is
        not asked: what was noted there is lost.

        :raises HomelabError: one of them can't be reached; the lines stay as they are.
        """
        if old_host not in self.stack.host_names():
            _tell_of_lost_record(inputs, old_host)
            return
        try:
            session = ssh.Session(self.stack.host(old_host))
            noted = ContainerRecord(
                ctid=inputs.ctid,
                record=session.ask("read", "container_record", ContainerRecord(ctid=inputs.ctid))["record"],
            )
            if noted.record:
                ssh.Session(self.stack.host(new_host)).ask("apply", "container_record", noted)
                session.ask("revert", "container_record", noted)
        except HomelabError as error:
            raise HomelabError(
                wanted=f"the notes about container {inputs.ctid} moved from {old_host} to {new_host}",
                found=f"{error.wanted}: {error.found}",
                why="only these notes tell which of the container's lines are this program's; the container is as "
                "it was",
                next=f"bring {old_host} back, then run the same command again; or migrate the container back; or, if "
                f"{old_host} won't come back, take it out of homelab:hosts: then you have to take these lines out "
                "yourself",
            ) from error

    def read(self, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs) -> ContainerProbe.Outputs:
        facts = self.facts_of_refresh(inputs)
        if self.stack.roams(inputs.container) and (node := facts.cluster.node_of(inputs.ctid)):
            # That it has moved is no drift of its own.
            tell(f"{inputs.container}: container {inputs.ctid} is on {node} now")
            return outputs
        if facts.handover.away and facts.guests.config(inputs.ctid) is not None:
            tell(f"{inputs.container}: not compared: {facts.handover.away}")
            return outputs
        drift = _drift(facts, inputs)
        device_drift = self._device_drift(facts, inputs, outputs)
        library_drift = self._library_drift(facts, inputs)
        for difference in [*drift, *device_drift, *library_drift]:
            tell(f"{inputs.container}: drift: {difference}")
        gone = facts.guests.config(inputs.ctid) is None
        return dataclasses.replace(
            outputs,
            generation=outputs.generation + bool(drift),
            again=outputs.again + bool(library_drift),
            stale=bool(device_drift) or gone,
        )

    def _library_drift(self, facts: HostFacts, inputs: ContainerProbe.Inputs) -> list[str]:
        """Drift of the packages for the container's cards, a sentence each."""
        container = self.stack.container(inputs.container)
        text = facts.systems.get(str(inputs.ctid))
        if container is None or not container.libraries or facts.guests.config(inputs.ctid) is None:
            return []
        if text is None:
            tell(f"{inputs.container}: it doesn't run: packages for its cards were not compared")
            return []
        return libraries.drift(reading.parse(text))

    def _device_drift(
        self, facts: HostFacts, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs
    ) -> list[str]:
        """Numbers and device nodes of the container's cards that have changed since its plan, a sentence each."""
        container = self.stack.container(inputs.container)
        if container is None:  # it leaves the stack
            return []
        want = _wanted(inputs)
        minors, _ = container_plan.numbers(
            inputs.container, container, container_plan.cards(facts, want, {}, inputs.node), want
        )
        differences = (
            [] if minors == outputs.minors else [f"its cards are /dev/nvidia{minors}, not /dev/nvidia{outputs.minors}"]
        )
        shared, _ = other_makers.shared(inputs.container, container, facts, inputs.gpus, inputs.node)
        for gpu, card in shared.items():
            before = outputs.shared.get(gpu)
            if before is not None and before != card:
                differences.append(
                    f"the nodes of gpus.{gpu} are {', '.join(card['nodes'])}, not {', '.join(before['nodes'])}"
                )
        return differences

    def _plan(
        self, inputs: ContainerProbe.Inputs, boot: BootSeen | None, generation: int = 0, again: int = 0
    ) -> ContainerProbe.Outputs:
        """:param boot: the last one that this container was planned under."""
        container = self.stack.container(inputs.container)
        if container is None:
            raise HomelabError(
                wanted=f"homelab:containers.{inputs.container} in the stack's configuration",
                found="it is missing",
                why="it says which cards the container is to have",
                next="put it back, or run `pulumi up` to give the container up",
            )
        guard.hold(inputs.host, self.host(inputs))
        facts = ssh.read(self.host(inputs), guests=True)
        want = _wanted(inputs)
        cards = container_plan.cards(facts, want, self.stack.vms(inputs.host), inputs.node)
        minors, errors = container_plan.check(inputs.container, container, facts, cards, want)
        shared, refused = other_makers.shared(inputs.container, container, facts, inputs.gpus, inputs.node)
        raise_all([*errors, *refused, *libraries.refusals(inputs.container, container, facts, inputs.gpus)])
        config = facts.guests.config(inputs.ctid)
        if boot is None and config is not None:
            self._take_over(inputs, facts, config)
        return ContainerProbe.Outputs(
            minors=minors,
            functions=container_plan.functions([cards.slots[number] for number in minors], facts),
            resume=inputs.power == "keep" and stopped_by_reboot(inputs.ctid, inputs.boot, boot),
            guest_name=config.values.get("hostname", inputs.container) if config else inputs.container,
            generation=generation,
            again=again,
            stale=False,
            shared=shared,
            identity=identity(config.values) if config else "",
        )

    def delete(self, inputs: ContainerProbe.Inputs, outputs: ContainerProbe.Outputs) -> None:
        """It owns nothing. What a container was given is still to be given back where it has moved since, where it is
        now; and where a run was killed while it gave that, so that no state has it."""
        if inputs.host not in self.stack.host_names():
            if inputs.cluster:
                _tell_of_lost_record(inputs, inputs.host)
            return
        if inputs.cluster:
            self._give_back_elsewhere(inputs, outputs.identity)
        if container_record_of(self.stack, inputs.host, inputs.ctid):
            self._take_out(inputs, inputs.host)

    def _give_back_elsewhere(self, inputs: ContainerProbe.Inputs, before: str) -> None:
        facts = ssh.read(self.host(inputs), guests=True)
        node = facts.cluster.node_of(inputs.ctid)
        if not node or not any(container.id == inputs.ctid for container in facts.containers):
            return
        new_host = self.stack.name_at(inputs.host, node)
        if new_host is None:
            raise HomelabError(
                wanted=f"what container {inputs.ctid} was given for its cards taken out of it",
                found=f"it is on {node} now, which is no host of these settings",
                why="its configuration is changed on the node that it is on; nothing was changed",
                next=f"migrate it back (on {node}, while it is off: `pct migrate {inputs.ctid} {inputs.node}`), "
                "then run the same command again",
            )
        config = ssh.read(self.stack.host(new_host), guests=True).guests.config(inputs.ctid)
        if config and is_another(before, identity(config.values)):
            tell(
                f"{inputs.container}: container {inputs.ctid} on {node} is another one now: nothing is taken out of it"
            )
            return
        tell(f"{inputs.container}: container {inputs.ctid} is on {node} now: what it was given is taken out there")
        self._move_record(inputs, inputs.host, new_host)
        self._take_out(inputs, new_host)

    def _take_out(self, inputs: ContainerProbe.Inputs, new_host: str) -> None:
        shutdown, host = inputs.shutdown, self.stack.host(new_host)
        wanted = ContainerGpus(
            ctid=inputs.ctid,
            shutdown=Shutdown(timeout=shutdown.timeout, otherwise=shutdown.otherwise),
            guest=inputs.container,
        )
        ssh.Session(host).ask("revert", "container_gpus", wanted, shutdown.timeout + host.timeouts.step)


def _wanted(inputs: ContainerProbe.Inputs) -> plan.Wanted:
    return plan.Wanted("", "", {}, [], inputs.gpus)


def _tell_of_lost_record(inputs: ContainerProbe.Inputs, old_host: str) -> None:
    tell(
        f"{inputs.container}: note: {old_host} is no longer in homelab:hosts, and what was noted there of container "
        f"{inputs.ctid} is lost: lines that this program gave it there stay in its configuration, since they can't be "
        f"told from your own. Take out those of cards that {old_host} had: dev… options (`pct set {inputs.ctid} "
        f"--delete …`) and lxc.… lines (/etc/pve/lxc/{inputs.ctid}.conf on the node that it is on), both while it is "
        "off"
    )


def _require_same(inputs: ContainerProbe.Inputs, before: str, current: str) -> None:
    if is_another(before, current):
        raise HomelabError(
            wanted=f"container {inputs.ctid} ({inputs.container}) given its cards on {inputs.node}, where it is now",
            found=f"container {inputs.ctid} on {inputs.node} is another one: its network cards have other addresses "
            f"({current} instead of {before})",
            why="the one that had the cards is gone, and its id is used again; nothing was changed",
            next=f"correct ctid of containers.{inputs.container}; if this one is to have the cards, take the entry "
            "out, run `pulumi up`, and put it back",
        )


def _drift(facts: HostFacts, inputs: ContainerProbe.Inputs) -> list[str]:
    ctid = inputs.ctid
    config = facts.guests.config(ctid)
    if config is None:
        return [f"container {ctid} is gone"]
    container = next((given for given in facts.containers if given.id == ctid), None)
    drift = container.drift if container else ["nothing on the host tells what was given to it"]
    power, runs = inputs.power, ctid in facts.guests.running
    if power != "keep" and runs != (power == "running") and not facts.guests.unlisted:
        drift = [*drift, f"container {ctid} is {'running' if runs else 'stopped'} instead of {power}"]
    return drift
