"""Resources' types and names leave room, in a row of Pulumi's display, for what a step says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_settings_reach_resources import at_each_registration, changed, told

__all__ = ["told"]

# A row of the display is as wide as its widest type, with what draws the tree before it, and its widest name: no wider than what pulumi-command
# takes, and, with a host's name, not much wider than the stack's own.
TYPE_COLUMNS, LONGEST_WORD = len("│  ├─ command:remote:Command"), len("verified")

pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")


def test_a_row_of_the_display_leaves_room_for_what_a_step_says(
    told: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # ``type::name``, the type with those of its parents -> how deep it is in the tree.
    depths: dict[str, int] = {}
    # A URN of the mocks, which know one parent only -> the type with all parents.
    types_of: dict[str, str] = {}

    def note(urn: str, request: Any) -> None:
        if request.type != "pulumi:pulumi:Stack":
            above = types_of.get(request.parent, "")
            types_of[urn] = f"{above}${request.type}" if above else request.type
            name = f"{types_of[urn]}::{request.name}"
            assert name not in depths, name
            depths[name] = types_of[urn].count("$") + 1

    every_kind = {
        "hosts.pve.gpus.rtx5090.passthroughTest": True,
        "vms.sandbox.nvidia": {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"},
    }
    at_each_registration(monkeypatch, note)
    told(changed(every_kind))
    # The test of a card is named by it, and rarely asked for.
    ordinary = {name: depth for name, depth in depths.items() if not name.endswith("-test")}
    types = {name: 3 * depth + len(name.partition("::")[0].rpartition("$")[2]) for name, depth in ordinary.items()}
    assert {name: columns for name, columns in types.items() if columns > TYPE_COLUMNS} == {}
    owners = {"pve", "pve2", "sandbox", "made", "ai", "shared"}
    words = {name: name.rpartition("::")[2].partition("-")[2] for name in ordinary}
    assert {name.rpartition("::")[2].partition("-")[0] for name in ordinary} == owners
    assert {name: word for name, word in words.items() if len(word) > LONGEST_WORD} == {}
