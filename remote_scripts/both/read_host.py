"""What the layer read_host is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read besides. `guests`: also which guests run, and the cluster; `acs`: also which devices isolate what is
    behind them, where the host has IOMMU groups already; `signs`: a regular expression, lines of the kernel's log that
    are passed on; empty: the log isn't read.
    """

    guests: bool = False
    acs: bool = False
    signs: str = ""
