"""ContainerProbe: which of the driver's cards a container is to have, as numbers; where drift of its configuration is found.

Reads the host, passes every check or fails before anything is changed, and puts out what the scripts are told. A refresh compares the
host with that: what differs raises ``generation``, with which the configuration is written again and the chain behind it follows;
numbers that have changed ask for an update. It owns nothing on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from homelab.resources.base import Boot, NodeInputs, Probe
from homelab.shapes import CardPlan


class ContainerProbe(Probe):
    """See the module; outputs as of `Outputs`."""

    replaced_by = frozenset(("host", "ctid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """``container``: its name in the settings; ``wanted``: the settings that decide; ``gpus``: as HostProbe has them; ``instance``:
        of a container that was made here."""

        container: str
        ctid: int
        wanted: dict[str, Any]
        gpus: dict[str, CardPlan]
        boot: Boot
        instance: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``minors``: numbers of /dev/nvidiaN; ``functions``: addresses of the cards' display functions; ``resume``: did a reboot of
        ours stop it?; ``generation``: how often it drifted."""

        minors: list[int]
        functions: list[str]
        guest_name: str
        resume: bool
        generation: int
        stale: bool

    minors: pulumi.Output[list[int]]
    functions: pulumi.Output[list[str]]
    guest_name: pulumi.Output[str]
    resume: pulumi.Output[bool]
    generation: pulumi.Output[int]
