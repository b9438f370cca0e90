"""What the layer ledger is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`name`: such as mapping/pve/gpu; `note`: for `apply`, one line of JSON, empty: forget what is noted."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What is noted now; empty: nothing."""

    note: str
