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
    """What a container may besides: ``nesting`` anybody can set; the others root@pam alone, no token."""

    nesting: bool = True
    keyctl: bool = False
    fuse: bool = False

    @property
    def takes_root(self) -> bool:
        """Whether only root@pam itself can make a container so."""
        return self.keyctl or self.fuse


class NewContainer(Model):
    """A container that is created from a ``template`` (a volume such as local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst).

    Memory and swap in MiB; ``ip``: `dhcp` or an address with its prefix. A ``protect``ed container is never deleted.
    """

    template: Template
    hostname: HostName | None = None
    disk: Disk
    cores: Cores = 4
    memory: MemoryMiB = 4096
    swap: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 512
    bridge: Bridge = "vmbr0"
    ip: Ipv4Interface = "dhcp"
    gateway: Ipv4 | None = None
    nameserver: NameServers | None = None
    unprivileged: bool = True
    features: Features = Features()
    onboot: bool = True
    ssh_keys: list[PublicKey] = []
    password: Secret | None = None
    protect: bool = False


class Container(Model):
    """A container that shares cards with the host's driver: adopted by its ``ctid`` as it is, or made from ``create``.

    Which cards: ``gpuAssignment``, numbers of the driver (/dev/nvidiaN), `all` or `none`; or ``gpus``, names of the host's cards
    with use: lxc. ``method``: as `dev[n]` options (device) or raw lines (mount-entry); by default what the host can. ``power``: keep
    (as it is found; the default for an adopted one), running, stopped; ``start: true`` is the same as ``power: running``. ``nvidia``: the
    libraries that fit the host's driver, in the container.
    """

    host: Name
    ctid: GuestId
    gpu_assignment: Plain | None = None
    gpus: list[Name] | None = None
    method: Literal["device", "mount-entry"] | None = None
    power: Literal["keep", "running", "stopped"] | None = None
    start: bool = False
    shutdown: Shutdown = Shutdown()
    nvidia: Nvidia | None = None
    create: NewContainer | None = None

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
