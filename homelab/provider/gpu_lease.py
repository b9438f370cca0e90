"""The work on a GpuLease: takes the card out of the VM that had it, and with it all that the VM is to give back in the
same run.

A VM may lose several cards at once, and the engine deletes their leases side by side. The first of them that has its
turn does it for all, with one shutdown and one start; the others find nothing left to do, or fail as it did.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError
from homelab.provider.api import ApiWork
from homelab.provider.peers import noted_by, noted_by_peers
from homelab.provider.vm_cards import give_back_noted, noted_entries
from homelab.remote import ledger
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.gpu_lease import GpuLease
from homelab.settings import VmGpu
from homelab.shapes import Record, ShutdownInputs
from homelab.vm.config import Change, VmCard, Wish, is_ours, noted_of, ours_of, recorded, undo
from remote_scripts.shared.properties import parse


@dataclass
class _Turn:
    """Of the leases of one VM: which of them is at work. `failed`: why one has failed in this run."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    failed: HomelabError | None = None


# By the host's name in the settings and the VM's id. A provider's process lives as long as one run.
_TURNS: dict[tuple[str, int], _Turn] = {}
_TAKING_TURNS = threading.Lock()


@contextmanager
def _in_turn(host: str, vmid: int) -> Iterator[None]:
    """One lease of a VM after another.

    :raises HomelabError: one before has failed: what it tried isn't tried again for each card.
    """
    with _TAKING_TURNS:
        turn = _TURNS.setdefault((host, vmid), _Turn())
    with turn.lock:
        if turn.failed is not None:
            raise turn.failed.retold()
        try:
            yield
        except HomelabError as error:
            turn.failed = error
            raise


