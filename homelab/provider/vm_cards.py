"""The work on a VmCards: plans what a VM is to have, notes what it had, brings that into force, and gives it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.host import gates, ha
from homelab.host.facts import HostFacts, noted_in
from homelab.provider import vm_memory
from homelab.provider.api import ApiWork
from homelab.provider.base import StackTexts, stopped_by_reboot
from homelab.provider.peers import forget_notes, forget_on, forget_on_peers, noted_by, noted_by_peers
from homelab.provider.vm_start import VmStart
from homelab.remote import ledger, ssh
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError, UnansweredError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.base import NodeInputs
from homelab.resources.vm_cards import VmCards
from homelab.shapes import Record, ShutdownInputs
from homelab.text import tell
from homelab.vm.config import (
    VmCard,
    Wish,
    check,
    drift,
    identity,
    is_ours,
    left_behind,
    may_have_record,
    not_put_back,
    noted_of,
    recorded,
    same_vm,
    settled,
    strings,
    taken_over,
    undo,
)

# Of a VM's drift: what it is to have was written into the state, and the work on it failed.
UNFINISHED = "the last run didn't finish with it"


class VmCardsWork(VmStart):
    """See the module."""

    resource = VmCards

    def id(self, inputs: VmCards.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmCards.Inputs) -> VmCards.Outputs:
        return self._given(inputs, None, None)

    def update(self, inputs: VmCards.Inputs, had: VmCards.Inputs, outputs: VmCards.Outputs) -> VmCards.Outputs:
        return self._given(inputs, had, outputs)

    def _given(
        self, inputs: VmCards.Inputs, had: VmCards.Inputs | None, outputs: VmCards.Outputs | None
    ) -> VmCards.Outputs:
        """:param had: as of `_planned`, with `outputs`."""
        planned = self._planned(inputs, had, outputs)
        try:
            done = self.bring_into_force(inputs, planned)
            return self._settled(inputs, done)
        except HomelabError as error:
            error.outputs = dataclasses.replace(planned, drift=[UNFINISHED])
            raise

    def _settled(self, inputs: VmCards.Inputs, done: VmCards.Outputs) -> VmCards.Outputs:
        """What counts after a run that has ended well, noted as well: what it has given back, and a value that it has
        replaced, are homelab's no more."""
        outputs = dataclasses.replace(done, record=settled(done.record), restore={})
        if outputs == done:
            return done
        name = ledger.of_vm(inputs.vmid)
        session = ssh.Session(self.host(inputs))
        if outputs.record:
            noted = ledger.noted(session, name) or {}
            ledger.note(session, name, {**noted, "record": outputs.record, "restore": {}})
        else:
            ledger.forget(session, name)
        return outputs

    def read(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs) -> VmCards.Outputs:
        drift = self._drift(inputs, outputs)
        for line in drift:
            tell(f"{inputs.vm}: drift: {line}")
        return dataclasses.replace(outputs, drift=drift)

    def _drift(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs) -> list[str]:
        vmid = inputs.vmid
        path, wanted = f"nodes/{inputs.node}/qemu/{vmid}", f"to read the configuration of VM {vmid}"
        there = inputs
        try:
            config = strings(self.reading(inputs, f"{path}/config", wanted))
        except NotThereError:
            return [f"VM {vmid} is gone"]
        except ElsewhereError as error:
            if not self.stack.roams(inputs.vm):
                return [error.found]
            # That it has moved is no drift of its own.
            tell(f"{inputs.vm}: VM {vmid} is on {error.node} now")
            path, there = f"nodes/{error.node}/qemu/{vmid}", dataclasses.replace(inputs, node=error.node)
            config = strings(self.reading(there, f"{path}/config", wanted))
        differences = drift(config, outputs.record)
        differences += [] if outputs.state else [UNFINISHED]
        if _is_another(outputs, config):
            differences.append(f"VM {vmid} isn't the VM that was given its cards")
        if inputs.power != "keep":
            status = self.reading(there, f"{path}/status/current", f"to see whether VM {vmid} runs")["status"]
            differences += [] if status == inputs.power else [f"VM {vmid} is {status} instead of {inputs.power}"]
        return differences

    def _planned(
        self, inputs: VmCards.Inputs, had: VmCards.Inputs | None, outputs: VmCards.Outputs | None
    ) -> VmCards.Outputs:
        """:param had: the inputs as the state has the resource; None: it doesn't, and what is noted on the host counts.
        :param outputs: the same of its outputs.
        """
        vmid = inputs.vmid
        config = self.machine(inputs, vmid, inputs.vm).config()
        host = self.host(inputs)
        session = ssh.Session(host)
        facts = session.read(guests=True)
        own = noted_in(facts.ledger, ledger.of_vm(vmid)) or {}
        guests, came_from = facts.guests, [had.host] if had is not None and had.host != inputs.host else []
        if had is not None and outputs is not None:
            known = had.instance == inputs.instance and not _is_another(outputs, config)
            record, restore = (outputs.record, outputs.restore) if known else ({}, {})
            serial, notes_of_vm = outputs.serial, [own, *self._noted_where_it_was(came_from, vmid)]
            record, restore = _with_noted(record, restore, config, notes_of_vm, serial)
        else:
            serial, notes_of_vm = 0, [own]
            record, restore, came_from = self._noted(inputs, config, facts)
        # What an earlier update was to give back, and was interrupted, still is homelab's: it may be wanted again.
        record = {key: entry for key, entry in restore.items() if is_ours(key, config.get(key), entry)} | record
        wish = wish_of(inputs, facts)
        users = {card.gpu: guests.users_of(card.slot, inputs.node) for card in wish.cards}
        errors, notes = check(config, wish, users)
        asked, told = taken_over(config, wish, record, guests, inputs.node)
        errors, notes = [*errors, *asked], [*told, *notes]
        mine = [vm for vm in self.stack.vms(inputs.host).values() if vm.vmid == vmid]
        raise_all(
            [
                *gates.readable(facts),
                *gates.guests_listed(facts, host),
                *errors,
                *ha.refused_under_ha(facts, host, mine),
            ]
        )
        made, given_back = recorded(config, wish, record)
        left = {key: entry for key, entry in given_back.items() if is_ours(key, config.get(key), entry)}
        notes += not_put_back(config, left, moved=bool(came_from))
        if came_from:
            left = left_behind(left)
        serial = 1 + max(serial, *map(_serial, notes_of_vm))
        if made or left:
            about: dict[str, object] = {"record": made, "restore": left, "guest": inputs.vm}
            about |= {"identity": identity(config), "serial": serial}
            about["mappings"] = sorted(card.mapping for card in wish.cards)
            about["stack"] = ledger.stack_of(self.urn)
            ledger.note(session, ledger.of_vm(vmid), about)
        elif ledger.of_vm(vmid) in facts.ledger:
            ledger.forget(session, ledger.of_vm(vmid))
        if had is not None and had.host != inputs.host:
            vm_memory.taken_along(self.stack, had.host, session, vmid, inputs.vm, identity(config))
        if stopped_by_reboot(vmid, inputs.boot, had.boot if had else None) and vmid not in guests.running:
            vm_memory.note_that_it_ran(session, vmid, inputs.vm, identity(config), off=True)
        for note in notes if made != record else []:
            tell(f"{inputs.vm}: {note}")
        if had is not None and came_from:
            tell(f"{inputs.vm}: VM {vmid} has moved from {had.node} to {inputs.node}: the notes about it move with it")
        for left_host in came_from:
            forget_on(self.stack, left_host, inputs.vm, [ledger.of_vm(vmid), ledger.of_power(vmid)])
        return VmCards.Outputs(
            record=made,
            restore=left,
            guest_name=config.get("name", inputs.vm),
            identity=identity(config),
            starts=outputs.starts if outputs else 0,
            serial=serial,
        )

    def _noted(
        self, inputs: VmCards.Inputs, config: dict[str, str], facts: HostFacts
    ) -> tuple[Record, Record, list[str]]:
        """What was recorded of the VM by its host, or by the one from which it has come; what of that is still to be
        given back; those other hosts.

        :raises HomelabError: a node of the cluster doesn't answer, and the VM has what may be noted there.
        """
        vmid, name, hosts = inputs.vmid, ledger.of_vm(inputs.vmid), list[str]()
        record, restore = noted_of(config, noted_in(facts.ledger, name))
        if not record and not restore and may_have_record(config):
            notes = noted_by_peers(self.stack, inputs.host, name)
            for host, noted in notes.by_host.items():
                known, left = noted_of(config, dict(noted))
                record, restore = {**record, **known}, {**restore, **left}
                hosts += [host] if known or left else []
            if not hosts:
                notes.require_all(
                    f"VM {vmid}",
                    "what this program gave the VM looks the same as what its owner did: without those notes it "
                    "would stay in the VM for good",
                )
        if record or restore:
            tell(
                f"{inputs.vm}: VM {vmid} was given {', '.join(sorted({**record, **restore}))} by this program "
                "before, and "
                f"this stack's state doesn't know it: taken over from what is noted on {', '.join(hosts) or 'the host'}"
            )
        return record, restore, hosts

    def _noted_where_it_was(self, hosts: Sequence[str], vmid: int) -> list[Mapping[str, object]]:
        """What is noted of the VM on the hosts that it has left, as far as they answer: a run that was killed there has
        noted what the state doesn't know."""
        notes = list[Mapping[str, object]]()
        for host in hosts:
            with suppress(HomelabError):
                notes.append(noted_by(self.stack, host, ledger.of_vm(vmid)))
        return notes

    def delete(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs) -> None:
        record, restore = outputs.record, outputs.restore
        try:
            notes = ssh.read(self.host(inputs)).ledger
        except UnreachableError:
            owned = {**restore, **record}
            if owned and (inputs.goes_away or not self._given_back_by_peer(inputs, outputs, owned)):
                raise
            return
        noted = noted_in(notes, ledger.of_vm(inputs.vmid))
        is_empty = not record and not restore and not noted
        if is_empty and (inputs.goes_away or not self.stack.peers(inputs.host)):
            return
        if holder := ledger.held_by(noted, inputs.vm):
            tell(f"{inputs.vm}: VM {inputs.vmid} is vms.{holder} now, and keeps what it was given")
            return
        if not inputs.goes_away:  # else the VM itself is deleted next
            try:
                machine = self.machine_now(inputs, inputs.vmid, inputs.vm)
                config = machine.config()
                noted_there = _noted_there(self.stack, inputs, machine)
                if is_empty and not noted_there:
                    return
                if holder := ledger.held_by(noted_there, inputs.vm):
                    tell(f"{inputs.vm}: VM {inputs.vmid} is vms.{holder} now, and keeps what it was given")
                elif _is_another(outputs, config):
                    tell(f"{inputs.vm}: VM {inputs.vmid} isn't the VM that was given its cards: it stays as it is")
                else:
                    notes_of_vm = [noted or {}, noted_there]
                    record, restore = _with_noted(record, restore, config, notes_of_vm, outputs.serial)
                    give_back(machine, {**restore, **record}, inputs.shutdown, moved=machine.node != inputs.node)
            except NotThereError:
                tell(f"{inputs.vm}: VM {inputs.vmid} is gone: there is nothing to give back")
        names = [ledger.of_vm(inputs.vmid), ledger.of_power(inputs.vmid)]
        forget_notes(self.host(inputs), [name for name in names if name in notes])
        forget_on_peers(self.stack, inputs.host, inputs.vm, names)

    def _given_back_by_peer(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs, owned: Record) -> bool:
        """Its host doesn't answer: where the VM is on another node by now, it gets back there what it had. No: it is on
        that host, or nobody answers.

        A node that can't be asked, whatever for, is told of, and the next one is asked: as for the dead one, nothing is
        given back through it.

        :raises HomelabError: the other node was lost meanwhile.
        """
        for peer in self.stack.peers(inputs.host):
            near = dataclasses.replace(inputs, host=peer, node=self.stack.host(peer).node or peer)
            try:
                machine = self.machine_now(near, inputs.vmid, inputs.vm)
                if machine.node == inputs.node:
                    return False
                config = machine.config()
                # Who keeps it is noted where it is, whichever node was asked for it.
                if (there := self.stack.name_at(peer, machine.node)) is None:
                    continue
            except (UnreachableError, UnansweredError):
                continue
            except NotThereError:
                return False
            except HomelabError as error:
                _not_asked(inputs, peer, error.found)
                continue
            # A node that runs and doesn't let itself be read is a person's to mend: then it can still be given back
            # there.
            try:
                noted = noted_by(self.stack, there, ledger.of_vm(inputs.vmid))
            except UnreachableError:
                continue
            stays = f"what /var/lib/homelab/ledger on {inputs.host} has of it"
            if holder := ledger.held_by(noted, inputs.vm):
                tell(f"{inputs.vm}: VM {inputs.vmid} is vms.{holder} now, and keeps what it was given")
            elif _is_another(outputs, config):
                tell(
                    f"{inputs.vm}: note: {inputs.host} doesn't answer, and VM {inputs.vmid} on {machine.node} is "
                    "another one than the one that "
                    f"was given its cards: it stays as it is, and so does {stays}"
                )
            else:
                record, restore = _with_noted(outputs.record, outputs.restore, config, [noted], outputs.serial)
                self._converged_by_peer(machine, there, inputs, {**restore, **record})
                tell(
                    f"{inputs.vm}: note: {inputs.host} doesn't answer, and VM {inputs.vmid} is on {machine.node} "
                    "now, where it was given back what "
                    f"it had: {stays} stays"
                )
            return True
        return False

    def _converged_by_peer(self, machine: Machine, there: str, inputs: VmCards.Inputs, owned: Record) -> None:
        """:param there: the host of the settings on which the VM is."""
        try:
            give_back(machine, owned, inputs.shutdown, moved=machine.node != inputs.node)
        except (UnreachableError, UnansweredError) as error:
            # Of another kind: it isn't the host of the resource that was lost.
            raise HomelabError(
                wanted=f"VM {inputs.vmid} on {machine.node} given back what it had",
                found=error.found,
                why="the connection was lost meanwhile: a part may have been given back already; the state keeps "
                "all of it",
                next=f"see whether {there} is switched on and pvedaemon runs there, then run the same command again: "
                "it goes on from what is there",
            ) from error


