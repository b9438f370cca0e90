"""VmCards: the cards of a VM, and what had to change in it for them. It owns those options, and no others.

What the VM is to have is decided by what its host says of it, and refused before anything is changed. The host brings
it into force, with a shutdown and a start if the VM runs, and keeps what was there before, so that a run that was
killed and a stack whose state was lost go on from there. A card that another VM of this stack has is taken out of that
one first. A refresh decides the same again: what would change is the drift. The deletion gives back what still is as
this program set it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pulumi

from homelab.resources.base import NodeInputs, Owned
from homelab.shapes import BootSeen, ShutdownInputs
from homelab.vm.cards import VmCard


class VmCards(Owned):
    """The cards of a VM. Outputs as of `Outputs`."""

    kind = "vm:Cards"
    # Another VM: the old one is given back what it had, and it is another one's turn.
    replaced_by = frozenset(("host", "node", "vmid"))
    delete_before_replace = True

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`vm`: its name in the settings; `instance`: of a VM that was made here; `goes_away`: is the VM itself deleted
        next?; `address`: the guest's; `agent`: it is asked."""

        vm: str
        vmid: int
        shutdown: ShutdownInputs
        cards: list[VmCard]
        machine: str | None = None
        display: str
        power: Literal["keep", "running", "stopped"]
        instance: str
        goes_away: bool
        boot: BootSeen
        address: str | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """How the VM was left; what it had before stands on the host alone. `state`: running or stopped, empty where
        the work on it failed; `guest_address`: empty where it isn't known; `starts`: how often it was started here.
        """

        guest_name: str = ""
        state: str = ""
        guest_address: str = ""
        starts: int = 0
        drift: list[str] = field(default_factory=list)

    guest_name: pulumi.Output[str]
    state: pulumi.Output[str]
    guest_address: pulumi.Output[str]
    starts: pulumi.Output[int]
