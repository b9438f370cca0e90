"""A PCI function of a host, as sysfs and lspci have it (remote_scripts/layers/read_host.py). Pure."""

from __future__ import annotations

import re

from homelab.facts.classes import BRIDGES, CARRIERS, GRAPHICS, NVIDIA
from remote_scripts.boot import vfio_ids
from remote_scripts.reading import answer

# Names of classes, the most exact one counts (pci.ids).
_KINDS = {
    "00": "device older than PCI's classes", "01": "storage controller", "0100": "SCSI controller",
    "0101": "IDE controller", "0104": "RAID controller", "0105": "ATA controller", "0106": "SATA controller",
    "0107": "SAS controller", "0108": "NVMe disk", "02": "network card", "0280": "wireless network card",
    "03": "graphics card", "04": "multimedia device", "0400": "video device", "0401": "audio device",
    "0403": "audio device", "0480": "audio coprocessor", "05": "memory controller", "0580": "memory device",
    "06": "bridge", "0600": "host bridge", "0601": "ISA bridge", "0604": "PCI bridge", "0680": "bridge",
    "07": "communication controller", "0700": "serial port", "0703": "modem", "08": "system device",
    "0805": "SD card reader", "0806": "IOMMU", "09": "input device", "0a": "docking station", "0b": "processor",
    "0c": "serial bus controller", "0c00": "FireWire controller", "0c03": "USB controller",
    "0c04": "Fibre Channel controller", "0c05": "SMBus", "0c06": "InfiniBand controller",
    "0c80": "USB-C port controller", "0d": "wireless controller", "0d11": "Bluetooth controller",
    "0e": "I/O controller", "0f": "satellite receiver", "10": "encryption controller", "1080": "security processor",
    "11": "signal processor", "12": "accelerator", "13": "instrumentation device", "40": "coprocessor",
    "ff": "device without a class",
}  # fmt: skip


# A domain has more than four digits behind Intel's Volume Management Device.
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


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
        names = (_KINDS.get(self.class_code[:digits]) for digits in (4, 2))
        return next((name for name in names if name), f"device of class {self.class_code[:4]}")

    @property
    def ancestors(self) -> list[str]:
        """Addresses of the bridges above it, nearest first (from the path in sysfs)."""
        return [part for part in self.path.split("/") if _ADDRESS.fullmatch(part)][-2::-1]
