"""What the layer driver_update is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import Target


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The system, and how it installs."""

    target: Target
    software: Software


@dataclass(frozen=True)
class Ended:
    """`old`: the version that is back, empty: nothing was done; `now`: what is so now, in words."""

    old: str = ""
    now: str = ""
