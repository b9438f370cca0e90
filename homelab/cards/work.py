"""The work on a CardMapping. Fields: PVE::Mapping::PCI; what a VM's start compares is in `assert_valid` there: id and
subsystem-id of each function of its path (of a slot: the first), IOMMU group of the first one.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from homelab.cards.entry import as_text
from homelab.cards.mapping import FLAG, entry_at, equal, noted_path, own_entry, replaced, steps
from homelab.cards.resource import CardMapping
from homelab.errors import ApiError, ChangedMeanwhileError, GoneError, HomelabError, NotThereError, UnansweredError
from homelab.facts.guests import guest_note, mapping_note, of_mapping
from homelab.facts.host import HostFacts
from homelab.remote import ledger, ssh
from homelab.remote.proxmox.api import Api
from homelab.resources import limits
from homelab.resources.work.api import ApiWork
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.both.free_card import Wanted as FreeCard
from remote_scripts.notes.guest_note import Note, gives
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import overlap, parse

# How often a change is tried while other clients change the mapping, and the longest pause between two tries in
# seconds. The nodes of one run take turns.
TRIES = 3
PAUSE_SECONDS = 0.5
_TURN = threading.Lock()


class CardMappingWork(ApiWork[CardMapping.Inputs, CardMapping.Outputs]):
    """See the module."""

    resource = CardMapping

    def id(self, inputs: CardMapping.Inputs) -> str:
        return f"{inputs.node}/{inputs.mapping}"

    def create(self, inputs: CardMapping.Inputs) -> CardMapping.Outputs:
        api, name, host = self.api(inputs), inputs.mapping, self.host(inputs)
        mapping = _mapping(api, name)
        # Of a state that was lost, the host has it noted.
        old_path = noted_path(ledger.noted(ssh.Session(host), of_mapping(inputs.node, name)), inputs.gpu)
        # Before anything is noted: what is there may be another card's of this program, with a note of its own.
        about = {"before": _replaced(mapping["map"], inputs, old_path), "had_flag": _has_flag(mapping)}
        noted = _note_mapping(host, inputs, about)
        try:
            _write(api, inputs, old_path)
        except UnansweredError:
            raise  # it may have been written: it stays noted
        except HomelabError:
            if about.items() <= noted.items():  # else an earlier run has written something
                ledger.forget(ssh.Session(host), of_mapping(inputs.node, name))
            raise
        return CardMapping.Outputs(before=noted["before"] or "", had_flag=noted["had_flag"])

    def update(
        self, inputs: CardMapping.Inputs, had: CardMapping.Inputs, outputs: CardMapping.Outputs
    ) -> CardMapping.Outputs:
        host, old_path = self.host(inputs), had.entry["path"]
        about = {"before": outputs.before or None, "had_flag": outputs.had_flag}
        moves = inputs.entry["path"] != old_path
        if moves:  # else a run that is killed leaves an entry that nobody knows
            # As in `create`: what is there already may be another's.
            _replaced(_mapping(self.api(inputs), inputs.mapping)["map"], inputs, old_path)
            _note_mapping(host, inputs, about, old_path)
        _write(self.api(inputs), inputs, old_path)
        if moves:
            _note_mapping(host, inputs, about)
        if not inputs.live_migration:
            self._take_flag_back(had, outputs)
        if inputs.keepers != had.keepers:
            self._take_from_others(inputs)
        return dataclasses.replace(outputs, drift=[])

    def _take_from_others(self, inputs: CardMapping.Inputs, *, goes: bool = False) -> None:
        """Takes the card out of those VMs of this stack that are to lose it, before its passthrough test or another VM
        needs it. A VM that no VmCards in the state stands for, since a run was killed while it made that, gets back
        everything.

        :param goes: no VM is to have it by this mapping any more.
        """
        host, gone = self.host(inputs), {inputs.mapping} if goes else set[str]()
        has_another = goes and not (inputs.gpu in host.gpus and host.mapping_of(inputs.gpu) == inputs.mapping)
        card = (inputs.mapping,) if has_another else (inputs.mapping, inputs.entry["path"])
        vms = {str(vm.vmid): vm.cards for vm in self.stack.vms(inputs.host).values()}
        keeps = {vmid: tuple({host.mapping_of(gpu) for gpu in cards} - gone) for vmid, cards in vms.items()}
        staying = tuple(vmid for vmid, cards in vms.items() if not (goes and inputs.gpu in cards))
        wanted = FreeCard(stack=ledger.stack_of(self.urn), card=card, keeps=keeps, staying=staying)
        ssh.Session(host).ask("apply", "free_card", wanted, limits.of_task(host, {}), tell, goes_on=True)

    def _take_flag_back(self, had: CardMapping.Inputs, outputs: CardMapping.Outputs) -> None:
        """Takes the flag away that homelab has set for this entry's sake; it stays while another node's needs it."""
        if had.live_migration and not outputs.had_flag:
            needing = self._needing_flag(had)

            def decide(entries: list[str], has_flag: bool) -> tuple[list[str], bool]:
                return entries, has_flag and _is_needed(entries, needing)

            _change(self.api(had), had.mapping, f"to take {FLAG} from the PCI mapping {had.mapping}", decide)

    def read(self, inputs: CardMapping.Inputs, outputs: CardMapping.Outputs) -> CardMapping.Outputs:
        mapping = _mapping(self.api(inputs), inputs.mapping)
        path = inputs.entry["path"]
        present = own_entry(mapping["map"], inputs.node, path, path)
        lacks_flag = inputs.live_migration and not _has_flag(mapping)
        drift = steps(inputs.mapping, present, as_text(inputs.node, inputs.entry), lacks_flag=lacks_flag)
        for line in drift:
            tell(f"{inputs.mapping}: drift: {line}")
        if present is None:
            raise GoneError
        return dataclasses.replace(outputs, drift=drift)

    def delete(self, inputs: CardMapping.Inputs, outputs: CardMapping.Outputs) -> None:
        host = self.host(inputs)
        facts = ssh.read(host)
        holder = ledger.held_by(mapping_note(facts.ledger, inputs.node, inputs.mapping), inputs.gpu)
        if holder in host.gpus and host.mapping_of(holder) == inputs.mapping:
            tell(f"{inputs.mapping}: the PCI mapping is gpus.{holder}'s now, and stays")
            if not host.gpus[holder].live_migration:
                self._take_flag_back(inputs, outputs)
            return
        if user := self._user(inputs, outputs, facts):
            tell(f"{inputs.mapping}: the PCI mapping stays: {user}")
        else:
            self._delete(inputs, outputs, facts.ledger)

    def remove_unfinished(self, node: str, host_name: str, facts: HostFacts) -> None:
        """Gives back what a run that was killed has left: noted on the host, in no state. To be called when the
        mappings of the state have been given back.

        :param facts: the host now.
        :raises HomelabError: it can't be.
        """
        host = self.stack.host(host_name)
        for gpu, settings in host.gpus.items():
            mapping = host.mapping_of(gpu)
            noted = mapping_note(facts.ledger, node, mapping)
            if noted is None or ledger.held_by(noted, gpu):
                continue
            inputs = CardMapping.Inputs(
                host=host_name,
                node=node,
                gpu=gpu,
                mapping=mapping,
                entry={"path": noted["path"]},
                live_migration=settings.live_migration,
            )
            outputs = CardMapping.Outputs(before=noted["before"] or "", had_flag=noted["had_flag"])
            if not self._user(inputs, outputs, facts):
                tell(f"{mapping}: the PCI mapping was begun by a run that was interrupted")
                self._delete(inputs, outputs, facts.ledger)

    def _delete(self, inputs: CardMapping.Inputs, outputs: CardMapping.Outputs, notes: Mapping[str, str]) -> None:
        noted_vms = [name.partition("-")[2] for name in notes if name.startswith(f"{VM.name}-")]
        own = ledger.stack_of(self.urn)
        if any(guest_note(notes, VM, int(vmid), Note).owner.rpartition("/")[0] == own for vmid in noted_vms):
            self._take_from_others(inputs, goes=True)
        noted = mapping_note(notes, inputs.node, inputs.mapping) or {}
        paths = [noted["path"]] if "path" in noted else []
        _remove(self.api(inputs), inputs, outputs, self._needing_flag(inputs), paths)
        ledger.forget(ssh.Session(self.host(inputs)), of_mapping(inputs.node, inputs.mapping))

    def _user(self, inputs: CardMapping.Inputs, outputs: CardMapping.Outputs, facts: HostFacts) -> str:
        """A VM of this node that would lose its card with this entry, and isn't this stack's, such as a clone; empty:
        there is none."""
        own = ledger.stack_of(self.urn)
        for config in facts.guests.configs:
            note = guest_note(facts.ledger, VM, config.id, Note)
            stack, lines = note.owner.rpartition("/")[0], config.values.items() if config.kind == "vm" else ()
            if lines and note.has_one_of([inputs.mapping], stack):
                if own and stack != own:
                    return f"VM {config.id} has it from the stack {stack}"
            elif not outputs.before and any(gives(*line, [inputs.mapping]) for line in lines):
                return f"VM {config.id} has it, and not from this program"
        return ""

    def _needing_flag(self, inputs: CardMapping.Inputs) -> set[str]:
        """The other nodes whose entries of this mapping are to be for live migration, by this stack's settings."""
        return {
            host.node_name
            for host in map(self.stack.host, self.stack.peers(inputs.host))
            if any(gpu.live_migration and host.mapping_of(key) == inputs.mapping for key, gpu in host.gpus.items())
        }


