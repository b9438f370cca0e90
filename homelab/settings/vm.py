"""A VM that gets cards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from homelab.model import Model
from homelab.settings.access import Ssh
from homelab.settings.keys import PublicKey
from homelab.settings.nvidia import Nvidia
from homelab.settings.types import (
    Bridge,
    Cores,
    CpuModel,
    DiskGiB,
    GuestId,
    GuestUser,
    HostName,
    Ipv4,
    Ipv4Interface,
    MemoryMiB,
    Name,
    NameServers,
    NetworkAddress,
    OptionName,
    OptionValue,
    RomFile,
    Seconds,
    Secret,
    Storage,
    VolumeOrDownload,
)


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
    docs/troubleshooting-cards.md says how to make it."""
    by_address: bool = False
    """`true`: name the card by its PCI address, without a mapping."""
    take_over: bool = False
    """`true`: the VM has the card by a line of your own, such as `hostpci0: 0000:01:00,pcie=1,x-vga=1`, and the program
    may replace it. A mapping replaces the address. The line's other options stay, unless you set another value than the
    default here; lines for what it lacks stay, too. `pulumi destroy` restores the line. `homelab init` sets this."""
    driver: Literal["vfio", "keep"] = "vfio"
    """`keep`: Proxmox VE leaves the card on the driver that it has and doesn't reset it: for a virtual function with a
    VFIO driver of its maker. From Proxmox VE 9.1 on (qemu-server 9.0.25)."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"gpu": value} if isinstance(value, str) else value


class Shutdown(Model):
    """How a guest is shut down when a change needs it off."""

    timeout: Seconds = 180
    """How long the guest has for its shutdown."""
    otherwise: Literal["fail", "stop"] = "fail"
    """If it still runs then. `fail`: it runs on, and nothing is changed. `stop`: it is stopped, as by its power
    switch."""


class CloudInit(Model):
    """What cloud-init sets up in the guest."""

    user: GuestUser | None = None
    """The user that cloud-init creates. By default the image's own."""
    ssh_keys: list[PublicKey] = []
    """Public keys that may log in as this user."""
    password: Secret | None = None
    """The user's password, as an encrypted value."""
    ip: Ipv4Interface = "dhcp"
    """The guest's IPv4 address with the prefix, such as `192.168.0.50/24`, or `dhcp`."""
    gateway: Ipv4 | None = None
    """Its default gateway."""
    nameserver: NameServers | None = None
    """Its name servers. By default those of the host."""


class Disk(Model):
    """The system disk of a new guest. It can grow later; nothing else about it can be changed."""

    storage: Storage
    """The storage that it is made on; `pvesm status` lists them."""
    size: DiskGiB
    """Its size."""


# Keys of a VM's configuration that have a setting of their own: pattern of the key -> the setting.
_OPTIONS_WITH_A_SETTING = {
    "name": "create.name",
    "cores|sockets|vcpus": "create.cores",
    "memory": "create.memory",
    "cpu": "create.cpu",
    "machine": "create.machine",
    "bios|efidisk0": "create.bios and secureBoot",
    "ostype": "create.osType",
    "agent": "create.agent",
    "onboot": "create.onboot",
    "scsi0": "create.disk",
    "tpmstate0": "create.tpm",
    "protection": "create.protect",
    "ci[a-z]+|sshkeys|ipconfig0|nameserver": "create.cloudInit",
    "hostpci[0-9]+": "gpus",
}
# Keys that homelab or Proxmox VE writes for itself, and parameters of the API that are no option of a VM: pattern of
# the key -> reason.
_REFUSED_OPTIONS = {
    "description": "it has the mark by which this program knows its VM again",
    "balloon": "a card pins all of a VM's memory",
    "lock|digest|meta|vmgenid|parent|snaptime|vmstate|running[a-z-]*|unused[0-9]+|template": "Proxmox VE writes it "
    "itself",
    "vmid|node|newid|archive|storage|pool|start|force|unique|delete|revert|skiplock|skip_lock|autostart|full|target|format|snapname"
    "|background_delay|bwlimit|live-restore|ha-managed|import-working-storage": "it is no key of a VM's configuration",
}


def _option_refusal(key: str, new: NewVm) -> str | None:
    """The reason why an option can't be set under `options`; None: it can."""
    for pattern, setting in _OPTIONS_WITH_A_SETTING.items():
        if re.fullmatch(pattern, key):
            return f"it has a setting of its own, {setting}"
    for pattern, reason in _REFUSED_OPTIONS.items():
        if re.fullmatch(pattern, key):
            return f"{reason}; take it out"
    if key in [f"sata{number}" for number in range(len(new.isos))]:
        return "create.isos are there"
    return "create.cloudInit has its drive there" if key == "ide2" and new.cloud_init is not None else None


