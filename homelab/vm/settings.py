"""A VM that gets cards."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import model_validator

from homelab.fields.access import Ssh
from homelab.fields.model import Model, NamedModel
from homelab.fields.types import GuestId, Name, NetworkAddress, RomFile, Seconds
from homelab.guest.settings import NewVm
from homelab.nvidia.settings import Nvidia
from remote_scripts.notes.guest_note import SHUTDOWN_SECONDS


class VmGpu(Model):
    """A card in a VM, as one `hostpci` option. Where you need none of these options, the card's name alone will do."""

    gpu: Name
    """The card: a name under `hosts.NAME.gpus`, with `use: vm` or `shared`."""
    x_vga: bool = False
    """The card is the VM's screen."""
    rombar: bool = True
    """The VM's firmware sees the card's option ROM."""
    pcie: bool = True
    """The card is a PCIe device in the VM, which needs the machine model q35."""
    romfile: RomFile | None = None
    """The name of a file in the host's `/usr/share/kvm`, used as the card's option ROM;
    docs/troubleshooting.md says how to make it."""
    by_address: bool = False
    """`true`: name the card by its PCI address, without a mapping."""
    take_over: bool = False
    """`true`: the VM has the card by a line of your own, such as `hostpci0: 0000:01:00,pcie=1,x-vga=1`, and the program
    may replace it. A mapping replaces the address. The line's other options stay, unless you set them here to another
    value than the default. So do lines for functions that aren't the card's. `pulumi destroy` restores the line.
    `homelab init` sets this."""
    driver: Literal["vfio", "keep"] = "vfio"
    """`keep`: Proxmox VE leaves the card on the driver that it has and doesn't reset it: for a virtual function with a
    VFIO driver of its maker. From Proxmox VE 9.1 on (qemu-server 9.0.25)."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"gpu": value} if isinstance(value, str) else value


class Shutdown(Model):
    """How a guest is shut down when a change needs it off."""

    timeout: Seconds = SHUTDOWN_SECONDS
    """How long the guest has for its shutdown."""
    otherwise: Literal["fail", "stop"] = "fail"
    """What happens if it still runs then. `fail`: it runs on, and nothing is changed. `stop`: it is stopped, as by its
    power switch."""


class Vm(NamedModel):
    """A VM that gets cards."""

    host: Name
    """The host that it runs on: a name under `hosts`."""
    vmid: GuestId
    """Its id in Proxmox VE. Without `create` a VM with this id exists, and is adopted as it is."""
    gpus: list[VmGpu] = []
    """The cards that it gets."""
    power: Literal["keep", "running", "stopped"] | None = None
    """`keep`: it runs afterwards if it ran before. `running` and `stopped` are restored by a refresh, too. By default
    `keep` for an adopted VM, `running` for a created one."""
    shutdown: Shutdown = Shutdown()
    """How it is shut down when a change needs it off."""
    machine: Literal["q35"] | None = None
    """Change the machine model of an adopted VM to this one."""
    display: Literal["keep", "none"] = "keep"
    """`none`: the VM has no emulated screen beside the card."""
    address: NetworkAddress | None = None
    """The guest's address; `agent`: ask its guest agent. By default the address that `create.ipconfig0`
    gives it."""
    ssh: Ssh | None = None
    """How to reach the guest over SSH; needed with `nvidia`."""
    nvidia: Nvidia | None = None
    """NVIDIA's stack in the guest, a Linux. In Windows, Windows Update or NVIDIA's own installer brings the driver."""
    create: NewVm | None = None
    """Create the VM with these properties, instead of adopting an existing one."""

    @property
    def guest_id(self) -> int:
        return self.vmid

    @property
    def cards(self) -> list[str]:
        """The names of its cards in its host's `gpus`."""
        return [use.gpu for use in self.gpus]

    @property
    def wanted_power(self) -> str:
        return self.power or ("keep" if self.create is None else "running")

    @property
    def volumes(self) -> list[str]:
        """Volumes or downloads that it is created from; empty for an adopted VM."""
        return self.create.volumes if self.create else []

    @property
    def static_address(self) -> str | None:
        """The guest's address by the settings; `agent`: its guest agent is asked; None: the settings have none."""
        of_cloud_init = re.search(
            r"(?:^|,)ip=([0-9.]+)/", self.create.options.get("ipconfig0", "") if self.create else ""
        )
        return self.address or (of_cloud_init[1] if of_cloud_init else None)

    @model_validator(mode="after")
    def _nvidia_fits(self) -> Self:
        if self.nvidia is None:
            return self
        if self.ssh is None:
            raise ValueError("ssh is missing: nvidia is installed in the guest, as root or with sudo")
        if self.static_address is None:
            raise ValueError("address is missing: where ssh reaches the guest, or `agent` to ask its guest agent")
        if not self.gpus:
            raise ValueError("nvidia without gpus: a driver without a card can be neither loaded nor verified")
        if self.power == "stopped":
            raise ValueError("nvidia needs a VM that runs, and power is stopped")
        if self.create is not None and (system := self.create.options.get("ostype", "")).startswith("win"):
            raise ValueError(
                f"nvidia is for Linux, and create.ostype is {system}: leave nvidia out; inside, Windows Update or "
                "NVIDIA's own installer brings the driver"
            )
        return self

    @model_validator(mode="after")
    def _cards_fit(self) -> Self:
        if sum(gpu.x_vga for gpu in self.gpus) > 1:
            raise ValueError("gpus: one card at most can be the VM's screen (xVga)")
        if self.create is not None and any(gpu.take_over for gpu in self.gpus):
            raise ValueError("gpus: takeOver is for a VM that was there before; this one is created")
        if self.create is not None and self.machine is not None:
            raise ValueError("machine changes an adopted VM; for a new one it is create.machine")
        if self.create is not None and self.display != "keep":
            raise ValueError("display changes an adopted VM; for a new one it is create.vga: none")
        options = {} if self.create is None else self.create.configuration("")
        if self.gpus and options.get("balloon", "0") != "0":
            raise ValueError("create.balloon: a card pins all of a VM's memory; take it out")
        if "q35" not in options.get("machine", "q35") and any(gpu.pcie for gpu in self.gpus):
            raise ValueError("create.machine: a card with pcie needs q35")
        return self
