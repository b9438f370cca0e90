"""The work on a VmPlace and a VmMigration: looks at a VM that is on a node without its cards; shuts it down there and migrates it.

That the VM ran is noted on its new host (``move/<vmid>``) before it is shut down, and that it is off once that is certain. When it has arrived, it is
noted as one that is to run again (homelab/provider/vm_memory.py): VmChange starts it with its cards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from homelab.errors import HomelabError, raise_all
from homelab.provider import vm_memory
from homelab.provider.api import ApiWork, policy
from homelab.provider.peers import forgotten_by, noted_by
from homelab.remote import ledger, ssh
from homelab.remote.proxmox import migration
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.api import identity as called
from homelab.remote.proxmox.errors import NotThereError, StillRunsError, UnansweredError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.base import VmInputs
from homelab.resources.vm_migration import VmMigration, VmPlace
from homelab.text import tell
from homelab.vm.config import VmCard, Wish, check, identity, same_vm
from homelab.vm.migration import against


class VmPlaceWork(ApiWork[VmPlace.Inputs, VmPlace.Outputs]):
    """See the module."""

    resource = VmPlace

    def id(self, inputs: VmPlace.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmPlace.Inputs) -> VmPlace.Outputs:
        return self._looked_at(inputs, VmPlace.Outputs(moves=0, came_from=""))

    def update(self, inputs: VmPlace.Inputs, had: VmPlace.Inputs, outputs: VmPlace.Outputs) -> VmPlace.Outputs:
        return self._looked_at(inputs, outputs)

    def _looked_at(self, inputs: VmPlace.Inputs, known: VmPlace.Outputs) -> VmPlace.Outputs:
        """:raises HomelabError: all that stands against the VM's way to its cards, and against what it is to get there."""
        api = self.api(inputs)
        if not inputs.leaves or migration.place_of(api, inputs.vmid) != inputs.leaves:
            return known  # it has moved meanwhile, which VmMigration says
        move = migration.read(api, inputs.vm, inputs.vmid, inputs.leaves, inputs.storage)
        host = self.host(inputs)
        facts = asyncio.run(ssh.read(host, guests=True))
        cards = [VmCard(**card, called=facts.card(str(card["slot"]))) for card in inputs.cards]
        root = bool(host.api and host.api.is_root)
        wish = Wish(inputs.vm, inputs.vmid, cards, inputs.machine, inputs.display, inputs.shared_onboot, root)
        users = {card.gpu: facts.guests.users_of(card.slot, inputs.node) for card in cards}
        raise_all([*check(move.free_config, wish, users)[0], *against(move, host, facts)])
        return VmPlace.Outputs(moves=known.moves + 1, came_from=inputs.leaves)

    def delete(self, inputs: VmPlace.Inputs, outputs: VmPlace.Outputs) -> None:
        """The VM stays where it is. One that a run which was killed has shut down for its move, and not started since, runs again."""
        if outputs.came_from:
            tell(
                f"{inputs.vm}: VM {inputs.vmid} was brought from {outputs.came_from} by this program, and stays on the node that it is on; to take it back "
                f"while it is off: `qm migrate {inputs.vmid} {outputs.came_from}`"
            )
        name = ledger.of_move(inputs.vmid)
        noted = asyncio.run(noted_by(self.stack, inputs.host, name)) if outputs.came_from else {}
        if not noted or ledger.held_by(noted, inputs.vm):
            return
        try:
            machine = self.machine_now(inputs, inputs.vmid, inputs.vm)
            same = same_vm(str(noted.get("identity", "")), identity(machine.config()))
            if same and not machine.running() and _shut_by_us(self.api(inputs), inputs, noted):
                machine.start()
        except NotThereError:
            tell(f"{inputs.vm}: VM {inputs.vmid} is gone")
        asyncio.run(forgotten_by(self.stack, inputs.host, inputs.vm, [name]))


