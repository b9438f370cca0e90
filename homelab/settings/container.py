"""A container that shares cards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from homelab.model import Model
from homelab.settings.keys import PublicKey
from homelab.settings.nvidia import Nvidia
from homelab.settings.types import (
    Bridge,
    ContainerNameServers,
    Cores,
    Folder,
    GuestId,
    HostName,
    InWords,
    Ipv4,
    Ipv4Interface,
    MemoryMiB,
    Name,
    Plain,
    Secret,
    TemplateOrDownload,
)
from homelab.settings.vm import Disk, Shutdown
from homelab.shapes import CardUse

if TYPE_CHECKING:
    from homelab.settings.host import Gpu


# Folders of the host's system: Proxmox VE's own documentation warns of giving any of them to a container.
_SYSTEM_FOLDER = re.compile(r"/(?:(?:bin|boot|dev|etc|lib|lib64|proc|root|run|sbin|sys|usr|var)(?:/.*)?)?")
# Folders below /var that hold users' data.
_DATA_BELOW_VAR = re.compile(r"/var/lib/vz/(?!images|dump|template|private).+|/var/(?:srv|media|data|www)(?:/.*)?")


class Mount(Model):
    """A folder of the host, mounted in a new container (a bind mount). In an unprivileged container its files belong
    to `nobody`, unless their owner on the host is 100000 and more. Neither a snapshot nor a backup has it."""

    source: Folder
    """The folder on the host, which must be there: `/tank/films`. Not one of the host's system, such as `/etc`."""
    target: Folder
    """Where it is in the container: `/films`."""
    read_only: bool = False
    """Nothing in the container may change it."""

    @field_validator("source")
    @classmethod
    def _not_a_system_folder(cls, value: str) -> str:
        if _SYSTEM_FOLDER.fullmatch(value) and not _DATA_BELOW_VAR.fullmatch(value):
            raise ValueError(
                f"{value} is of the host's own system: a container that changes it breaks the host. Expected a folder "
                "with your data, such as /tank/films"
            )
        return value

    @property
    def option(self) -> str:
        """The value of the container's `mp` option."""
        return f"{self.source},mp={self.target}" + (",ro=1" if self.read_only else "")


class Features(Model):
    """What a new container may do beyond the usual."""

    nesting: bool = True
    """Containers, or a newer systemd, may run inside it."""
    keyctl: bool = False
    """It may use the kernel's keyring, which Docker in an unprivileged container needs."""
    fuse: bool = False
    """It may mount FUSE file systems."""
    mount: list[Literal["nfs", "cifs"]] = []
    """It may mount network file systems of these kinds. Only a privileged one can (`unprivileged: false`)."""

    @property
    def option(self) -> str:
        """The value of the container's `features` option; empty without features."""
        flags = [name for name in ("fuse", "keyctl", "nesting") if getattr(self, name)]
        parts = [f"{name}=1" for name in flags]
        parts += [f"mount={';'.join(self.mount)}"] if self.mount else []
        return ",".join(sorted(parts))


class NewContainerSettings(Model):
    """A container that the program creates. It is deleted again by `pulumi destroy`."""

    template: TemplateOrDownload
    """The volume of a template, such as `local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst`; `pveam list local`
    lists them. Or the name of one of the host's `downloads`."""
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
    nameserver: ContainerNameServers | None = None
    """Its name servers. By default those of the host."""
    unprivileged: bool = True
    """Root in the container is an ordinary user on the host."""
    features: Features = Features()
    """What it may do beyond the usual."""
    mounts: Annotated[list[Mount], Field(max_length=256)] = []
    """Folders of the host that it has. A change comes into force with its next start."""
    onboot: bool = True
    """It starts with the host."""
    ssh_keys: list[PublicKey] = []
    """Public keys that may log in as root."""
    password: Secret | None = None
    """Root's password, as an encrypted value."""
    protect: bool = False
    """`true`: the program never deletes it."""

    @model_validator(mode="after")
    def _mounts_fit(self) -> Self:
        if self.features.mount and self.unprivileged:
            raise ValueError(
                "features.mount: an unprivileged container mounts no network file system; mount it on the host, and "
                "give it by mounts"
            )
        targets = [mount.target for mount in self.mounts]
        if repeated := next((target for target in targets if targets.count(target) > 1), None):
            raise ValueError(f"mounts: {repeated} is a target twice")
        return self


