"""A VM that gets cards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

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
    Plain,
    Seconds,
    Secret,
    Storage,
    Volume,
)


class VmGpu(Model):
    """A card in a VM, as one hostpci option; just a name in the settings where nothing else is said.

    ``byAddress``: the raw form, without a mapping. It and ``romfile`` (a file in the host's /usr/share/kvm) take root@pam.
    """

    gpu: Name
    x_vga: bool = False
    rombar: bool = True
    pcie: bool = True
    romfile: Plain | None = None
    by_address: bool = False

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"gpu": value} if isinstance(value, str) else value

    @field_validator("romfile")
    @classmethod
    def _file_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("expected the name of a file in the host's /usr/share/kvm")
        return value


class Shutdown(Model):
    """How a guest is shut down for a change that needs it off: ``timeout`` in seconds, then ``fail`` or ``stop`` (as by its power switch)."""

    timeout: Seconds = 180
    otherwise: Literal["fail", "stop"] = "fail"


class CloudInit(Model):
    """What cloud-init makes of an image: a user with SSH keys; ``ip``: `dhcp` or an address with its prefix (192.168.0.50/24)."""

    user: GuestUser | None = None
    ssh_keys: list[PublicKey] = []
    password: Secret | None = None
    ip: Ipv4Interface = "dhcp"
    gateway: Ipv4 | None = None
    nameserver: NameServers | None = None


class Disk(Model):
    """The system disk: on which ``storage``, of how many GiB."""

    storage: Storage
    size: DiskGiB


# Keys of a VM's configuration that have a setting of their own: pattern -> the setting.
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
# Keys that this program or Proxmox VE writes for itself, and parameters of the API that are no option of a VM.
_OPTIONS_OF_NOBODY = {
    "description": "it has the mark by which this program knows its VM again",
    "balloon": "a card pins all of a VM's memory",
    "lock|digest|meta|vmgenid|parent|snaptime|vmstate|running[a-z-]*|unused[0-9]+|template": "Proxmox VE writes it itself",
    "vmid|node|newid|archive|storage|pool|start|force|unique|delete|revert|skiplock|skip_lock|autostart|full|target|format|snapname"
    "|background_delay|bwlimit|live-restore|ha-managed|import-working-storage": "it is no key of a VM's configuration",
}


def _owner_of_option(key: str, new: NewVm) -> str | None:
    """Why an option can't be set under ``options``; None: it can."""
    for pattern, setting in _OPTIONS_WITH_A_SETTING.items():
        if re.fullmatch(pattern, key):
            return f"it has a setting of its own, {setting}"
    for pattern, why in _OPTIONS_OF_NOBODY.items():
        if re.fullmatch(pattern, key):
            return f"{why}; take it out"
    if key in [f"sata{number}" for number in range(len(new.isos))]:
        return "create.isos are there"
    return "create.cloudInit has its drive there" if key == "ide2" and new.cloud_init is not None else None


class NewVm(Model):
    """A VM that is created: from a cloud ``image`` (a volume such as local:import/noble.qcow2), as a full clone of a ``template``
    (its VM id), or with an empty disk and ``isos``. Memory in MiB. ``options``: further keys of its configuration, as `qm set`
    takes them. A ``protect``ed VM is never deleted.
    """

    name: HostName | None = None
    cores: Cores = 4
    memory: Annotated[MemoryMiB, Field(ge=64)] = 8192
    disk: Disk
    image: Volume | None = None
    template: GuestId | None = None
    # sata0 to sata5, and no more.
    isos: Annotated[list[Volume], Field(max_length=6)] = []
    bridge: Bridge = "vmbr0"
    machine: Literal["q35", "pc"] = "q35"
    bios: Literal["ovmf", "seabios"] = "ovmf"
    secure_boot: bool = False
    tpm: bool = False
    cpu: CpuModel = "host"
    os_type: Literal["l26", "win11", "win10", "other"] = "l26"
    agent: bool = True
    onboot: bool = False
    cloud_init: CloudInit | None = None
    options: dict[OptionName, OptionValue] = {}
    protect: bool = False

    @model_validator(mode="after")
    def _options_of_others(self) -> Self:
        for key in self.options:
            if owner := _owner_of_option(key, self):
                raise ValueError(f"options.{key}: {owner}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.image is not None, self.template is not None, bool(self.isos))) > 1:
            raise ValueError("expected one of image, template and isos")
        if self.secure_boot and self.bios != "ovmf":
            raise ValueError("secureBoot takes bios: ovmf")
        return self


class Vm(Model):
    """A VM that gets cards: adopted by its ``vmid`` as it is, or made from ``create``.

    ``power``: keep (as it is found; the default for an adopted VM), running (the default for a created one), stopped. ``machine``:
    change it to that. ``display: none``: no emulated screen beside the card. ``address``: where the guest is reached, or `agent` to
    ask its guest agent. ``allowSharedOnboot``: it and another VM with the card may both start with the host. ``nvidia``: NVIDIA's
    stack in the guest, which is reached by ``ssh``.
    """

    host: Name
    vmid: GuestId
    gpus: list[VmGpu] = []
    power: Literal["keep", "running", "stopped"] | None = None
    shutdown: Shutdown = Shutdown()
    machine: Literal["q35"] | None = None
    display: Literal["keep", "none"] = "keep"
    address: NetworkAddress | None = None
    ssh: Ssh | None = None
    nvidia: Nvidia | None = None
    allow_shared_onboot: bool = False
    create: NewVm | None = None

    @property
    def wanted_power(self) -> str:
        return self.power or ("keep" if self.create is None else "running")

    @property
    def static_address(self) -> str | None:
        """Where the guest is reached, as far as the settings say it; `agent`: its guest agent does."""
        ip = self.create.cloud_init.ip if self.create and self.create.cloud_init else "dhcp"
        return self.address or (None if ip == "dhcp" else ip.partition("/")[0])

    @model_validator(mode="after")
    def _stack(self) -> Self:
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
        return self

    @model_validator(mode="after")
    def _options(self) -> Self:
        names = [gpu.gpu for gpu in self.gpus]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"gpus: {twice} is there twice")
        if sum(gpu.x_vga for gpu in self.gpus) > 1:
            raise ValueError("gpus: one card at most can be the VM's screen (xVga)")
        if self.create is not None and self.machine is not None:
            raise ValueError("machine changes an adopted VM; for a new one it is create.machine")
        if self.create is not None and self.create.machine == "pc" and any(gpu.pcie for gpu in self.gpus):
            raise ValueError("create.machine: a card with pcie needs q35")
        return self
