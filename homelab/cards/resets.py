"""Resets of cards: the kernel's methods, and known trouble of cards (resets.yaml). Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from homelab import tables
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts


class ResetRow(tables.SourcedRow):
    """A row of resets.yaml, which explains the keys: cards of one kind, and the trouble of their resets."""

    name: str
    ids: tuple[str, ...]
    unless: str | None = None
    only_with: str | None = None
    why: str
    next: str

    def has(self, device: Device) -> bool:
        """Whether the row is for this function."""
        ranges = (ids.partition("-") for ids in self.ids)
        return any(first <= device.id <= f"{first[:5]}{last or first[5:]}" for first, _, last in ranges)


@functools.cache
def rows() -> tuple[ResetRow, ...]:
    """All rows, in the order in which they count."""
    return tuple(ResetRow.model_validate(row) for row in tables.read(Path(__file__).with_suffix(".yaml"))["rows"])


def methods(facts: HostFacts, address: str) -> list[str] | None:
    """The kernel's methods to reset a function, in the order in which it tries them; None: unknown."""
    state = facts.card_states.get(address)
    return None if state is None or state.reset_method is None else state.reset_method.split()


def row_of(facts: HostFacts, functions: Sequence[Device]) -> ResetRow | None:
    """The row for a card, by its graphics function; None: none. A virtual function is reset by itself."""
    for device in functions:
        if device.is_display and not device.physfn:
            row = next((row for row in rows() if row.has(device)), None)
            # Where a function can't be reset at all, the kernel has no such file.
            reset_methods = methods(facts, device.address) or []
            if row is not None and row.unless not in reset_methods and row.only_with in (None, *reset_methods):
                return row
    return None


def described(facts: HostFacts, functions: Sequence[Device]) -> str:
    """`flr, bus`, or `0000:01:00.0 by flr, bus; 0000:01:00.1 by none` where they differ; empty: no method is known."""
    found = {device.address: methods(facts, device.address) for device in functions}
    texts = {address: ", ".join(names) or "none" for address, names in found.items() if names is not None}
    return "; ".join({*texts.values()} if len({*texts.values()}) == 1 else map(" by ".join, texts.items()))


def remarks(facts: HostFacts, name: str, slot: str) -> list[str]:
    """The remark on known trouble of the card's resets: one sentence or none.

    :param name: of the card, for messages.
    """
    row = row_of(facts, facts.functions(slot))
    return [f"{name}: {row.why}; {row.next}"] if row else []
