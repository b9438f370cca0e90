"""NewContainer: a container that this program makes through the API, and removes with the stack unless it is protected.

Its description carries a mark, by which an interrupted run finds its own container again, and without which none is
ever removed. Features other than nesting are root@pam's alone. What can be changed in place is; its template, its
disk's storage and whether it is unprivileged can't be, and a change there is refused, as making it anew would lose what
is on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pulumi

from homelab.resources.base import NodeInputs, Owned, ShutdownInputs, Values, moved_within_cluster


class NewContainer(Owned):
    """A container that this program creates."""

    kind = "lxc:Container"
    replaced_by = frozenset(("host", "node", "ctid"))

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """The inputs for whose change another container is made; not for a move to another node of its cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`container`: its name in the settings; `config`: option -> value, as the API takes them; `cluster`: of its
        host."""

        container: str
        ctid: int
        config: dict[str, str]
        secret_config: dict[str, str] = field(default_factory=dict)
        protect: bool
        mark: str
        shutdown: ShutdownInputs
        cluster: str = ""

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`instance`: what tells this container from a later one of the same id; `drift`: options that differ."""

        instance: str
        drift: list[str] = field(default_factory=list)

    instance: pulumi.Output[str]
