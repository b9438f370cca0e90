"""What a boot is to have."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Boot:
    """What a boot is to have. `words`: on the command line; `functions`: PCI addresses that must be on vfio-pci;
    `driver`: the version of NVIDIA's that is to have the other cards, empty: it doesn't matter; `flavour`: open or
    proprietary, of its modules.
    """

    words: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    driver: str = ""
    flavour: str = ""