class Container(Model):
    """A container that shares cards with the host's driver. Several containers may have the same card. Exactly one of
    `gpuAssignment` and `gpus` says which cards it gets."""

    host: Name
    """The host that it runs on: a name under `hosts`."""
    ctid: GuestId
    """Its id in Proxmox VE. Without `create` a container with this id exists, and is adopted as it is."""
    gpu_assignment: Annotated[Plain | None, InWords('all, none, or numbers in quotes, such as "0,1"')] = None
    """Cards by the driver's own numbers: N of `/dev/nvidiaN`, as `nvidia-smi -L` lists them. They need not follow the
    order of the PCI addresses."""
    gpus: list[Name] | None = None
    """Cards by their names under `hosts.NAME.gpus`, of any maker; each needs `use: lxc` or `shared`."""
    nodes: Literal["render", "all"] = "render"
    """Which nodes of an Intel or AMD card it gets. `render`: the one for video and computing (`/dev/dri/renderD128`),
    and an AMD card's `/dev/kfd`, if it has that. `all`: also the one that controls screens (`/dev/dri/card0`), which
    some older programs look for."""
    libraries: list[CardUse] = []
    """Packages that programs inside it need for its Intel and AMD cards, from its own distribution (Debian or Ubuntu).
    `video`: VA-API's drivers and `vainfo`, which must then work. `compute`: OpenCL for Intel's, ROCm's runtime for
    AMD's. `up` removes them without the setting, `destroy` in any case."""
    method: Literal["device", "mount-entry"] = "device"
    """How the devices are written into the container's configuration. `device`: `dev[n]` options. `mount-entry`: raw
    `lxc.mount.entry` and `lxc.cgroup2.devices.allow` lines. A change converts them."""
    power: Literal["keep", "running", "stopped"] | None = None
    """`keep`: it runs afterwards if it ran before. `running` and `stopped` are restored by a refresh, too. By default
    `keep` for an adopted container, `running` for a created one."""
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
    def guest_id(self) -> int:
        return self.ctid

    @property
    def cards(self) -> list[str]:
        """The names of its cards in its host's `gpus`; empty where numbers are assigned instead."""
        return self.gpus or []

    @property
    def numbers(self) -> list[int] | Literal["all"] | None:
        """The driver's numbers of the assigned cards, ascending; `all`; None where cards are named instead."""
        return None if self.gpu_assignment is None else assigned_numbers(self.gpu_assignment)

    @property
    def has_cards(self) -> bool:
        """Whether it gets a card."""
        return bool(self.gpus or self.numbers)

    def may_have_nvidia(self, gpus: Mapping[str, Gpu]) -> bool:
        """Whether it may get a card of NVIDIA's. Only the host knows the maker of a card that is named by its address.

        :param gpus: the cards of its host, by name.
        """
        return not self.gpus or any(
            gpus[name].match is None or gpus[name].is_nvidia for name in self.gpus if name in gpus
        )

    @property
    def wanted_power(self) -> Literal["keep", "running", "stopped"]:
        return self.power or ("running" if self.start or self.create is not None else "keep")

    @property
    def volumes(self) -> list[str]:
        """Volumes or downloads that it is created from; empty for an adopted container."""
        return [self.create.template] if self.create is not None else []

    @model_validator(mode="after")
    def _cards_fit(self) -> Self:
        if (self.gpu_assignment is None) == (self.gpus is None):
            raise ValueError(
                'expected exactly one of gpuAssignment (such as "0,1", "all" or "none") and gpus (names of cards)'
            )
        if repeated := next((name for name in self.cards if self.cards.count(name) > 1), None):
            raise ValueError(f"gpus: {repeated} is there twice")
        if self.start and self.power not in (None, "running"):
            raise ValueError(f"start: true and power: {self.power} contradict each other")
        if self.nvidia is not None and (self.gpus == [] or self.numbers == []):
            raise ValueError("nvidia without a card: there is nothing to verify it with")
        if self.libraries and not self.gpus:
            raise ValueError("libraries are for cards that gpus names, of Intel's and AMD's")
        if len(set(self.libraries)) < len(self.libraries):
            raise ValueError("libraries: expected each of them once")
        if self.libraries and self.power == "stopped":
            raise ValueError("libraries need a container that runs, and power is stopped")
        if self.nvidia is not None and self.power == "stopped":
            raise ValueError("nvidia needs a container that runs, and power is stopped")
        return self


def assigned_numbers(text: str) -> list[int] | Literal["all"]:
    """The driver's numbers in a `gpuAssignment`, ascending: [0, 1] for `0,1`; [] for `none`; `all` for `all`.

    :raises ValueError: it is none of these, or names a card twice.
    """
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    parts = [] if plain == "none" else [part.strip() for part in plain.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        raise ValueError('expected numbers of /dev/nvidiaN such as "0" or "0,1", or "all", or "none"')
    numbers = sorted(int(part) for part in parts)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"card {number} is there twice")
    return numbers
