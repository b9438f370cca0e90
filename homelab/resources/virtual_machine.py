"""VirtualMachine: a VM that this program makes, and removes with the stack unless it is protected.

Its description carries a mark, by which an interrupted run finds its own VM again, and without which none is ever
removed. What can be changed in place is; a disk or its source can't, and a change there is refused, as making the VM
anew would lose what is on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pulumi

from homelab.resources.base import Owned, Values, VmInputs, moved_within_cluster


@dataclass(frozen=True, kw_only=True)
class DiskInputs:
    """`size` in GiB."""

    storage: str
    size: int


class VirtualMachine(Owned):
    """A VM that this program creates."""

    kind = "vm:Machine"
    replaced_by = frozenset(("host", "node", "vmid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """`config`: option -> value, as the API takes them; `secret_config`: the same, secret."""

        config: dict[str, str]
        secret_config: dict[str, str] = field(default_factory=dict)
        disk: DiskInputs
        image: str | None = None
        template: int | None = None
        protect: bool
        mark: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`instance`: what tells this VM from a later one of the same id; `drift`: options that differ."""

        instance: str
        drift: list[str] = field(default_factory=list)

    instance: pulumi.Output[str]

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """The inputs for whose change another VM is made; not for a move to another node of its cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)
