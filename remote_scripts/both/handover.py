"""What the layer handover is asked."""

from dataclasses import dataclass

from remote_scripts.notes.card import Card


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`cards`: those that are handed over here; none: nothing of this is needed."""

    cards: tuple[Card, ...] = ()
