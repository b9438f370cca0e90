"""What isn't fit to be given to a VM: what is known of cards (unfit.yaml). Pure: init's offer, preview and doctor ask
it."""

from __future__ import annotations

import functools
from pathlib import Path

from homelab import tables
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts


class Row(tables.SourcedRow):
    """A row of unfit.yaml, which explains the keys: cards of one kind, and what is against giving them away."""

    name: str
    ids: tuple[str, ...]
    unless: str | None = None
    only_with: str | None = None
    beside: tuple[str, ...] = ()
    own_rom: bool = True
    why: str
    next: str

    def has(self, device: Device) -> bool:
        """Whether the row is for this function."""
        ranges = (ids.partition("-") for ids in self.ids)
        return any(first <= device.id <= f"{first[:5]}{last or first[5:]}" for first, _, last in ranges)


@functools.cache
def rows() -> tuple[Row, ...]:
    """All rows, in the order in which they count."""
    return tuple(Row.model_validate(row) for row in tables.read(Path(__file__).with_suffix(".yaml"))["rows"])


def row_of(facts: HostFacts, slot: str) -> Row | None:
    """The row for a card, by its graphics function; None: none."""
    display = facts.display_of(slot)
    row = next((row for row in rows() if row.has(display)), None) if display else None
    if display is None or row is None or (row.beside and not any(one.id in row.beside for one in facts.devices)):
        return None
    # Where a function can't be reset at all, the kernel has no such file.
    methods = facts.reset_methods(display.address) or []
    return row if row.unless not in methods and row.only_with in (None, *methods) else None


def remarks(facts: HostFacts, name: str, slot: str) -> list[str]:
    """The remark on what is known against giving the card to a VM: one sentence or none.

    :param name: of the card, for messages.
    """
    row = row_of(facts, slot)
    return [f"{name}: {row.why}; {row.next}"] if row else []
