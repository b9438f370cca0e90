"""Resets of cards: the kernel's methods. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.facts.devices import Device
from homelab.facts.host import HostFacts


def methods(facts: HostFacts, address: str) -> list[str] | None:
    """The kernel's methods to reset a function, in the order in which it tries them; None: unknown."""
    state = facts.card_states.get(address)
    return None if state is None or state.reset_method is None else state.reset_method.split()


def described(facts: HostFacts, functions: Sequence[Device]) -> str:
    """`flr, bus`, or `0000:01:00.0 by flr, bus; 0000:01:00.1 by none` where they differ; empty: no method is known."""
    found = {device.address: methods(facts, device.address) for device in functions}
    texts = {address: ", ".join(names) or "none" for address, names in found.items() if names is not None}
    return "; ".join({*texts.values()} if len({*texts.values()}) == 1 else map(" by ".join, texts.items()))