class VmMigrationWork(ApiWork[VmMigration.Inputs, VmMigration.Outputs]):
    """See the module."""

    resource = VmMigration

    def id(self, inputs: VmMigration.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmMigration.Inputs) -> VmMigration.Outputs:
        return self._brought(inputs)

    def update(
        self, inputs: VmMigration.Inputs, had: VmMigration.Inputs, outputs: VmMigration.Outputs
    ) -> VmMigration.Outputs:
        return self._brought(inputs)

    def _brought(self, inputs: VmMigration.Inputs) -> VmMigration.Outputs:
        api = self.api(inputs)
        place = migration.place_of(api, inputs.vmid)
        if place and place != inputs.node and inputs.moves:
            if place != inputs.came_from:
                raise _moved_meanwhile(inputs, place)
            self._move(inputs, api)
            place = migration.place_of(api, inputs.vmid)
            if place != inputs.node:
                raise _moved_meanwhile(inputs, place)
        if place == inputs.node:
            self._arrived(inputs, api)
        return VmMigration.Outputs(done=inputs.moves)

    def _move(self, inputs: VmMigration.Inputs, api: Api) -> None:
        """From `came_from` to the host. :raises HomelabError: it is where it was then, and as it was, unless the text says otherwise."""
        there = api.at(inputs.came_from)
        machine = self._machine_of(there, inputs, inputs.vmid, inputs.vm)
        if machine.running():
            whose = {"identity": identity(machine.config()), "guest": inputs.vm, "node": inputs.came_from}
            noted: Mapping[str, Any] = {**whose, "at": int(there.node_time), "off": False}
            asyncio.run(self._note(inputs, noted))
            machine.shut_down(policy(inputs.shutdown))
            asyncio.run(self._note(inputs, {**noted, "off": True}))
            ran = True
        else:
            noted = asyncio.run(noted_by(self.stack, inputs.host, ledger.of_move(inputs.vmid)))
            ran = self._counts(inputs, noted, machine) and _shut_by_us(api, inputs, noted)
        try:
            migration.migrate(api, inputs.came_from, inputs.vmid, inputs.storage, machine.say)
        except (StillRunsError, UnansweredError):
            raise  # it may be on its way: the next run waits for it
        except HomelabError as error:
            raise self._stayed(error, inputs, machine, ran=ran) from error

    def _stayed(self, error: HomelabError, inputs: VmMigration.Inputs, machine: Machine, *, ran: bool) -> HomelabError:
        """A migration that failed: one that ran runs again where it is."""
        outcome = f"{machine.label} is on {inputs.came_from}, and off, as it was"
        if ran:
            try:
                machine.start()
                outcome = f"{machine.label} runs again on {inputs.came_from}, as before"
                asyncio.run(self._forget(inputs))
            except HomelabError as second:
                outcome = f"{machine.label} is on {inputs.came_from}, off, and doesn't start again: {second.found}"
        return error.retold(found=f"{error.found}\n        {outcome}")

    def _arrived(self, inputs: VmMigration.Inputs, api: Api) -> None:
        """It is where its cards are: one that ran is to run again, which is left to VmChange."""
        noted = asyncio.run(noted_by(self.stack, inputs.host, ledger.of_move(inputs.vmid)))
        if not noted or ledger.held_by(noted, inputs.vm):
            return
        machine = self.machine(inputs, inputs.vmid, inputs.vm)
        counts = self._counts(inputs, noted, machine) and not machine.running() and _shut_by_us(api, inputs, noted)
        asyncio.run(self._runs_again(inputs, noted, identity(machine.config()), counts=counts))

    async def _runs_again(
        self, inputs: VmMigration.Inputs, noted: Mapping[str, Any], identified: str, *, counts: bool
    ) -> None:
        async with ssh.connect(self.host(inputs)) as session:
            if counts and not await vm_memory.was_started_since(session, inputs.vmid, int(noted["at"])):
                await vm_memory.note_that_it_ran(session, inputs.vmid, inputs.vm, identified, off=True)
            await ledger.forget(session, ledger.of_move(inputs.vmid))

    def _counts(self, inputs: VmMigration.Inputs, noted: Mapping[str, Any], machine: Machine) -> bool:
        """Is it noted of this very VM that it ran?"""
        same = bool(noted) and same_vm(str(noted.get("identity", "")), identity(machine.config()))
        return same and not ledger.held_by(noted, inputs.vm)

    async def _note(self, inputs: VmMigration.Inputs, about: Mapping[str, Any]) -> None:
        async with ssh.connect(self.host(inputs)) as session:
            await ledger.note(session, ledger.of_move(inputs.vmid), about)

    async def _forget(self, inputs: VmMigration.Inputs) -> None:
        async with ssh.connect(self.host(inputs)) as session:
            await ledger.forget(session, ledger.of_move(inputs.vmid))


def _shut_by_us(api: Api, inputs: VmInputs, noted: Mapping[str, Any]) -> bool:
    """Was it this program that has shut it down? A run that was killed before it could note that is told by its task on the old node."""
    if noted.get("off") is True:
        return True
    name, _, token = called(api.host).partition("!")
    tasks = api.at(str(noted["node"])).tasks(source="all", vmid=inputs.vmid, since=int(noted["at"]) - 1)
    return any(
        task["type"] in ("qmshutdown", "hastop")
        and task.get("user") == name
        and task.get("tokenid", token) == token
        and task.get("status", "OK") == "OK"
        for task in tasks
    )


def _moved_meanwhile(inputs: VmMigration.Inputs, place: str) -> HomelabError:
    return HomelabError(
        wanted=f"VM {inputs.vmid} (vms.{inputs.vm}) migrated from {inputs.came_from} to {inputs.node}",
        found=f"it is on {place} by now",
        why="somebody else, or HA, has moved it since this run began; nothing was changed",
        next="run `pulumi up` again: the VM counts where it is then",
    )
