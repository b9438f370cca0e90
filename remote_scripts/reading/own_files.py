"""What this program wrote on the host, and what became of it."""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from dataclasses import replace

from remote_scripts.boot import trial
from remote_scripts.guests.start_conditions import Start, why_not
from remote_scripts.notes import kept_agents, owed
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.reading.answer import Managed, OwedStart
from remote_scripts.reading.source import Source
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import EDITS, HOME
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System
from remote_scripts.tools.time_limit import within_limit

_FILES = f"{HOME}/files"
_LEDGER = f"{HOME}/ledger"
#: Of guests, on every node of a cluster (notes/guest_note.py).
_NOTES = "/etc/pve/homelab"


def owed_starts(source: Source) -> list[OwedStart]:
    """Guests that are to run again, but for those of a restart that is yet to come; and what this host has said of the
    others in this boot. A list that can't be read stands in nobody else's way.
    """
    try:
        debts, boot = owed.noted(source.system), boot_id(source.system)
    except Failure as failure:
        said = f"which guests homelab has switched off isn't known ({failure.found}): {failure.next}"
        return [OwedStart(said, is_lost=False)]
    due = [debt for debt in debts if not debt.is_yet_to_come(boot)]
    starts = [OwedStart(_judge_now(source.system, debt).said, debt.waits == owed.UNKNOWN) for debt in due]
    names = tuple(f"{debt.name} " for debt in debts)
    news = (line for line in owed.news(source.system) if not line.startswith(names))
    return starts + [OwedStart(line, is_lost=False) for line in news]


def _judge_now(system: System, debt: owed.Debt) -> owed.Debt:
    """With what the starter would find now, if that is to be told; else as it was noted."""
    with suppress(Failure):
        found = why_not(Start(system, debt.kind, debt.guest, debt.card), "starter")
        if found and not debt.waits.startswith((owed.UNKNOWN, owed.ASKED)):
            return replace(debt, waits=found)
    return debt


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
    return source.noting(EDITS, lambda: within_limit(lambda: source.below(EDITS, hidden=True)), [])


def agents(source: Source) -> dict[str, str]:
    """The agents that stacks keep on the host."""
    return kept_agents.versions(source.files, source.names(kept_agents.FOLDER))


def ledger(source: Source) -> dict[str, str]:
    """What was noted of guests and mappings (layers/ledger.py, notes/guest_note.py): name -> its text."""
    notes = {path.removeprefix(f"{_LEDGER}/"): source.passed_on(path) for path in source.below(_LEDGER)}
    notes |= {name: source.passed_on(f"{_NOTES}/{name}") for name in source.names(_NOTES)}
    of_containers = {name: _passed_on(text) for name, text in notes.items() if name.startswith(f"{CONTAINER.name}-")}
    return notes | of_containers


def _passed_on(note: str) -> str:
    """A container's note without its configuration, which may hold passwords. What is no note says nothing."""
    with suppress(ValueError, TypeError):
        return json.dumps({**json.loads(note), "text": ""})
    return "{}"


def rolled_back(source: Source) -> str:
    """Which trial has ended unconfirmed, and why; empty: none."""
    return source.noting(trial.NOTE, lambda: trial.rolled_back(source.system), "a boot; why can't be read")


def is_rolling_back(source: Source) -> bool:
    """Whether it still has to restart for that."""
    return source.noting(trial.NOTE, lambda: trial.is_ending(source.system), True)


def pending(source: Source) -> list[str]:
    """Steps that must still follow what was written; a confirmed trial is not yet the default."""
    steps = source.names(f"{HOME}/pending")
    return [*steps, "boot"] if source.files.exists(trial.CONFIRMED) and "boot" not in steps else steps
