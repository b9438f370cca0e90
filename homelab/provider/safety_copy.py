"""The work on a SafetyCopy: made once, and left where it is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from homelab.host.facts import noted_in
from homelab.provider.api import ApiWork
from homelab.provider.peers import forgotten_by, noted_by, noted_by_peers
from homelab.remote import ledger, ssh
from homelab.remote.proxmox.safety import GuestCopies
from homelab.resources.safety_copy import SafetyCopy
from homelab.settings import Host
from homelab.text import tell
from homelab.vm import safety as decided
from homelab.vm.config import may_be_ours


class SafetyCopyWork(ApiWork[SafetyCopy.Inputs, SafetyCopy.Outputs]):
    """See the module."""

    resource = SafetyCopy

    def id(self, inputs: SafetyCopy.Inputs) -> str:
        return f"{inputs.vmid}-{inputs.safety}"

    def create(self, inputs: SafetyCopy.Inputs) -> SafetyCopy.Outputs:
        noted = asyncio.run(self._noted(inputs))
        if "copy" in noted:
            return SafetyCopy.Outputs(copy=str(noted["copy"]))
        place = f"{'vms' if inputs.guest_kind == 'qemu' else 'containers'}.{inputs.guest}"
        copies = GuestCopies(
            self.api(inputs), place, inputs.guest_kind, inputs.vmid, lambda text: tell(f"{inputs.guest}: {text}")
        )
        about = f"Made by Pulumi before its change of {decided.label(inputs.guest_kind, inputs.vmid)}"
        name = str(noted["name"])
        if inputs.safety == "snapshot":
            copy = copies.snapshot(name, about)
        else:
            copy = copies.backup(name, about, inputs.storage)
        asyncio.run(self._note(inputs, {**noted, "copy": copy}))
        return SafetyCopy.Outputs(copy=copy)

    def update(
        self, inputs: SafetyCopy.Inputs, had: SafetyCopy.Inputs, outputs: SafetyCopy.Outputs
    ) -> SafetyCopy.Outputs:
        """Another kind of copy, another storage, or another guest of that id: the one that is there stays, and another one is made."""
        another = had.identity and inputs.identity and had.identity != inputs.identity
        if not another and (inputs.safety, inputs.storage) == (had.safety, had.storage):
            if inputs.host != had.host:
                asyncio.run(self._follow(inputs, had, outputs))
            return outputs
        if another:
            label = decided.label(inputs.guest_kind, inputs.vmid)
            tell(f"{inputs.guest}: {label} isn't the one of which {outputs.copy} was made: it gets its own copy")
        else:
            self._stays(had, outputs)
        return self.create(inputs)

    def delete(self, inputs: SafetyCopy.Inputs, outputs: SafetyCopy.Outputs) -> None:
        noted = asyncio.run(ssh.read(self.host(inputs))).ledger
        if ledger.held_by(noted_in(noted, decided.noted_as(inputs.vmid)), inputs.guest):
            return  # it has another name in the settings by now, under which it goes on
        self._stays(inputs, outputs)
        asyncio.run(forget_on(self.host(inputs), inputs.vmid, inputs.guest, noted))

    @staticmethod
    def _stays(inputs: SafetyCopy.Inputs, outputs: SafetyCopy.Outputs) -> None:
        tell(
            f"{inputs.guest}: {decided.advice(inputs.guest_kind, inputs.vmid, inputs.node, inputs.safety, outputs.copy)}"
        )

    async def _follow(self, inputs: SafetyCopy.Inputs, had: SafetyCopy.Inputs, outputs: SafetyCopy.Outputs) -> None:
        """What is noted of it goes to the node that the guest is on now."""
        noted = decided.noted_as(inputs.vmid)
        about = {"safety": inputs.safety, "storage": inputs.storage, "identity": inputs.identity, "guest": inputs.guest}
        async with ssh.connect(self.host(inputs)) as session:
            await ledger.note(session, noted, {**about, "copy": outputs.copy})
        await forgotten_by(self.stack, had.host, inputs.guest, [noted])

    async def _noted(self, inputs: SafetyCopy.Inputs) -> Mapping[str, object]:
        """What is noted of it now. A note of another kind of copy, or of another guest of that id, doesn't count."""
        kind = {"safety": inputs.safety, "storage": inputs.storage, "identity": inputs.identity}
        about = {**kind, "guest": inputs.guest, "name": f"before-homelab-{secrets.token_hex(4)}"}
        left, there = await self._noted_elsewhere(inputs, kind)
        about |= {key: str(there[key]) for key in ("name", "copy") if key in there}
        async with ssh.connect(self.host(inputs)) as session:
            noted = await ledger.keep(session, decided.noted_as(inputs.vmid), about)
            if not kind.items() <= noted.items():
                noted = about
                await ledger.note(session, decided.noted_as(inputs.vmid), noted)
            elif noted.get("guest") != inputs.guest:
                noted = {**noted, "guest": inputs.guest}
                await ledger.note(session, decided.noted_as(inputs.vmid), noted)
        if left:
            await forgotten_by(self.stack, left, inputs.guest, [decided.noted_as(inputs.vmid)])
        return noted

    async def _noted_elsewhere(
        self, inputs: SafetyCopy.Inputs, kind: Mapping[str, object]
    ) -> tuple[str, Mapping[str, object]]:
        """The host from which the VM has come, with what it has noted of its copy; empty where the present one has a note. Nobody is asked of a container: one that moved before its state was lost gets another copy.

        :raises HomelabError: a node of the cluster doesn't answer, and the VM has what this program may have given it: another copy would be of that.
        """
        name = decided.noted_as(inputs.vmid)
        if inputs.guest_kind != "qemu" or not self.stack.peers(inputs.host):
            return "", {}
        if kind.items() <= (await noted_by(self.stack, inputs.host, name)).items():
            return "", {}
        notes = await noted_by_peers(self.stack, inputs.host, name)
        for host, noted in notes.found.items():
            if kind.items() <= noted.items() and "copy" in noted:
                return host, noted
        if notes.silent and may_be_ours(self.machine(inputs, inputs.vmid, inputs.guest).config()):
            notes.require_all(
                decided.label(inputs.guest_kind, inputs.vmid),
                "a copy that is made now would be of the VM as this program has changed it",
            )
        return "", {}

    async def _note(self, inputs: SafetyCopy.Inputs, about: Mapping[str, object]) -> None:
        async with ssh.connect(self.host(inputs)) as session:
            await ledger.note(session, decided.noted_as(inputs.vmid), about)


async def forget(session: ssh.Session, vmid: int, guest: str, noted: Mapping[str, str]) -> None:
    """What is noted of a guest's copy no longer counts, unless the guest has another name in the settings by now.

    :param noted: the host's notes.
    """
    name = decided.noted_as(vmid)
    if name in noted and not ledger.held_by(noted_in(noted, name), guest):
        await ledger.forget(session, name)


async def forget_on(host: Host, vmid: int, guest: str, noted: Mapping[str, str]) -> None:
    """The same on a connection of its own."""
    async with ssh.connect(host) as session:
        await forget(session, vmid, guest, noted)
