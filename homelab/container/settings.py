"""A container that shares cards."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from homelab.fields.model import NamedModel
from homelab.fields.types import GuestId, InWords, Name, WrittenText
from homelab.guest.settings import NewContainer
from homelab.nvidia.settings import Nvidia
from homelab.shapes import CardUse
from homelab.vm.settings import Shutdown


def assigned_numbers(text: str) -> list[int] | Literal["all"]:
    """The driver's numbers in a `gpuAssignment`, ascending: [0, 1] for `0,1`; [] for `none`; `all` for `all`.

    :raises ValueError: it is none of these.
    """
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    parts = [] if plain == "none" else [part.strip() for part in plain.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        raise ValueError('expected numbers of /dev/nvidiaN such as "0" or "0,1", or "all", or "none"')
    return sorted({int(part) for part in parts})


def _assignment(value: str) -> str:
    assigned_numbers(value)
    return value.strip()


Assignment = Annotated[
    WrittenText, InWords('all, none, or numbers in quotes, such as "0,1"'), AfterValidator(_assignment)
]


class Container(NamedModel):
    """A container that shares cards with the host's driver. Several containers may have the same card. Exactly one of
    `gpuAssignment` and `gpus` says which cards it gets."""

    host: Name
    """The host that it runs on: a name under `hosts`."""
    ctid: GuestId
    """Its id in Proxmox VE. Without `create` a container with this id exists, and is adopted as it is."""
    gpu_assignment: Assignment | None = None
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
    AMD's. If you take the setting out, `up` removes them; `destroy` removes them, too."""
    method: Literal["device", "mount-entry"] = "device"
    """How the devices are written into the container's configuration. `device`: `dev[n]` options. `mount-entry`: raw
    `lxc.mount.entry` and `lxc.cgroup2.devices.allow` lines. A change converts them."""
    power: Literal["keep", "running", "stopped"] | None = None
    """`keep`: it runs afterwards if it ran before. `running` and `stopped` are restored by a refresh, too. By default
    `keep` for an adopted container, `running` for a created one."""
    shutdown: Shutdown = Shutdown()
    """How it is shut down when a change needs a restart."""
    nvidia: Nvidia | None = None
    """NVIDIA's libraries inside it, of exactly the version of the host's driver."""
    create: NewContainer | None = None
    """Create the container with these properties, instead of adopting an existing one."""

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

    @property
    def wanted_power(self) -> Literal["keep", "running", "stopped"]:
        return self.power or ("running" if self.create is not None else "keep")

    @property
    def volumes(self) -> list[str]:
        """Volumes or downloads that it is created from; empty for an adopted container."""
        return self.create.volumes if self.create else []

    @model_validator(mode="after")
    def _cards_fit(self) -> Self:
        if (self.gpu_assignment is None) == (self.gpus is None):
            raise ValueError(
                'expected exactly one of gpuAssignment (such as "0,1", "all" or "none") and gpus (names of cards)'
            )
        if self.nvidia is not None and (self.gpus == [] or self.numbers == []):
            raise ValueError("nvidia without a card: there is nothing to verify it with")
        if self.libraries and not self.gpus:
            raise ValueError("libraries are for cards that gpus names, of Intel's and AMD's")
        if self.power == "stopped" and (self.libraries or self.nvidia is not None):
            raise ValueError("libraries and nvidia need a container that runs, and power is stopped")
        return self
