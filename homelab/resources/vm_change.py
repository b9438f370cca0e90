"""VmChange: brings what VmRecord recorded into force. It is done again whenever the record was made anew, and owns nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from homelab.resources.base import Resource, VmInputs
from homelab.shapes import Record


class VmChange(Resource):
    """See the module; outputs as of `Outputs`."""

    kind = "vm:Change"
    replaced_by = frozenset(("host", "node", "vmid"))
    delete_before_replace = True

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """`address`: the guest's; `agent`: it is asked. `running`: as VmRecord found it, however long ago; it decides nothing, and is there so that this acts once more where it
        has changed. Whether the VM is to run again is what its host has noted when it is changed (homelab/provider/vm_memory.py)."""

        record: Record
        restore: Record
        running: bool
        generation: int
        power: str
        address: str | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`state`: running or stopped, as it was left; `guest_address`: empty where it isn't known; `starts`: how often it was
        started here."""

        state: str
        guest_address: str = ""
        starts: int = 0

    state: pulumi.Output[str]
    guest_address: pulumi.Output[str]
    starts: pulumi.Output[int]