def _replaced(entries: list[str], inputs: CardMapping.Inputs, old_path: str) -> str | None:
    return replaced(entries, inputs.gpu, inputs.mapping, inputs.node, inputs.entry["path"], old_path)


def _note_mapping(host: Host, inputs: CardMapping.Inputs, about: dict[str, Any], old_path: str = "") -> dict[str, Any]:
    """What is noted now: `about`, or what was noted before; with the card and its key in the settings.

    What was noted of this card stays, also where somebody has taken its entry out since. What was noted of another
    card no longer counts where this one has no entry.

    :param old_path: where the entry may be still.
    """
    name, path = of_mapping(inputs.node, inputs.mapping), inputs.entry["path"]
    session = ssh.Session(host)
    earlier = ledger.noted(session, name)
    stays = earlier is not None and (about["before"] is not None or overlap(earlier["path"], path))
    noted = {**about, **(earlier if earlier and stays else {}), "gpu": inputs.gpu}
    noted["path"] = ";".join(filter(None, (path, old_path)))
    ledger.note(session, name, noted)
    return noted


def _has_flag(mapping: Mapping[str, object]) -> bool:
    return str(mapping.get(FLAG, 0)) == "1"


def _is_needed(entries: list[str], nodes: Set[str]) -> bool:
    return any(parse("map", entry).get("node") in nodes for entry in entries)


