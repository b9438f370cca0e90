"""What the layer cmdline is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`name`: whose words they are; `words`: separated by spaces, may be empty; `rollback_after`: seconds from a boot's
    start until an unconfirmed trial is ended.
    """

    name: Literal["iommu", "vfio"]
    words: str
    rollback_after: int
