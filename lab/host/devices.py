"""PCI devices of a lab host as its hardware has them, read from machine.json."""

from __future__ import annotations

from typing import Any, NamedTuple

from .catalogue import class_name


class PciDevice(NamedTuple):
    """One PCI function.

    `group` is its IOMMU group once an IOMMU is at work (None: outside of any), `acs_group` its group under
    `pcie_acs_override`. `driver` is the driver that claims it on a stock host, `built_in` says that this
    driver is inside the kernel image, `modules` are those with a matching alias. `physfn` is the physical function of a
    virtual one; `removable`: it hangs on an external port. `resets` are the resets of its own; what else the kernel lists for
    it is `reset_methods`.
    """

    address: str
    vendor: str
    device: str
    pci_class: str
    prog_if: str
    revision: str
    subsystem: str | None
    name: str | None
    vendor_name: str
    group: int | None
    acs_group: int | None
    driver: str | None
    modules: tuple[str, ...]
    built_in: bool
    boot_vga: bool
    acs: bool
    parent: str | None
    bars: tuple[str, ...]
    blocks: tuple[dict[str, Any], ...]
    nets: tuple[dict[str, Any], ...]
    physfn: str | None = None
    removable: bool = False
    resets: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PciDevice:
        """A device of machine.json's hardware.devices."""
        values = dict(data)
        for key in ("modules", "bars", "blocks", "nets", "resets"):
            values[key] = tuple(values[key])
        return cls(**values)

    @property
    def bus(self) -> str:
        """`0000:01` of `0000:01:00.0`."""
        return self.address[:7]

    @property
    def ids(self) -> str:
        """`10de:2b85`."""
        return f"{self.vendor}:{self.device}"

    @property
    def class_name(self) -> str:
        """pci.ids' name of its class."""
        return class_name(self.pci_class)

    @property
    def label(self) -> str:
        """Vendor and device as lspci names them, `Device` when pci.ids doesn't know it."""
        return f"{self.vendor_name} {self.name or 'Device'}".strip()

    @property
    def is_display(self) -> bool:
        """Whether it is a display controller (base class 03)."""
        return self.pci_class.startswith("03")

    @property
    def modalias(self) -> str:
        """The string that module aliases are matched with."""
        sub_vendor, _, sub_device = (self.subsystem or "0000:0000").partition(":")
        return (
            f"pci:v0000{self.vendor.upper()}d0000{self.device.upper()}sv0000{sub_vendor.upper()}"
            f"sd0000{sub_device.upper()}bc{self.pci_class[:2].upper()}sc{self.pci_class[2:].upper()}"
            f"i{self.prog_if.upper()}"
        )

    def candidates(self, nvidia_installed: bool) -> list[str]:
        """Modules whose alias matches, with NVIDIA's own when the host has its driver (lspci's order)."""
        names = list(self.modules)
        if nvidia_installed and self.vendor == "10de" and self.is_display:
            names += ["nvidia_drm", "nvidia"]
        return names

    def claimed_by(self, driver: str, nvidia_installed: bool) -> bool:
        """Whether a driver's own id table matches and its probe succeeds."""
        if driver == "nvidia":
            return nvidia_installed and self.vendor == "10de" and self.is_display
        return driver == self.driver


def is_alone_for_a_bus_reset(device: PciDevice, others: list[PciDevice]) -> bool:
    """Whether a function can be reset with its bus: none of these is on it, and a bridge leads to it (drivers/pci/pci.c, pci_parent_bus_reset)."""
    if device.pci_class == "0604" or device.parent is None or device.physfn is not None:
        return False
    return all(other.bus != device.bus for other in others if other.address != device.address)


def reset_methods(devices: list[PciDevice]) -> dict[str, list[str]]:
    """The resets that the kernel lists for each function, in its order; none: it has neither the file `reset` nor `reset_method`.

    It looks at each function before it is on its bus's list (drivers/pci/probe.c, pci_device_add: pci_init_capabilities, then
    list_add_tail), and never again: the first function of a card is alone then, and has `bus`, which is refused once the second is there.

    Args:
        devices: those of the host, in the order in which the kernel finds them.
    """
    return {
        device.address: [*device.resets, *(["bus"] if is_alone_for_a_bus_reset(device, devices[:number]) else [])]
        for number, device in enumerate(devices)
    }


def load_devices(machine: dict[str, Any]) -> list[PciDevice]:
    """All devices of a machine, in address order."""
    devices = [PciDevice.from_dict(entry) for entry in machine["hardware"]["devices"]]
    return sorted(devices, key=lambda device: device.address)
