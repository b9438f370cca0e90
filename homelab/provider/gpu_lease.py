"""The work on a GpuLease: takes the card out of the VM that had it."""

from __future__ import annotations

import asyncio

from homelab.provider.api import ApiWork, policy
from homelab.provider.peers import noted_by, noted_by_peers
from homelab.remote import ledger
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.gpu_lease import GpuLease
from homelab.vm.config import Change, VmCard, noted_of


class GpuLeaseWork(ApiWork[GpuLease.Inputs, GpuLease.Outputs]):
    """See the module."""

    resource = GpuLease

    def id(self, inputs: GpuLease.Inputs) -> str:
        return f"{inputs.mapping}@{'nobody' if inputs.vmid is None else inputs.vmid}"

    def create(self, inputs: GpuLease.Inputs) -> GpuLease.Outputs:
        return GpuLease.Outputs(by_hand=self._by_hand(inputs))

    def update(self, inputs: GpuLease.Inputs, had: GpuLease.Inputs, outputs: GpuLease.Outputs) -> GpuLease.Outputs:
        return outputs if had.vmid is not None else self.create(inputs)

    def delete(self, inputs: GpuLease.Inputs, outputs: GpuLease.Outputs) -> None:
        """Takes the card out of its VM, unless this program did not put it there. On destroy that has been done already."""
        if inputs.vmid is None or inputs.shutdown is None or outputs.by_hand or self._is_handed_over(inputs):
            return

        def without_card(config: dict[str, str]) -> Change:
            return Change(delete=_options_with(config, inputs))

        try:
            machine = self.machine(inputs, inputs.vmid, inputs.vm or "")
            keys = _options_with(machine.config(), inputs)
            # A run that was killed meanwhile has left the VM off, with the change written.
            if keys or machine.was_left_off():
                machine.converge(without_card, keys, policy(inputs.shutdown), "keep")
        except (NotThereError, ElsewhereError):
            return  # with the VM it has left this card

    def _is_handed_over(self, inputs: GpuLease.Inputs) -> bool:
        """Has the card become one that several VMs may name? Each keeps it then, or loses it by what the settings say of that VM."""
        host = self.host(inputs)
        return any(host.mapping_of(name) == inputs.mapping for name in host.hands_over)

    def _by_hand(self, inputs: GpuLease.Inputs) -> bool:
        """Does the VM have the card already, and not from this program? A VM that is yet to be made has none; the host's notes tell what this program gave."""
        if inputs.vmid is None:
            return False
        try:
            config = self.machine(inputs, inputs.vmid, inputs.vm or "").config()
        except (NotThereError, ElsewhereError):
            return False  # whoever gives it a card refuses
        options = set(_options_with(config, inputs))
        return not options <= self._noted(inputs, inputs.vmid, config, options)

    def _noted(self, inputs: GpuLease.Inputs, vmid: int, config: dict[str, str], options: set[str]) -> set[str]:
        """The VM's options that this program set, by what it noted on the host: a state that was lost doesn't know them.

        :param options: those that matter: where the host has noted them, no other is asked.
        :raises HomelabError: a node doesn't answer, and the VM may have come from there.
        """
        if not options:
            return set()
        name = ledger.of_vm(vmid)
        record, restore = noted_of(config, dict(asyncio.run(noted_by(self.stack, inputs.host, name))))
        found = {*record, *restore}
        if options <= found:
            return found
        notes = asyncio.run(noted_by_peers(self.stack, inputs.host, name))
        for noted in notes.found.values():
            record, restore = noted_of(config, dict(noted))
            found |= {*record, *restore}
        if not options <= found:
            notes.require_all(
                f"VM {vmid}",
                "a card that this program gave a VM is taken out of it when another one gets it; one that its owner gave it stays",
            )
        return found


def _options_with(config: dict[str, str], inputs: GpuLease.Inputs) -> list[str]:
    """The hostpci options by which a VM has the card."""
    card = VmCard("", inputs.mapping, inputs.slot)
    return [key for key, value in config.items() if key.startswith("hostpci") and card.is_in(key, value)]
