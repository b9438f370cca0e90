"""A container's resources.

ContainerProbe: which of the host's cards a container is to have, NVIDIA's as numbers, others by address; where drift
of its configuration is found.

Reads the host, passes every check or fails before anything is changed, and puts out what the scripts are told. A
refresh compares the host with that: what differs raises `generation`, with which the configuration is written again and
the chain behind it follows; numbers that have changed ask for an update. It owns nothing on the host.

ContainerVerification: a look from inside a container, once its configuration gives it its cards. What is wrong is said
device by device, and the diagnosis (`homelab doctor container ID`) is part of the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.resources.base import Act, HostInputs, NodeInputs, Probe, digest
from homelab.shapes import BootSeen, CardPlan, SharedCard, ShutdownInputs
from remote_scripts.notes.container_note import Cards

if TYPE_CHECKING:
    from homelab.settings import Container

# Settings that other resources are told.
_ELSEWHERE = {"host", "ctid", "power", "start", "shutdown", "nvidia", "create"}


class ContainerProbe(Probe):
    """The plan of which cards a container gets. Outputs as of `Outputs`."""

    kind = "lxc:Probe"
    replaced_by = frozenset(("host", "ctid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`container`: its name in the settings; `settings`: digest of those that decide (Probe); `power`: is it to
        run?; `gpus`: as HostProbe has them; `instance`:
        of a container that was made here; `goes_away`: is the container itself deleted next?; `shutdown`: how it
        is shut down where it is given back."""

        container: str
        ctid: int
        settings: str
        power: str
        gpus: dict[str, CardPlan]
        boot: BootSeen
        instance: str
        goes_away: bool = False
        shutdown: ShutdownInputs

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`minors`: numbers of /dev/nvidiaN; `functions`: addresses of these cards' display functions; `shared`: cards
        of other makers, by their names in the settings; `rebooted_at`: when this program's
        reboot has stopped it, in seconds since 1970, 0: it hasn't; `generation`: how
        often it drifted; `again`: the same of packages for its cards (`libraries`)."""

        minors: list[int]
        functions: list[str]
        guest_name: str
        rebooted_at: int
        generation: int
        stale: bool
        shared: dict[str, SharedCard]
        again: int

    minors: pulumi.Output[list[int]]
    functions: pulumi.Output[list[str]]
    guest_name: pulumi.Output[str]
    rebooted_at: pulumi.Output[int]
    generation: pulumi.Output[int]
    again: pulumi.Output[int]
    if TYPE_CHECKING:
        shared: pulumi.Output[dict[str, SharedCard]]

    @staticmethod
    def settings_of(container: Container) -> str:
        """The input `settings` for a container of the settings."""
        return digest(container, _ELSEWHERE)


class ContainerVerification(Act):
    """A look from inside a container at its cards. Outputs as of `Outputs`."""

    kind = "lxc:Check"
    answers = frozenset(("after",))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """`cards`, `uses`: as of the layer container_verification; `after`: what it follows."""

        ctid: int
        after: Any
        cards: Cards
        uses: list[str]

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`state`: running, stopped or unknown; `nodes`: paths that could be opened inside."""

        state: str
        nodes: list[str]

    state: pulumi.Output[str]
    nodes: pulumi.Output[list[str]]
