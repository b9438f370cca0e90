"""How cards come back from a reset: what the kernel offers, and what is known of a card (resets.yaml). Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.host import card_ids
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.settings import Gpu


class ResetRow(BaseModel):
    """A row of the data; see there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    ids: tuple[card_ids.Ids, ...] = Field(min_length=1)
    verdict: Literal["warn", "refuse"]
    unless: str | None = None
    only_with: str | None = None
    why: str
    next: str
    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report"]

    def has(self, device: Device) -> bool:
        """Is it about this function?"""
        return card_ids.names(self.ids, device)


@functools.cache
def rows() -> tuple[ResetRow, ...]:
    """All rows, in the order in which they count."""
    return tuple(ResetRow.model_validate(row) for row in tables.read(Path(__file__).with_suffix(".yaml"))["rows"])


def methods(facts: HostFacts, address: str) -> list[str] | None:
    """The ways in which the kernel resets a function, in the order in which it tries them; None: it doesn't say."""
    state = facts.card_states.get(address)
    return None if state is None or state.reset_method is None else state.reset_method.split()


def works_alone(facts: HostFacts, address: str) -> bool | None:
    """Has the kernel a way to reset this function without another one of its bus? None: it isn't known.

    It lists `bus` for the first function of each bus, and carries it out only for one that is alone there
    (drivers/pci/pci.c, pci_parent_bus_reset).
    """
    ways = methods(facts, address)
    if ways is None:
        return None
    if set(ways) - {"bus", "cxl_bus"}:
        return True
    return bool(ways) and not _beside(facts, address)


def _beside(facts: HostFacts, address: str) -> list[str]:
    """The other functions on its bus."""
    bus = address.rpartition(":")[0]
    return [one.address for one in facts.devices if one.address != address and one.address.startswith(f"{bus}:")]


def known(facts: HostFacts, functions: Sequence[Device]) -> ResetRow | None:
    """What is known of a card, by its graphics function; a virtual function is reset by itself."""
    for device in functions:
        if device.is_display and not device.physfn:
            row = next((row for row in rows() if row.has(device)), None)
            # Where a function can't be reset at all, the kernel has no such file.
            ways = methods(facts, device.address) or []
            if row is not None and row.unless not in ways and (row.only_with is None or row.only_with in ways):
                return row
    return None


def described(facts: HostFacts, functions: Sequence[Device]) -> str:
    """`0000:01:00.0 by flr, bus; 0000:01:00.1 by none`; empty where the kernel says nothing of any."""
    said = {device.address: methods(facts, device.address) for device in functions}
    return "; ".join(f"{address} by {', '.join(ways) or 'none'}" for address, ways in said.items() if ways is not None)


def remarks(facts: HostFacts, name: str, slot: str) -> list[str]:
    """What is known of the card that may come as a surprise.

    :param name: for messages.
    """
    row = known(facts, facts.functions(slot))
    return [f"{name}: {row.why}; {row.next}"] if row is not None and row.verdict == "warn" else []


def refused(facts: HostFacts, name: str, slot: str) -> list[HomelabError]:
    """The refusal of a card that a reset is known to break."""
    row = known(facts, facts.functions(slot))
    if row is None or row.verdict != "refuse":
        return []
    return [
        HomelabError(
            wanted=f"{name} ({facts.card(slot)}) for a VM, which resets it at each start",
            found=f"it is a card of the kind {row.name}",
            why=f"{row.why} ({row.source})",
            next=row.next,
        )
    ]


def refused_choice(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The refusal of `reset: bus` for a card that isn't alone on its bus: the kernel takes no such order
    (drivers/pci/pci.c, reset_method_store)."""
    others = sorted(
        {one for device in facts.functions(slot) if device.is_display for one in _beside(facts, device.address)}
    )
    if gpu.reset != "bus" or not others:
        return []
    return [
        HomelabError(
            wanted=f"{name}.reset: bus",
            found=f"on the bus of {facts.card(slot)} there are also: {', '.join(others)}",
            why="the kernel resets a bus for a function that is alone there; for another one it refuses that, "
            "though it may list it",
            next=f"take reset out of {name}; a card without a reset of its own is reset with its whole bus by QEMU, "
            "where the VM has all of it",
        )
    ]
