"""What the layer container_verification is asked, and what it answers."""

from dataclasses import dataclass, field

from remote_scripts.notes.container_note import Cards


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`cards`: as of container_cards.py; `uses`: what packages were installed for: with `video` vainfo has to work."""

    ctid: int
    cards: Cards = field(default_factory=Cards)
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`state`: running, stopped or unknown; `nodes`: paths that were opened -> by whom, in words; `tried`: in words,
    what vainfo says, and what couldn't be tried.
    """

    state: str
    nodes: dict[str, str]
    tried: list[str]
