"""GpuLease: which VM has a card, one resource for a card; where several VMs have it in turn, one for each adopted VM.

It writes nothing when it is made. When the card goes to another VM, it is replaced, the old one deleted first: that
takes the card out of the VM that had it, before the next one gets it, whichever way cards are exchanged in one
`pulumi up`. An update in place of the two VMs could come in either order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulumi

from homelab.resources.base import NodeInputs, Resource, Values
from homelab.shapes import ShutdownInputs

if TYPE_CHECKING:
    from homelab.settings import Vm


@dataclass(frozen=True, kw_only=True)
class LeasedCard:
    """`node`: the host's name in Proxmox VE; `mapping`: the id of the card's PCI mapping; `slot`: the card's path."""

    host: str
    node: str
    mapping: pulumi.Input[str]
    slot: pulumi.Input[str]


class GpuLease(Resource):
    """Which VM has a card."""

    kind = "gpu:Lease"
    replaced_by = frozenset(("host", "node", "vmid"))
    delete_before_replace = True

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`slot`: the card's path; `vm`, `vmid`, `shutdown`: of the VM that has it; None: no VM has."""

        mapping: str
        slot: str
        vm: str | None = None
        vmid: int | None = None
        shutdown: ShutdownInputs | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`by_hand`: did the VM have the card before this program gave it one?"""

        by_hand: bool

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """The inputs for whose change another resource is made; none where no VM has the card yet."""
        return super().replacing(state, changed) if state.get("vmid") is not None else set()

    @classmethod
    def of(cls, name: str, card: LeasedCard, holder: tuple[str, Vm] | None, opts: pulumi.ResourceOptions) -> GpuLease:
        """The lease of a card.

        :param holder: the VM that gets it, and its name in the settings, if one does.
        """
        vm_name, vm = holder or (None, None)
        inputs = {"host": card.host, "node": card.node, "mapping": card.mapping, "slot": card.slot}
        shutdown = vm and vm.shutdown.model_dump(mode="json")
        return cls(name, {**inputs, "vm": vm_name, "vmid": vm and vm.vmid, "shutdown": shutdown}, opts)
