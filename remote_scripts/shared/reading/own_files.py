"""What this program wrote on the host, and what became of it."""

from __future__ import annotations

import functools
import re
from contextlib import suppress

from remote_scripts.shared import container_lines, handover, kept_agents, switch
from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.card_record import TurnedAway
from remote_scripts.shared.container_notes import Noted, Notes
from remote_scripts.shared.reading.answer import Managed, SharedWith
from remote_scripts.shared.reading.source import Source
from remote_scripts.tools.files import EDITS, HOME

_FILES = f"{HOME}/files"
_CONTAINERS, _LEDGER = f"{HOME}/containers", f"{HOME}/ledger"
#: Of VMs, on every node of a cluster (guests/note.py).
_NOTES = "/etc/pve/homelab"
_VMID = re.compile(r"[1-9][0-9]*")


def managed(source: Source) -> list[Managed]:
    """All files that were written, by layer."""
    files: list[Managed] = []
    layers: list[str] = source.noting(_FILES, lambda: source.files.need_names(_FILES), [])
    for layer in layers:
        files += source.noting(f"{_FILES}/{layer}", functools.partial(_of_layer, source, layer), [])
    return files


def _of_layer(source: Source, layer: str) -> list[Managed]:
    return [Managed(layer, path, state) for path, state in source.files.of_layer(layer).items()]


def edits(source: Source) -> list[str]:
    """Copies of this program's files as a user had edited them."""
    nothing: list[str] = []
    return source.chosen(EDITS, lambda: source.below(EDITS, hidden=True), nothing)


def agents(source: Source) -> dict[str, str]:
    """The agents that stacks keep on the host."""
    return kept_agents.versions(source.files, source.names(kept_agents.FOLDER))


def ledger(source: Source) -> dict[str, str]:
    """What was noted of VMs and mappings (layers/ledger.py, guests/note.py): name -> its text."""
    texts = {path: source.needed(path) for path in [*source.below(_LEDGER), *source.below(_NOTES)]}
    names = {path: path.removeprefix(f"{_LEDGER}/").removeprefix(f"{_NOTES}/") for path in texts}
    return {names[path]: (text or "").rstrip("\n") for path, text in texts.items()}


def containers(source: Source) -> list[SharedWith]:
    """Containers that were given cards, and how they differ from what was set up."""
    shared = []
    for name in filter(str.isdecimal, source.names(_CONTAINERS)):
        ctid, path = int(name), f"{_CONTAINERS}/{name}"
        given = source.noting(path, Notes(source.system, ctid).read, Noted()).given
        if not given.cards and not given.lines:
            continue
        drift = [f"a run was cut short while it gave container {name} its devices"]
        if given.cards:
            drift = source.noting(path, functools.partial(container_lines.drift, source.system, ctid), [])
        cards = given.cards or Cards()
        shared.append(SharedWith(ctid, " ".join(map(str, cards.minors)), " ".join(cards.cards), drift))
    return shared


def turned_away(source: Source) -> dict[str, TurnedAway]:
    """Of each shared card the last VM that didn't get it because a run was at work here, until a VM has got it."""
    vms = {}
    for name in source.names(handover.FOLDER):
        card, _, kind = name.rpartition(".")
        with suppress(OSError):
            if kind == "turned_away" and (away := handover.turned_away_of(card).read(source.files)):
                vms[card] = away
    return vms


def rolled_back(source: Source) -> str:
    """Which boot was undone, and why; empty: none."""
    return source.noting(f"{HOME}/rolling-back", lambda: switch.rolled_back(source.system), "a boot; why can't be read")


def is_rolling_back(source: Source) -> bool:
    """Whether it still has to restart for that."""
    return source.noting(f"{HOME}/rolling-back", lambda: switch.is_rolling_back(source.system), True)
