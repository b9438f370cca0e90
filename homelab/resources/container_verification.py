"""ContainerVerification: a look from inside a container, once its configuration gives it its cards.

What is wrong is said device by device, and the diagnosis (`homelab doctor container ID`) is part of the
message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from homelab.resources.base import Act, HostInputs
from remote_scripts.notes.container_note import Cards


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
