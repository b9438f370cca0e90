"""VmPlace and VmMigration: a VM that lies on a node without its cards is brought to one that has them, while it is off (`vms.NAME.migrate: offline`).

VmPlace only reads, decides and refuses; that the VM is to move is in the state before VmMigration moves it. So a run that is killed in between, or while
it moves, goes on: VmMigration is done again whenever VmPlace says that it moves once more, and whatever takes the VM's cards to it is done after that.
Neither is undone: a destroy leaves the VM where it is then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from homelab.resources.base import Resource, VmInputs, moved_within_cluster


class VmPlace(Resource):
    """See the module; outputs as of `Outputs`."""

    kind = "vm:Place"
    replaced_by = frozenset(("host", "node", "vmid"))
    # What it looks at matters only while the VM is elsewhere.
    ignored = frozenset(("cards", "machine", "display", "shared_onboot", "storage", "shutdown"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """``leaves``: the node that it is on, if that has none of its cards; empty: it is where it is to be. ``storage``: where its disks go, empty: of
        the same name; ``cards``: fields of `vm.config.VmCard`, with what else VmRecord checks."""

        leaves: str
        storage: str
        cards: list[dict[str, Any]]
        machine: str | None = None
        display: str
        shared_onboot: bool

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``moves``: how often it had to be moved; ``came_from``: the node from where, the last time."""

        moves: int
        came_from: str

    moves: pulumi.Output[int]
    came_from: pulumi.Output[str]

    @classmethod
    def says_nothing(cls, key: str, new: Any) -> bool:
        """It is where it is to be."""
        return key == "leaves" and new == ""

    @classmethod
    def says_anew(cls, key: str, new: Any) -> bool:
        """It is elsewhere, perhaps once more."""
        return key == "leaves" and new != ""

    @classmethod
    def replacing(cls, state: Mapping[str, Any], changed: set[str]) -> set[str]:
        """It goes with its VM to another node of the cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)


class VmMigration(Resource):
    """See the module; outputs as of `Outputs`."""

    kind = "vm:Migration"
    replaced_by = frozenset(("host", "node", "vmid"))
    ignored = frozenset(("storage", "shutdown"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs):
        """As VmPlace's."""

        moves: int
        came_from: str
        storage: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``done``: VmPlace's ``moves``, once it is there."""

        done: int

    done: pulumi.Output[int]

    @classmethod
    def replacing(cls, state: Mapping[str, Any], changed: set[str]) -> set[str]:
        """It goes with its VM to another node of the cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)
