"""What a boot is to have."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Boot:
    """What a boot is to have. `words`: on the command line; `functions`: PCI addresses that must be on vfio-pci;
    `driver`: NVIDIA's that is to have the other cards: the installed version, or the version or branch that is going to
    be installed, empty: it doesn't matter; `flavour`: open or proprietary, of its modules; `source`: where the driver
    comes from: packages, run or either.
    """

    words: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    driver: str = ""
    flavour: str = ""
    source: Literal["packages", "run", "either"] = "either"
