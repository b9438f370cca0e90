"""What the layer hookscript is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`holder`: which entry of the settings wants it; the last that applied is the only one that takes it away."""

    vmid: int
    holder: str = ""