def give_back(machine: Machine, owned: Record, shutdown: ShutdownInputs, *, moved: bool = False) -> None:
    """Gives a VM back what it had, as far as it still is as this program set it.

    :param moved: is it on another node than `owned` says?
    """
    if not owned:
        return
    for line in not_put_back(machine.config(), owned, moved=moved):
        tell(f"{machine.name}: note: {line}")
    machine.converge(lambda config: undo(config, owned, moved=moved), sorted(owned), shutdown, "keep")


def give_back_noted(
    work: ApiWork[Any, Any], inputs: NodeInputs, vmid: int, noted: Mapping[str, object], shutdown: ShutdownInputs
) -> None:
    """Gives a VM back what is noted of it, where no state may have its VmCards: a run was killed while it made it.

    :param inputs: of the host with the note.
    :raises HomelabError: it can't be given back, or the host can't be reached.
    """
    machine = work.machine_now(inputs, vmid, str(noted.get("guest", "")))
    try:
        config = machine.config()
        if not _noted_there(work.stack, inputs, machine):  # else it is another one's there
            # Also what it has no more: the run may have been killed before it started the VM again.
            give_back(machine, noted_entries(config, noted), shutdown, moved=machine.node != inputs.node)
    except NotThereError:
        pass  # what is noted of it no longer counts
    forget_notes(work.host(inputs), [ledger.of_vm(vmid), ledger.of_power(vmid)])


