"""A PCI function of a host, as sysfs and lspci have it (remote_scripts/layers/read_host.py). Pure."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from homelab import tables
from homelab.facts.classes import BRIDGES, CARRIERS, GRAPHICS, NVIDIA
from remote_scripts.boot import vfio_ids
from remote_scripts.reading import answer

# A domain has more than four digits behind Intel's Volume Management Device.
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@functools.cache
def _kinds() -> dict[str, str]:
    """Class, or the beginning of one -> the kind of device."""
    return dict(tables.read(Path(__file__).with_suffix(".yaml")))


class Device(answer.Device):
    """One PCI function, with what follows from its class and its place."""

    @property
    def slot(self) -> str:
        """`dddd:bb:ss`: a card's functions have the same slot, which may have other functions, too."""
        return self.address.rpartition(".")[0]

    @property
    def id(self) -> str:
        """`vendor:device`, four hex digits each."""
        return f"{self.vendor}:{self.device}"

    @property
    def is_nvidia(self) -> bool:
        """Whether it is NVIDIA's."""
        return self.vendor == NVIDIA

    @property
    def is_bridge(self) -> bool:
        return self.class_code[:4] in BRIDGES

    @property
    def is_display(self) -> bool:
        """Whether the function makes a card: a display controller, a 3D controller or an accelerator."""
        return self.class_code.startswith(GRAPHICS)

    @property
    def may_carry(self) -> bool:
        """Whether disks or a network may be behind the function."""
        return self.class_code.startswith(CARRIERS)

    def is_named(self, ids: str) -> bool:
        """Whether ids, as the option `ids` of vfio-pci has them, name the function."""
        return vfio_ids.names(ids, self.id)

    @property
    def kind(self) -> str:
        """The kind of device, for messages."""
        names = (_kinds().get(self.class_code[:digits]) for digits in (4, 2))
        return next((name for name in names if name), f"device of class {self.class_code[:4]}")

    @property
    def ancestors(self) -> list[str]:
        """Addresses of the bridges above it, nearest first (from the path in sysfs)."""
        return [part for part in self.path.split("/") if _ADDRESS.fullmatch(part)][-2::-1]