class GpuLeaseWork(ApiWork[GpuLease.Inputs, GpuLease.Outputs]):
    """See the module."""

    resource = GpuLease

    def id(self, inputs: GpuLease.Inputs) -> str:
        return f"{inputs.mapping}@{'nobody' if inputs.vmid is None else inputs.vmid}"

    def create(self, inputs: GpuLease.Inputs) -> GpuLease.Outputs:
        # Of a card that several VMs may name, the VM's own settings say whether it keeps it.
        return GpuLease.Outputs(by_hand=not self._is_handed_over(inputs) and self._by_hand(inputs))

    def update(self, inputs: GpuLease.Inputs, had: GpuLease.Inputs, outputs: GpuLease.Outputs) -> GpuLease.Outputs:
        return outputs if had.vmid is not None else self.create(inputs)

    def delete(self, inputs: GpuLease.Inputs, outputs: GpuLease.Outputs) -> None:
        """Takes the card out of its VM, unless this program did not put it there, or the VM keeps it: its card has
        another key in the settings. On destroy that has been done already.

        A VM that has left the settings is given back all that is noted of it, whoever gave it this card: a run that was
        killed may have left its VmCards in no state."""
        if inputs.vmid is None or inputs.shutdown is None or self._is_kept(inputs):
            return
        with _in_turn(inputs.host, inputs.vmid):
            if not outputs.by_hand and not self._is_handed_over(inputs):
                # A VM that is gone has left this card with that.
                with suppress(NotThereError, ElsewhereError):
                    self._take_out(inputs, inputs.vmid, inputs.shutdown)
            if not self.stack.entries_of("vms", inputs.vmid, inputs.host):
                self._give_back(inputs, inputs.vmid, inputs.shutdown)

    def _give_back(self, inputs: GpuLease.Inputs, vmid: int, shutdown: ShutdownInputs) -> None:
        noted = noted_by(self.stack, inputs.host, ledger.of_vm(vmid))
        stacks = ("", ledger.stack_of(self.urn))
        if noted and not ledger.held_by(noted, inputs.vm or "") and noted.get("stack", "") in stacks:
            give_back_noted(self, inputs, vmid, noted, shutdown)

    def _take_out(self, inputs: GpuLease.Inputs, vmid: int, shutdown: ShutdownInputs) -> None:
        machine = self.machine(inputs, vmid, inputs.vm or "")
        config = machine.config()
        noted = noted_by(self.stack, inputs.host, ledger.of_vm(vmid))
        leaving, entries = self._leaving(inputs, vmid, config, noted), noted_entries(config, noted)

        def given(now: dict[str, str]) -> list[str]:
            # An address that isn't noted is its owner's: one that has just been put back, or that he has set since.
            options = _options_with(now, inputs)
            return [key for key in options if _mapping(key, now[key]) or _is_noted(key, now[key], entries)]

        def without_card(now: dict[str, str]) -> Change:
            own, back = given(now), undo(now, leaving)
            values = {key: value for key, value in back.values.items() if key not in own}
            return Change(values, sorted({*own, *back.delete}))

        # A run that was killed meanwhile has left the VM on, with the change waiting for its next start; or off, with
        # the change written.
        noted_values = [{key: str(entry.get(part) or "") for key, entry in entries.items()} for part in ("ours", "was")]
        keys = {*given(config), *leaving, *(key for part in noted_values for key in _options_with(part, inputs))}
        if keys or machine.was_left_off():
            self.converge(inputs, machine, without_card, sorted(keys), shutdown, "keep")

    def _leaving(self, inputs: GpuLease.Inputs, vmid: int, config: dict[str, str], noted: Mapping[str, Any]) -> Record:
        """What the VM is to give back in this run, by the settings: its VmCards decides the same after this
        (homelab/provider/vm_cards.py)."""
        if ledger.held_by(noted, inputs.vm or ""):
            return {}
        record, restore = noted_of(config, dict(noted))
        for name, vm in self.stack.vms(inputs.host).items() if record else ():
            if vm.vmid != vmid:
                continue
            if any(use.by_address for use in vm.gpus):
                return {}  # which of its options these are, its VmCards will say: it reads the host
            host = self.host(inputs)
            slots = {_mapping(key, ours_of(entry)): str(entry.get("slot") or "") for key, entry in record.items()}
            cards = [_kept(use, host.mapping_of(use.gpu), slots) for use in vm.gpus]
            own = _options_with(config, inputs)
            without_own = {key: value for key, value in config.items() if key not in own}
            wish = Wish(name, vmid, cards, vm.machine, vm.display)
            return {**restore, **recorded(without_own, wish, record)[1]}
        return {**restore, **record}

    def _is_handed_over(self, inputs: GpuLease.Inputs) -> bool:
        """Has the card become one that several VMs may name? Each keeps it then, or loses it by what the settings say
        of that VM."""
        host = self.host(inputs)
        return any(host.mapping_of(name) == inputs.mapping for name in host.hands_over)

    def _is_kept(self, inputs: GpuLease.Inputs) -> bool:
        """Is the VM to have the card by the settings, whichever key of `gpus` that is now?"""
        host, vms = self.host(inputs), self.stack.vms(inputs.host).values()
        return any(
            host.mapping_of(use.gpu) == inputs.mapping for vm in vms if vm.vmid == inputs.vmid for use in vm.gpus
        )

    def _by_hand(self, inputs: GpuLease.Inputs) -> bool:
        """Does the VM have the card already, and not from this program? A VM that is yet to be made has none; the
        host's notes tell what this program gave."""
        if inputs.vmid is None:
            return False
        try:
            config = self.machine(inputs, inputs.vmid, inputs.vm or "").config()
        except (NotThereError, ElsewhereError):
            return False  # whoever gives it a card refuses
        options = set(_options_with(config, inputs))
        return not options <= self._noted(inputs, inputs.vmid, config, options)

    def _noted(self, inputs: GpuLease.Inputs, vmid: int, config: dict[str, str], options: set[str]) -> set[str]:
        """The VM's options by which this program gave it the card, by what it noted on the host: a state that was lost
        doesn't know them. One that it has taken over isn't among them: its owner had given the card by it.

        :param options: those that matter: where the host has noted them, no other is asked.
        :raises HomelabError: a node doesn't answer, and the VM may have come from there.
        """
        if not options:
            return set()
        name = ledger.of_vm(vmid)
        given = _given(config, noted_by(self.stack, inputs.host, name), inputs)
        if options <= given:
            return given
        notes = noted_by_peers(self.stack, inputs.host, name)
        for noted in notes.by_host.values():
            given |= _given(config, noted, inputs)
        if not options <= given:
            notes.require_all(
                f"VM {vmid}",
                "a card that this program gave a VM is taken out of it when another one gets it; one that its owner "
                "gave it stays",
            )
        return given


def _given(config: dict[str, str], noted: Mapping[str, Any], inputs: GpuLease.Inputs) -> set[str]:
    record, restore = noted_of(config, dict(noted))
    before = {key: str(entry.get("before") or "") for key, entry in {**restore, **record}.items()}
    return set(before) - set(_options_with(before, inputs))


def _options_with(config: dict[str, str], inputs: GpuLease.Inputs) -> list[str]:
    """The hostpci options by which a VM has the card."""
    card = VmCard("", inputs.mapping, inputs.slot)
    return [key for key, value in config.items() if key.startswith("hostpci") and card.is_in(key, value)]


def _kept(use: VmGpu, mapping: str, slots: Mapping[str, str]) -> VmCard:
    """A card that the VM is to have.

    :param slots: of the mappings that it has from this program; one that it has yet to get is nowhere.
    """
    about: Mapping[str, Any] = {**use.model_dump(mode="json"), "mapping": mapping, "slot": slots.get(mapping, "")}
    return VmCard(**about)


def _mapping(option: str, value: str | None) -> str:
    """The mapping that an option names; empty: none."""
    return parse(option, value or "").get("mapping", "") if option.startswith("hostpci") else ""


def _is_noted(key: str, value: str, entries: Record) -> bool:
    return key in entries and is_ours(key, value, entries[key])
