"""VmRecord: what a VM had before, and what it is to have for its cards. It owns those keys, and no others.

It reads the VM and the host, passes every check or fails before anything is changed, and puts the record into the state *before*
VmChange acts on it: a run that is killed in between loses nothing. The same record is noted on the host (homelab/remote/ledger.py): a
stack whose state was lost goes on from there. A refresh finds drift, and a VM that is gone. Its deletion gives back every key that
still is as we set it, with a shutdown and a start if the VM runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.resources.base import Boot, Owned, Values, VmInputs, moved_within_cluster
from homelab.shapes import Record


class VmRecord(Owned):
    """See the module; outputs as of `Outputs`."""

    kind = "vm:Record"
    # Another VM: the old one is given back what it had, and it is another one's turn.
    replaced_by = frozenset(("host", "node", "vmid"))
    delete_before_replace = True

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """`cards`: fields of `vm.config.VmCard`; `instance`: of a VM that was made here; `goes_away`: is the VM itself deleted next?"""

        cards: list[dict[str, Any]]
        machine: str | None = None
        display: str
        shared_onboot: bool
        power: str
        instance: str
        goes_away: bool
        boot: Boot

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`record`, `restore`: key -> ours, before; `running`: is it to run again?; `generation`: raised by each update;
        `identity`: tells the VM from another one of the same id (vm.config.identity); empty: the state is of an earlier version."""

        record: Record
        restore: Record
        running: bool
        generation: int
        guest_name: str
        drift: list[str] = field(default_factory=list)
        identity: str = ""

    if TYPE_CHECKING:
        record: pulumi.Output[Record]
        restore: pulumi.Output[Record]
    running: pulumi.Output[bool]
    generation: pulumi.Output[int]
    guest_name: pulumi.Output[str]

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """It goes with its VM to another node of the cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)
