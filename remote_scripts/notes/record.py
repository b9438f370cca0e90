"""What is noted of a card that VMs and containers have in turn. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

#: HOST: there is no file. DRAINING, DETACHED: on the way to the VM. HELD: with the host, and `why` the VM didn't get it
#: or its driver doesn't answer for it. STUCK: a step doesn't end. DEAD: the card doesn't answer, or can't be asked.
State = Literal["HOST", "DRAINING", "DETACHED", "VM", "RETURNING", "HELD", "STUCK", "DEAD"]


@dataclass(kw_only=True)
class Record:
    """`since`: seconds since 1970; `boot`: of the host; `owed`: nothing but the card is back yet; `modules`,
    `persistence`, `units`, `d3cold` (functions that may sleep so deep): as they were.
    """

    state: State = "HOST"
    vm: str = ""
    boot: str = ""
    since: int = 0
    why: str = ""
    owed: bool = False
    modules: tuple[str, ...] = ()
    persistence: str = ""
    units: str = ""
    d3cold: tuple[str, ...] = ()

    @property
    def age(self) -> float:
        """Seconds since its state began."""
        # A clock that has been set back since would have no step ever be too old.
        return abs(time.time() - self.since)

    @property
    def at(self) -> str:
        """When its state began."""
        return time.strftime("%F %T", time.localtime(self.since))
