"""What the layer start_guests is asked, and what it answers."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Ids of guests: `later`: the run that asks starts them itself; `unwanted`: it wants them off."""

    later: tuple[int, ...] = ()
    unwanted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """In words: who runs again; who stays off, or isn't started yet, and why."""

    started: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
