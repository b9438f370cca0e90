"""The work on a VmRecord: plans what a VM is to have, notes what it had, and gives that back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.host import gates, ha
from homelab.host.facts import HostFacts, noted_in
from homelab.properties import same
from homelab.provider import vm_memory
from homelab.provider.api import ApiWork, policy
from homelab.provider.base import stopped_by_us
from homelab.provider.peers import forgotten_by, forgotten_by_peers, noted_by, noted_by_peers
from homelab.remote import ledger, ssh
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError, UnansweredError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.vm_record import VmRecord
from homelab.settings import Host
from homelab.shapes import Record
from homelab.text import tell
from homelab.vm.config import (
    VmCard,
    Wish,
    check,
    drift,
    identity,
    may_be_ours,
    not_put_back,
    noted_of,
    ours_of,
    recorded,
    same_vm,
    strings,
    taken_over,
    undo,
)


class VmRecordWork(ApiWork[VmRecord.Inputs, VmRecord.Outputs]):
    """See the module."""

    resource = VmRecord

    def id(self, inputs: VmRecord.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmRecord.Inputs) -> VmRecord.Outputs:
        return asyncio.run(self._planned(inputs, None, None))

    def update(self, inputs: VmRecord.Inputs, had: VmRecord.Inputs, outputs: VmRecord.Outputs) -> VmRecord.Outputs:
        return asyncio.run(self._planned(inputs, had, outputs))

    def read(self, inputs: VmRecord.Inputs, outputs: VmRecord.Outputs) -> VmRecord.Outputs:
        drift = self._drift(inputs, outputs)
        for line in drift:
            tell(f"{inputs.vm}: drift: {line}")
        return dataclasses.replace(outputs, drift=drift)

    def _drift(self, inputs: VmRecord.Inputs, outputs: VmRecord.Outputs) -> list[str]:
        vmid = inputs.vmid
        path, wanted = f"nodes/{inputs.node}/qemu/{vmid}", f"to read the configuration of VM {vmid}"
        try:
            config = strings(self.reading(inputs, f"{path}/config", wanted))
        except NotThereError:
            return [f"VM {vmid} is gone"]
        except ElsewhereError as error:
            if not self.stack.roams(inputs.vm):
                return [error.found]
            # That it has moved is no drift of its own.
            tell(f"{inputs.vm}: VM {vmid} is on {error.node} now")
            path = f"nodes/{error.node}/qemu/{vmid}"
            config = strings(self.reading(inputs, f"{path}/config", wanted))
        found = drift(config, outputs.record)
        if _is_another(outputs, config):
            found.append(f"VM {vmid} isn't the VM that was given its cards")
        if inputs.power != "keep":
            status = self.reading(inputs, f"{path}/status/current", f"to see whether VM {vmid} runs")["status"]
            found += [] if status == inputs.power else [f"VM {vmid} is {status} instead of {inputs.power}"]
        return found

    async def _planned(
        self, inputs: VmRecord.Inputs, had: VmRecord.Inputs | None, outputs: VmRecord.Outputs | None
    ) -> VmRecord.Outputs:
        """:param had: the inputs as the state has the resource; None: it doesn't, and what is noted on the host counts.
        :param outputs: the same of its outputs.
        """
        vmid = inputs.vmid
        config = self.machine(inputs, vmid, inputs.vm).config()
        host = self.host(inputs)
        async with ssh.connect(host) as session:
            facts = await session.read(guests=True)
            guests, came_from = facts.guests, [had.host] if had is not None and had.host != inputs.host else []
            if had is not None and outputs is not None:
                known = had.instance == inputs.instance and not _is_another(outputs, config)
                record, restore = (outputs.record, outputs.restore) if known else ({}, {})
                generation = outputs.generation + 1
            else:
                record, restore, came_from = await self._noted(inputs, config, facts)
                generation = 0
            wish = wish_of(inputs, facts)
            users = {card.gpu: guests.users_of(card.slot, inputs.node) for card in wish.cards}
            errors, notes = check(config, wish, users)
            asked, told = taken_over(config, wish, record, guests, inputs.node)
            errors, notes = [*errors, *asked], [*told, *notes]
            mine = [vm for vm in self.stack.vms(inputs.host).values() if vm.vmid == vmid]
            raise_all(
                [*gates.readable(facts), *gates.listed(facts, host), *errors, *ha.refused_under_ha(facts, host, mine)]
            )
            made, given_back = recorded(config, wish, record)
            # What an earlier update was to give back, and was interrupted, still is; what is no longer ours has been.
            left = {
                key: entry
                for key, entry in {**restore, **given_back}.items()
                if key not in made and same(key, config.get(key), ours_of(entry))
            }
            if made or left:
                about = {"record": made, "restore": left, "identity": identity(config), "guest": inputs.vm}
                await ledger.note(session, ledger.of_vm(vmid), about)
            elif ledger.of_vm(vmid) in facts.ledger:
                await ledger.forget(session, ledger.of_vm(vmid))
            again = False
            if had is not None and had.host != inputs.host:
                again = await vm_memory.taken_along(self.stack, had.host, session, vmid, inputs.vm, identity(config))
            elif ledger.of_power(vmid) in facts.ledger:
                again = (
                    await vm_memory.is_owed_since(session, host, vmid, inputs.vm, lambda: identity(config)) is not None
                )
            if stopped_by_us(vmid, inputs.boot, had.boot if had else None) and vmid not in guests.running:
                await vm_memory.note_that_it_ran(session, vmid, inputs.vm, identity(config), off=True)
                again = True
        for note in notes if made != record else []:
            tell(note if note.startswith(f"VM {vmid} ") else f"{inputs.vm}: {note}")
        if had is not None and came_from:
            tell(f"{inputs.vm}: VM {vmid} has moved from {had.node} to {inputs.node}: the notes about it move with it")
        for left_host in came_from:
            await forgotten_by(self.stack, left_host, inputs.vm, [ledger.of_vm(vmid), ledger.of_power(vmid)])
        return VmRecord.Outputs(
            record=made,
            restore=left,
            running=again or vmid in guests.running,
            generation=generation,
            guest_name=config.get("name", inputs.vm),
            identity=identity(config),
        )

    async def _noted(
        self, inputs: VmRecord.Inputs, config: dict[str, str], facts: HostFacts
    ) -> tuple[Record, Record, list[str]]:
        """What was recorded of the VM by its host, or by the one from which it has come; what of that is still to be given back; those other hosts.

        :raises HomelabError: a node of the cluster doesn't answer, and the VM has what may be noted there.
        """
        vmid, name, hosts = inputs.vmid, ledger.of_vm(inputs.vmid), list[str]()
        record, restore = noted_of(config, noted_in(facts.ledger, name))
        if not record and not restore and may_be_ours(config):
            notes = await noted_by_peers(self.stack, inputs.host, name)
            for host, noted in notes.found.items():
                known, left = noted_of(config, dict(noted))
                record, restore = {**record, **known}, {**restore, **left}
                hosts += [host] if known or left else []
            if not hosts:
                notes.require_all(
                    f"VM {vmid}",
                    "what this program gave the VM looks the same as what its owner did: without those notes it would stay in the VM for good",
                )
        if record or restore:
            tell(
                f"{inputs.vm}: VM {vmid} was given {', '.join(sorted({**record, **restore}))} by this program before, and "
                f"this stack's state doesn't know it: taken over from what is noted on {', '.join(hosts) or 'the host'}"
            )
        return record, restore, hosts

    def delete(self, inputs: VmRecord.Inputs, outputs: VmRecord.Outputs) -> None:
        owned = {**outputs.restore, **outputs.record}
        if not owned:
            return
        try:
            noted = asyncio.run(ssh.read(self.host(inputs))).ledger
        except UnreachableError:
            if inputs.goes_away or not self._given_back_by_peer(inputs, outputs, owned):
                raise
            return
        if holder := ledger.held_by(noted_in(noted, ledger.of_vm(inputs.vmid)), inputs.vm):
            tell(f"{inputs.vm}: VM {inputs.vmid} is vms.{holder} now, and keeps what it was given")
            return
        if not inputs.goes_away:  # else the VM itself is deleted next
            try:
                machine = self.machine_now(inputs, inputs.vmid, inputs.vm)
                if _is_another(outputs, machine.config()):
                    tell(f"{inputs.vm}: VM {inputs.vmid} isn't the VM that was given its cards: it stays as it is")
                else:
                    self._give_back(machine, inputs, owned)
            except NotThereError:
                tell(f"{inputs.vm}: VM {inputs.vmid} is gone: there is nothing to give back")
        asyncio.run(_forget(self.host(inputs), inputs, noted))
        names = [ledger.of_vm(inputs.vmid), ledger.of_power(inputs.vmid)]
        asyncio.run(forgotten_by_peers(self.stack, inputs.host, inputs.vm, names))

    def _give_back(self, machine: Machine, inputs: VmRecord.Inputs, owned: Record) -> None:
        moved = machine.node != inputs.node
        for line in not_put_back(machine.config(), owned, moved=moved):
            tell(f"{inputs.vm}: note: {line}")
        machine.converge(
            lambda config: undo(config, owned, moved=moved), sorted(owned), policy(inputs.shutdown), "keep"
        )

    def _given_back_by_peer(self, inputs: VmRecord.Inputs, outputs: VmRecord.Outputs, owned: Record) -> bool:
        """Its host doesn't answer: where the VM is on another node by now, it gets back there what it had. No: it is on that host, or nobody answers.

        A node that can't be asked, whatever for, is told of, and the next one is asked: as for the dead one, nothing is given back through it.

        :raises HomelabError: the other node was lost meanwhile.
        """
        for peer in self.stack.peers(inputs.host):
            near = dataclasses.replace(inputs, host=peer, node=self.stack.host(peer).node or peer)
            try:
                if self.stack.host(peer).api is None:
                    _not_asked(inputs, peer, "it has no api in the settings")
                    continue
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
            # A node that runs and doesn't let itself be read is a person's to mend: then it can still be given back there.
            try:
                noted = asyncio.run(noted_by(self.stack, there, ledger.of_vm(inputs.vmid)))
            except UnreachableError:
                continue
            stays = f"what /var/lib/homelab/ledger on {inputs.host} has of it"
            if holder := ledger.held_by(noted, inputs.vm):
                tell(f"{inputs.vm}: VM {inputs.vmid} is vms.{holder} now, and keeps what it was given")
            elif _is_another(outputs, config):
                tell(
                    f"{inputs.vm}: note: {inputs.host} doesn't answer, and VM {inputs.vmid} on {machine.node} is another one than the one that "
                    f"was given its cards: it stays as it is, and so does {stays}"
                )
            else:
                self._converged_by_peer(machine, there, inputs, owned)
                tell(
                    f"{inputs.vm}: note: {inputs.host} doesn't answer, and VM {inputs.vmid} is on {machine.node} now, where it was given back what "
                    f"it had: {stays} stays"
                )
            return True
        return False

    def _converged_by_peer(self, machine: Machine, there: str, inputs: VmRecord.Inputs, owned: Record) -> None:
        """:param there: the host of the settings on which the VM is."""
        try:
            self._give_back(machine, inputs, owned)
        except (UnreachableError, UnansweredError) as error:
            # Of another kind: it isn't the host of the resource that was lost.
            raise HomelabError(
                wanted=f"VM {inputs.vmid} on {machine.node} given back what it had",
                found=error.found,
                why="the connection was lost meanwhile: a part may have been given back already; the state keeps all of it",
                next=f"see whether {there} is switched on and pveproxy runs there, then run the same command again: it goes on from what is there",
            ) from error


def _not_asked(inputs: VmRecord.Inputs, peer: str, why: str) -> None:
    tell(
        f"{inputs.vm}: note: {inputs.host} doesn't answer, and through {peer} nothing can be given back to VM {inputs.vmid}: {why}"
    )


def _is_another(outputs: VmRecord.Outputs, config: dict[str, str]) -> bool:
    """Has another VM than the recorded one the id by now? A state of an earlier version doesn't tell."""
    return bool(outputs.identity) and not same_vm(outputs.identity, identity(config))


async def _forget(host: Host, inputs: VmRecord.Inputs, noted: Mapping[str, str]) -> None:
    """:param noted: the host's notes."""
    async with ssh.connect(host) as session:
        await ledger.forget(session, ledger.of_vm(inputs.vmid))
        if ledger.of_power(inputs.vmid) in noted:
            await ledger.forget(session, ledger.of_power(inputs.vmid))


def wish_of(inputs: VmRecord.Inputs, facts: HostFacts) -> Wish:
    """The inputs as what `vm_config` takes.

    :param facts: the host, which knows the cards' names.
    """
    return Wish(
        inputs.vm,
        inputs.vmid,
        [VmCard(**card, called=facts.card(str(card["slot"]))) for card in inputs.cards],
        inputs.machine,
        inputs.display,
        inputs.shared_onboot,
    )
