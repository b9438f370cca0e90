"""What the layer driver_update is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.shared.software import Software
from remote_scripts.shared.symptoms import Target


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`containers`: of a host, for `read`: the ids of those that get its new driver, too."""

    target: Target
    software: Software
    containers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """The update. `phase`: how far it is, empty: there is none; `old`, `new`: the version that was kept, and the one
    that is installed; `given_up`: the version of one that was taken back; `running`: of the containers.
    """

    phase: str
    old: str
    new: str
    given_up: str
    running: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """`old`: the version that is back, empty: nothing was done; `now`: what is so now, in words."""

    old: str = ""
    now: str = ""
