"""The two kinds of guests, and what Proxmox VE calls each and what is done with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["qemu", "lxc"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`name`: in the API's paths and in notes' names; `folder`: of its configurations; `label`: for people; `ha`: in
    HA's names of services; `program`: at a shell; `tasks`: what its tasks' types begin with; `starts`, `stops`: the
    types of those that switch it.
    """

    name: Name
    folder: str
    label: str
    ha: str
    program: Literal["qm", "pct"]
    tasks: str
    starts: tuple[str, ...]
    stops: tuple[str, ...]


VM = Kind(
    name="qemu",
    folder="qemu-server",
    label="VM",
    ha="vm",
    program="qm",
    tasks="qm",
    starts=("qmstart", "qmreboot", "qmresume"),
    stops=("qmshutdown", "qmstop"),
)
CONTAINER = Kind(
    name="lxc",
    folder="lxc",
    label="container",
    ha="ct",
    program="pct",
    tasks="vz",
    starts=("vzstart", "vzreboot"),
    stops=("vzshutdown", "vzstop"),
)
#: By the program.
KINDS: dict[str, Kind] = {kind.program: kind for kind in (VM, CONTAINER)}
