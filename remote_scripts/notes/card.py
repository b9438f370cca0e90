"""A card that VMs and containers have in turn, as the settings describe it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card that is handed over. `functions`: address -> vendor:device, the graphics function first; `vms`: the ids of
    those that may take it.
    """

    name: str
    functions: dict[str, str]
    vms: tuple[int, ...] = ()

    @property
    def gpu(self) -> str:
        """The address of its graphics function."""
        return next(iter(self.functions))


@dataclass(frozen=True, kw_only=True)
class CardStart:
    """`refused`: why the start would not get the card; `containers`: that would be shut down for it, in this order."""

    card: str
    refused: str = ""
    containers: tuple[str, ...] = ()