class NewVm(Model):
    """A VM that the program creates, and that `pulumi destroy` deletes. At most one of `image`, `template` and `isos`
    says where its system comes from; without them it starts with an empty disk."""

    name: HostName | None = None
    """Its name in Proxmox VE. By default the name that it has in these settings."""
    cores: Cores = 4
    """How many processor cores it has."""
    memory: Annotated[MemoryMiB, Field(ge=64)] = 8192
    """Its memory."""
    disk: Disk
    """Its system disk."""
    image: VolumeOrDownload | None = None
    """A cloud image: its volume, such as `local:import/noble.qcow2`, or the name of one of the host's `downloads`."""
    template: GuestId | None = None
    """The id of a template, of which it becomes a full clone."""
    # A VM has sata0 to sata5.
    isos: Annotated[list[VolumeOrDownload], Field(max_length=6)] = []
    """ISO images, at most six, which it gets as CDs beside an empty disk: volumes, or names of the host's
    `downloads`."""
    bridge: Bridge = "vmbr0"
    """The network bridge of the host that it is connected to."""
    machine: Literal["q35", "pc"] = "q35"
    """Its machine model."""
    bios: Literal["ovmf", "seabios"] = "ovmf"
    """Its firmware: `ovmf` is UEFI."""
    secure_boot: bool = False
    """`true`: the firmware has Microsoft's keys. Needs `bios: ovmf`."""
    tpm: bool = False
    """`true`: it has a TPM 2.0."""
    cpu: CpuModel = "host"
    """The model of its processor."""
    os_type: Literal["l26", "win11", "win10", "other"] = "l26"
    """Its system, as Proxmox VE names it: `l26` is Linux."""
    agent: bool = True
    """A guest agent runs in it, or will."""
    onboot: bool = False
    """It starts with the host."""
    cloud_init: CloudInit | None = None
    """What cloud-init sets up in it."""
    options: dict[OptionName, OptionValue] = {}
    """Further keys of its configuration, as `qm set` takes them. Keys that have a setting here are refused, and so are
    `description`, by which the program recognises its VM, and whatever isn't an option of a VM."""
    protect: bool = False
    """`true`: the program never deletes it."""

    @model_validator(mode="after")
    def _settable_options(self) -> Self:
        for key in self.options:
            if refusal := _option_refusal(key, self):
                raise ValueError(f"options.{key}: {refusal}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.image is not None, self.template is not None, bool(self.isos))) > 1:
            raise ValueError("expected one of image, template and isos")
        if self.secure_boot and self.bios != "ovmf":
            raise ValueError("secureBoot takes bios: ovmf")
        return self


class Vm(Model):
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
    """The guest's address; `agent`: ask its guest agent. By default the address that cloud-init gives it."""
    ssh: Ssh | None = None
    """How to reach the guest over SSH; needed with `nvidia`."""
    nvidia: Nvidia | None = None
    """NVIDIA's stack in the guest, a Linux. In Windows, Windows Update or NVIDIA's own installer brings the driver."""
    allow_shared_onboot: bool = False
    """`true`: this VM and another one with the same card may both start with the host."""
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
        if self.create is None:
            return []
        return [*([self.create.image] if self.create.image else []), *self.create.isos]

    @property
    def static_address(self) -> str | None:
        """The guest's address by the settings; `agent`: its guest agent is asked; None: the settings have none."""
        ip = self.create.cloud_init.ip if self.create and self.create.cloud_init else "dhcp"
        return self.address or (None if ip == "dhcp" else ip.partition("/")[0])

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
        if self.create is not None and self.create.os_type.startswith("win"):
            raise ValueError(
                f"nvidia is for Linux, and create.osType is {self.create.os_type}: leave nvidia out; inside, Windows "
                "Update or NVIDIA's own installer brings the driver"
            )
        return self

    @model_validator(mode="after")
    def _cards_fit(self) -> Self:
        if repeated := next((name for name in self.cards if self.cards.count(name) > 1), None):
            raise ValueError(f"gpus: {repeated} is there twice")
        if sum(gpu.x_vga for gpu in self.gpus) > 1:
            raise ValueError("gpus: one card at most can be the VM's screen (xVga)")
        if self.create is not None and any(gpu.take_over for gpu in self.gpus):
            raise ValueError("gpus: takeOver is for a VM that was there before; this one is created")
        if self.create is not None and self.machine is not None:
            raise ValueError("machine changes an adopted VM; for a new one it is create.machine")
        if self.create is not None and self.create.machine == "pc" and any(gpu.pcie for gpu in self.gpus):
            raise ValueError("create.machine: a card with pcie needs q35")
        return self