def noted_entries(config: dict[str, str], noted: Mapping[str, Any]) -> Record:
    """What this program has noted that it set in this VM, whether or not it is still there."""
    if not same_vm(str(noted.get("identity", "")), identity(config)):
        return {}
    return {**noted.get("restore", {}), **noted.get("record", {})}


def _noted_there(stack: StackTexts, inputs: NodeInputs, machine: Machine) -> Mapping[str, object]:
    """What is noted on the node to which a VM has moved: a run that was killed there has noted what the state doesn't
    know. Empty: it hasn't moved, or that node isn't in the settings.

    :raises HomelabError: the node can't be asked.
    """
    there = None if machine.node == inputs.node else stack.name_at(inputs.host, machine.node)
    return noted_by(stack, there, ledger.of_vm(machine.vmid)) if there else {}


def _not_asked(inputs: VmCards.Inputs, peer: str, why: str) -> None:
    tell(
        f"{inputs.vm}: note: {inputs.host} doesn't answer, and through {peer} nothing can be given back to VM "
        f"{inputs.vmid}: {why}"
    )


def _is_another(outputs: VmCards.Outputs, config: dict[str, str]) -> bool:
    """Has another VM than the recorded one the id by now? One without an identity can't be told from another."""
    return bool(outputs.identity) and not same_vm(outputs.identity, identity(config))


def _with_noted(
    record: Record, restore: Record, config: dict[str, str], notes: Sequence[Mapping[str, object]], serial: int
) -> tuple[Record, Record]:
    """What the state knows to be ours and still to be given back, with what a run that was killed has noted since, and
    done.

    :param serial: the state's; a note that isn't newer is one that its node kept when the VM left it.
    """
    for noted in sorted(notes, key=_serial):
        if _serial(noted) > serial:
            ours, left = noted_of(config, dict(noted))
            record, restore = {**record, **ours}, {**restore, **left}
    return record, restore


def _serial(noted: Mapping[str, object]) -> int:
    return int(str(noted.get("serial", 0)))


def wish_of(inputs: VmCards.Inputs, facts: HostFacts) -> Wish:
    """The inputs as what `vm_config` takes.

    :param facts: the host, which knows the cards' names.
    """
    return Wish(
        inputs.vm,
        inputs.vmid,
        [VmCard(**card, name=facts.card(str(card["slot"]))) for card in inputs.cards],
        inputs.machine,
        inputs.display,
        inputs.shared_onboot,
    )