def _write(api: Api, inputs: CardMapping.Inputs, old_path: str) -> None:
    """Puts the entry in, in the place of what this node has of the card."""

    def decide(entries: list[str], has_flag: bool) -> tuple[list[str], bool]:
        entry, present = as_text(inputs.node, inputs.entry), _replaced(entries, inputs, old_path)
        if present is None:
            entries = [*entries, entry]
        elif not equal(present, entry):
            entries = _with(entry, present, entries)
        return entries, has_flag or inputs.live_migration

    _change(api, inputs.mapping, f"to change the PCI mapping {inputs.mapping}", decide)


def _change(api: Api, name: str, wanted: str, decide: Callable[[list[str], bool], tuple[list[str], bool]]) -> None:
    """Reads a mapping, and writes what is to become of it by the digest of what was read. One that isn't there has no
    entries, and one without entries is deleted: for that Proxmox VE takes no digest.

    :param decide: the mapping's entries and flag -> what they are to be.
    :raises ApiError: something else stands against it, or others have changed it each time.
    """
    path = f"cluster/mapping/pci/{name}"
    with _TURN:
        for left in reversed(range(TRIES)):
            try:
                mapping = _mapping(api, name)
                entries, has_flag = decide(mapping["map"], _has_flag(mapping))
                more: dict[str, Any] = {}
                if has_flag != _has_flag(mapping):
                    more = {FLAG: 1} if has_flag else {"delete": FLAG}
                if not mapping["map"] and entries:
                    api.post("cluster/mapping/pci", wanted, id=name, map=entries, **more)
                elif mapping["map"] and not entries:
                    api.delete(path, wanted)
                elif entries != mapping["map"] or more:
                    api.put(path, wanted, map=entries, digest=mapping["digest"], **more)
                return
            except ApiError as error:
                lost = isinstance(error, ChangedMeanwhileError | NotThereError | UnansweredError)
                if not left or not (lost or "already defined" in error.reason):
                    raise
            time.sleep(random.uniform(0, PAUSE_SECONDS))


def _mapping(api: Api, name: str) -> dict[str, Any]:
    try:
        return dict(api.get(f"cluster/mapping/pci/{name}", f"to read the mapping {name}"))
    except NotThereError:
        return {"map": []}


def _with(new: str, old: str, entries: list[str]) -> list[str]:
    # The entries, each in its place: whoever has others there finds them in the order in which they were.
    return [new if entry == old else entry for entry in entries]


def _remove(
    api: Api, inputs: CardMapping.Inputs, outputs: CardMapping.Outputs, needing: Set[str], noted: Sequence[str] = ()
) -> None:
    """Takes the entry away, or puts back the one that was there before; any other entry is left alone.

    :param needing: other nodes; the flag stays while one of them has an entry.
    :param noted: another path that the entry may have: an update that was killed is in no state.
    """
    before = outputs.before

    def decide(entries: list[str], has_flag: bool) -> tuple[list[str], bool]:
        found = (entry_at(entries, inputs.node, place) for place in (inputs.entry["path"], *noted))
        present = next(filter(None, found), None)
        if present is None or (before and equal(present, before)):
            return entries, has_flag
        left = _with(before, present, entries) if before else [other for other in entries if other != present]
        is_ours = inputs.live_migration and not outputs.had_flag and not _is_needed(left, needing)
        return left, has_flag and not is_ours

    _change(api, inputs.mapping, f"to remove {inputs.node}'s entry from the PCI mapping {inputs.mapping}", decide)
