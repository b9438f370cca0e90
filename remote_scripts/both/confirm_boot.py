"""What the layer confirm_boot is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`unless`: a boot's id: nothing is done while that one runs; may be empty. `told`: what of `judged`
    was told to somebody. `lock_seconds`: for so long another run is waited for.
    """

    unless: str = ""
    told: str = ""
    lock_seconds: int = 45


@dataclass(frozen=True)
class Answer:
    """`boot`: the running one's id; `confirmed`: the same, empty: it is not; `rolled_back`: which trial has ended, and
    why; `rolling_back`: and has still to restart; `judged`: for people: this host has judged its boot itself meanwhile.
    """

    boot: str
    confirmed: str
    rolled_back: str
    rolling_back: bool
    judged: str
