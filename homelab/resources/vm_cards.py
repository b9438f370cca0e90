"""VmCards: the cards of a VM, and what had to change in it for them. It owns those keys, and no others.

It reads the VM and the host, and passes every check or fails before anything is changed. What it is about to change is
noted on the host with what was there before (homelab/remote/ledger.py); then it is brought into force, with a shutdown
and a start if the VM runs. The same record is put out, also if that fails; a run that was killed before that, and a
stack whose state was lost, go on from the host's notes. A refresh finds drift, and a VM that is gone. Its deletion
gives back every key that still is as this program set it, with a shutdown and a start if the VM runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pulumi

from homelab.resources.base import Owned, VmInputs
from homelab.shapes import BootSeen, Record


class VmCards(Owned):
    """The cards of a VM. Outputs as of `Outputs`."""

    kind = "vm:Cards"
    # Another VM: the old one is given back what it had, and it is another one's turn.
    replaced_by = frozenset(("host", "node", "vmid"))
    delete_before_replace = True

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """`cards`: fields of `vm.config.VmCard`; `instance`: of a VM that was made here; `goes_away`: is the VM itself
        deleted next?; `address`: the guest's; `agent`: it is asked."""

        cards: list[dict[str, Any]]
        machine: str | None = None
        display: str
        shared_onboot: bool
        power: str
        instance: str
        goes_away: bool
        boot: BootSeen
        address: str | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`record`, `restore`: key -> what this program set (`ours`), what was there `before`; `identity`: tells the
        VM from another one of the same id (vm.config.identity); `state`: running or stopped, as it was left, empty
        where the work on it failed; `guest_address`: empty where it isn't known; `starts`: how often it was started
        here; `serial`: of the note that is the same as this: one with a greater number was made by a run that was
        killed, and a state knows all others.
        """

        record: Record
        restore: Record
        guest_name: str
        identity: str
        state: str = ""
        guest_address: str = ""
        starts: int = 0
        serial: int = 0
        drift: list[str] = field(default_factory=list)

    guest_name: pulumi.Output[str]
    state: pulumi.Output[str]
    guest_address: pulumi.Output[str]
    starts: pulumi.Output[int]
