"""The two kinds of guests, and what Proxmox VE calls each and what is done with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["qemu", "lxc"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`name`: in the API's paths and in notes' names; `folder`: of its configurations; `label`: for people; `ha`: in
    HA's names of services; `program`: at a shell; `tasks`: what its tasks' types begin with.

    Types of tasks (fork_worker of PVE::API2::Qemu and PVE::API2::LXC): `starts`, `stops`; `reboots`, of which one of a
    guest that is off ends well and does nothing; `replaces`: those that leave it off, or put another in its place,
    without a task of its stop.
    """

    name: Name
    folder: str
    label: str
    ha: str
    program: Literal["qm", "pct"]
    tasks: str
    starts: tuple[str, ...]
    reboots: tuple[str, ...]
    stops: tuple[str, ...]
    replaces: tuple[str, ...]


_HA = ("hastart", "hastop", "hamigrate")
VM = Kind(
    name="qemu",
    folder="qemu-server",
    label="VM",
    ha="vm",
    program="qm",
    tasks="qm",
    starts=("qmstart", "qmresume"),
    reboots=("qmreboot",),
    stops=("qmshutdown", "qmstop"),
    replaces=("qmsuspend", "qmrollback", "qmrestore", "qmcreate", "qmdestroy", "qmigrate", "qmtemplate", *_HA),
)
CONTAINER = Kind(
    name="lxc",
    folder="lxc",
    label="container",
    ha="ct",
    program="pct",
    tasks="vz",
    starts=("vzstart", "vzresume"),
    reboots=("vzreboot",),
    stops=("vzshutdown", "vzstop"),
    replaces=("vzsuspend", "vzrollback", "vzrestore", "vzcreate", "vzdestroy", "vzmigrate", "vztemplate", *_HA),
)
#: By the program.
KINDS: dict[str, Kind] = {kind.program: kind for kind in (VM, CONTAINER)}


@dataclass(frozen=True)
class Running:
    """A guest that runs. `program`: qm or pct."""

    program: Literal["qm", "pct"]
    id: int
    name: str

    def __str__(self) -> str:
        """`VM 103 (Sandbox)`."""
        return f"{KINDS[self.program].label} {self.id} ({self.name})"
