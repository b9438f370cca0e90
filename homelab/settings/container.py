"""A container that shares cards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from homelab.model import Model
from homelab.settings.keys import PublicKey
from homelab.settings.nvidia import Nvidia
from homelab.settings.types import (
    Bridge,
    Cores,
    GuestId,
    HostName,
    InWords,
    Ipv4,
    Ipv4Interface,
    MemoryMiB,
    Name,
    NameServers,
    Plain,
    Secret,
    Template,
)
from homelab.settings.vm import Disk, Shutdown


class Features(Model):
    """What a new container may do beyond the usual. Only `root@pam` may set anything but `nesting`; a token may not."""

    nesting: bool = True
    """Containers, or a newer systemd, may run inside it."""
    keyctl: bool = False
    """It may use the kernel's keyring, which Docker in an unprivileged container needs."""
    fuse: bool = False
    """It may mount FUSE file systems."""

    @property
    def takes_root(self) -> bool:
        """Whether only root@pam itself can make a container so."""
        return self.keyctl or self.fuse


class NewContainerSettings(Model):
    """A container that the program creates. It is deleted again by `pulumi destroy`."""

    template: Template
    """The volume of a template, such as `local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst`. `pveam list local` lists them."""
    hostname: HostName | None = None
    """Its host name. By default the name that it has in these settings."""
    disk: Disk
    """Its disk."""
    cores: Cores = 4
    """How many processor cores it has."""
    memory: MemoryMiB = 4096
    """Its memory."""
    swap: Annotated[int, InWords("MiB"), Field(ge=0, le=16 * 1024 * 1024)] = 512
    """Its swap space."""
    bridge: Bridge = "vmbr0"
    """The network bridge of the host that it is connected to."""
    ip: Ipv4Interface = "dhcp"
    """Its IPv4 address with the prefix, such as `192.168.0.50/24`, or `dhcp`."""
    gateway: Ipv4 | None = None
    """Its default gateway."""
    nameserver: NameServers | None = None
    """Its name servers. By default those of the host."""
    unprivileged: bool = True
    """Root in the container is an ordinary user on the host."""
    features: Features = Features()
    """What it may do beyond the usual."""
    onboot: bool = True
    """It starts with the host."""
    ssh_keys: list[PublicKey] = []
    """Public keys that may log in as root."""
    password: Secret | None = None
    """Root's password, as an encrypted value."""
    protect: bool = False
    """`true`: the program never deletes it."""


class Container(Model):
    """A container that shares cards with the host's driver. Several containers may have the same card. Exactly one of `gpuAssignment`
    and `gpus` says which cards it gets."""

    host: Name
    """The host that it runs on: a name under `hosts`."""
    ctid: GuestId
    """Its id in Proxmox VE. Without `create` a container with this id exists, and is adopted as it is."""
    gpu_assignment: Annotated[Plain | None, InWords('all, none, or numbers in quotes, such as "0,1"')] = None
    """Cards by the driver's own numbers: N of `/dev/nvidiaN`, as `nvidia-smi -L` lists them. They need not follow the order of the PCI
    addresses."""
    gpus: list[Name] | None = None
    """Cards by their names under `hosts.NAME.gpus`; each needs `use: lxc`."""
    method: Literal["device", "mount-entry"] | None = None
    """How the devices are written into the container's configuration. `device`: `dev[n]` options, from pve-container 5.0.7 on.
    `mount-entry`: raw `lxc.mount.entry` and `lxc.cgroup2.devices.allow` lines. By default what the host can; a change converts them."""
    power: Literal["keep", "running", "stopped"] | None = None
    """`keep`: it runs afterwards if it ran before. `running` and `stopped` are restored by a refresh, too. By default `keep` for an
    adopted container, `running` for a created one."""
    start: bool = False
    """`true` means the same as `power: running`."""
    shutdown: Shutdown = Shutdown()
    """How it is shut down when a change needs a restart."""
    nvidia: Nvidia | None = None
    """NVIDIA's libraries inside it, of exactly the version of the host's driver."""
    create: NewContainerSettings | None = None
    """Create the container with these properties, instead of adopting an existing one."""

    @field_validator("gpu_assignment", mode="before")
    @classmethod
    def _assignment(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # YAML takes a 0 without quotation marks for a number
        if isinstance(value, str):
            value = value.strip()
            assigned_numbers(value)
        return value

    @property
    def numbers(self) -> list[int] | Literal["all"] | None:
        """The driver's numbers of the assigned cards, ascending; `all`; None where cards are named instead."""
        return None if self.gpu_assignment is None else assigned_numbers(self.gpu_assignment)

    @property
    def wanted_power(self) -> str:
        return self.power or ("running" if self.start or self.create is not None else "keep")

    @model_validator(mode="after")
    def _options(self) -> Self:
        if (self.gpu_assignment is None) == (self.gpus is None):
            raise ValueError(
                'expected exactly one of gpuAssignment (such as "0,1", "all" or "none") and gpus (names of cards)'
            )
        names = self.gpus or []
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"gpus: {twice} is there twice")
        if self.start and self.power not in (None, "running"):
            raise ValueError(f"start: true and power: {self.power} contradict each other")
        if self.nvidia is not None and (self.gpus == [] or self.numbers == []):
            raise ValueError("nvidia without a card: there is nothing to verify it with")
        if self.nvidia is not None and self.power == "stopped":
            raise ValueError("nvidia needs a container that runs, and power is stopped")
        return self


def assigned_numbers(text: str) -> list[int] | Literal["all"]:
    """`0,1` as [0, 1]; `none` as []; `all`. Raises ValueError: it is none of these, or names a card twice."""
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    parts = [] if plain == "none" else [part.strip() for part in plain.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        raise ValueError('expected numbers of /dev/nvidiaN such as "0" or "0,1", or "all", or "none"')
    found = sorted(int(part) for part in parts)
    for number in found:
        if found.count(number) > 1:
            raise ValueError(f"card {number} is there twice")
    return found
