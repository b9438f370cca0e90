"""What the layer guest_cards is asked, and what it answers."""

from dataclasses import dataclass, field

from remote_scripts.both.terms import Terms


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for. `revert` needs no options."""

    vmid: int
    terms: Terms = field(default_factory=Terms)
    options: dict[str, str | None] | None = None
    """All that the VM is to have from homelab; None: what it has. A key of None: it isn't to have it."""
    settings: dict[str, str | None] = field(default_factory=dict)
    """Of a VM that homelab has made: what becomes its own."""
    digest: str = ""
    """Of the configuration by which that was decided."""
    goes_away: bool = False
    """The VM itself is removed next, and then what is noted of it: until then its cards can be taken out again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The VM as it is now."""

    node: str
    """The node that it is on; empty: there is no such VM."""
    is_here: bool
    """Of another node's VM that node alone can say the rest, and change it."""
    config: dict[str, str]
    """As its next start takes it."""
    base: dict[str, str]
    """As it would be without homelab."""
    originals: dict[str, str | None]
    """What is noted of before."""
    digest: str
    runs: bool
    owner: str = ""
    """The resource that keeps the note of this very VM; empty: nothing is noted of it."""
    is_another: bool = False
    """What is noted is of a VM that had its id before."""
    is_under_way: bool = False
    """A change was begun, and hasn't ended: it may be off, though it ran."""
    done: bool = True
    """False: its configuration isn't the one by which was decided; nothing was changed."""
    started: bool = False
    log: tuple[str, ...] = ()
    """Of its start."""
