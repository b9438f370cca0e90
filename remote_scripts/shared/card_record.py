"""What is noted of a card that VMs and containers have in turn. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

#: HOST: there is no file. DRAINING, DETACHED: on the way to the VM. HELD: with the host, and `why` the VM didn't get it
#: or its containers weren't started. STUCK: a driver doesn't let go. DEAD: the card doesn't answer.
State = Literal["HOST", "DRAINING", "DETACHED", "VM", "RETURNING", "HELD", "STUCK", "DEAD"]


@dataclass(frozen=True)
class NodeNumbers:
    """What lines of containers have of a card, which may be others when it comes back: `minor`: N of /dev/nvidiaN;
    `majors`: of nvidia-uvm and nvidia-caps; `names`: in /dev/dri. Empty: it isn't there.
    """

    minor: str = ""
    majors: tuple[str, str] = ("", "")
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join((self.minor, *self.majors, "".join(f"{name} " for name in self.names)))

    def have_moved(self, current: NodeNumbers) -> bool:
        """Whether some are others by now. What wasn't there then, or isn't there yet, has not moved."""
        is_same_driver = not any(map(is_another, self.majors, current.majors))
        return not is_same_driver or is_another(self.minor, current.minor) or bool(self.renamed(current))

    def renamed(self, current: NodeNumbers) -> list[str]:
        """The names that aren't there any more, where another one of their kind is."""
        return [
            name
            for name in self.names
            if name not in current.names and any(other.startswith(name.rstrip("0123456789")) for other in current.names)
        ]


def is_another(earlier: str, current: str) -> bool:
    """Whether both numbers are known, and differ."""
    return bool(earlier and current and earlier != current)


@dataclass(kw_only=True)
class Record:
    """`since`: seconds since 1970, for people; `clock`: the same in seconds of this boot, which no setting of the time
    moves (CLOCK_BOOTTIME), None: not known; `boot`: of the host; `containers`: those to be started again, in the order
    in which they are shut down; `owed`: nothing but the card is back yet; `taken`: the numbers at
    the last take, where `numbers` are of an earlier one, which containers that are owed a start had; `numbers`,
    `modules`, `persistence`, `units`, `d3cold` (functions that may sleep so deep): as they were; `known`: a container
    -> its identity, by which it is told from another one of its id (guest_note.py); `given_up`: those that aren't
    tried any more.
    """

    state: State = "HOST"
    vm: str = ""
    boot: str = ""
    since: int = 0
    why: str = ""
    containers: tuple[str, ...] = ()
    owed: bool = False
    numbers: NodeNumbers | None = None
    taken: NodeNumbers | None = None
    modules: tuple[str, ...] = ()
    persistence: str = ""
    units: str = ""
    d3cold: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)
    given_up: tuple[str, ...] = ()
    clock: int | None = None

    @property
    def age(self) -> float:
        """Seconds since its state began in this boot; endless where that isn't known."""
        return float("inf") if self.clock is None else time.clock_gettime(time.CLOCK_BOOTTIME) - self.clock

    @property
    def at(self) -> str:
        """When its state began."""
        return time.strftime("%F %T", time.localtime(self.since))

    @property
    def last_numbers(self) -> NodeNumbers:
        """At the last take."""
        return self.taken or self.numbers or NodeNumbers()


@dataclass(frozen=True)
class TurnedAway:
    """A VM that didn't get its card because a run held the host when the VM started. `at`: time of the start, by the
    host's clock; `run`: whose run.
    """

    vm: int
    at: str
    run: str

    def __str__(self) -> str:
        return f"{self.at}: VM {self.vm} doesn't get it: an up or a destroy of this host is at work ({self.run})"
