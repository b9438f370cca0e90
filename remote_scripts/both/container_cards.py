"""What the layer container_cards is asked, and what it answers."""

from dataclasses import dataclass, field

from remote_scripts.both.terms import Terms
from remote_scripts.notes.container_note import Cards


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for. `revert` needs no cards. `goes_away`: the container itself is removed next, and then what is
    noted of it.
    """

    ctid: int
    cards: Cards = field(default_factory=Cards)
    terms: Terms = field(default_factory=Terms)
    goes_away: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`digest`: of what gives the container its devices; `revision`: how often it was changed; `devices`: a node's path
    -> how it is given, dev or mount; `state`: running or stopped.
    """

    digest: str
    revision: int
    devices: dict[str, str]
    state: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """`node`: that the container is on, empty: there is none; `is_here`: another node's keeps what it has, until that
    node is asked; `owner`: the resource that keeps its note by then.
    """

    node: str
    is_here: bool
    owner: str = ""
