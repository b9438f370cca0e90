"""ContainerVerification: a look from inside a container, once its configuration gives it its cards.

What is wrong is said device by device, and the diagnosis (`python -m homelab doctor container ID`) is part of the
message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from homelab.resources.base import Act, HostInputs


class ContainerVerification(Act):
    """A look from inside a container at its cards. Outputs as of `Outputs`."""

    kind = "lxc:Check"
    answers = frozenset(("after",))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """`devices`: as container_verification.sh takes them; `after`: what it follows."""

        ctid: int
        devices: dict[str, str]
        after: Any

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`state`: running or stopped; `nodes`: paths that could be opened inside."""

        state: str
        nodes: list[str]

    state: pulumi.Output[str]
    nodes: pulumi.Output[list[str]]
