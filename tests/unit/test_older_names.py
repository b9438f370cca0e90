"""Resources that version 1.0 called otherwise: each is found again, so that a state of it goes on without one being made or deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pulumi.runtime import mocks

from tests.unit.test_settings_reach_resources import changed, told

__all__ = ["told"]

# What version 1.0 called the resources of a stack that has every kind: type::name, as in a URN.
RECORDED = Path(__file__).parent / "older_names.yaml"
EVERY_KIND = {
    "hosts.pve.gpus.rtx5090.passthroughTest": True,
    "vms.sandbox.nvidia": {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"},
}
# A row of the display is as wide as its widest type, with what draws the tree before it, and its widest name: no wider than what pulumi-command
# takes, and, with a host's name, not much wider than the stack's own.
TYPE_COLUMNS, LONGEST_WORD = len("│  ├─ command:remote:Command"), len("verified")


class Registered:
    """What the engine is asked for, as URNs without the stack: ``type::name`` -> those under which it may be found."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {}
        self.depth: dict[str, int] = {}
        self._types: dict[str, str] = {}  # a URN of the mocks, which know one parent only -> the type with all parents

    def note(self, urn: str, request: Any) -> None:
        above = self._types.get(request.parent, "")
        self._types[urn] = self._below(above, request.type)
        former = set()
        for alias in request.aliases:
            spec = alias.spec
            # With no help of what the engine makes of a parent's aliases: after an interrupted run a parent may have its new name already.
            parents = above if not spec.parentUrn else spec.parentUrn.split("::")[2]
            former.add(f"{self._below(parents, spec.type or request.type)}::{spec.name or request.name}")
        name = f"{self._types[urn]}::{request.name}"
        assert name not in self.found, name
        self.found[name] = former
        self.depth[name] = self._types[urn].count("$") + 1

    @staticmethod
    def _below(above: str, kind: str) -> str:
        return kind if above in ("", "pulumi:pulumi:Stack") else f"{above}${kind}"


pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")


@pytest.fixture
def registered(
    told: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], Registered]:
    def run(changes: dict[str, Any]) -> Registered:
        noted = Registered()
        inherited: Any = mocks.MockMonitor.RegisterResource

        def register(monitor: mocks.MockMonitor, request: Any) -> Any:
            response = inherited(monitor, request)
            if request.type != "pulumi:pulumi:Stack":
                noted.note(response.urn, request)
            return response

        monkeypatch.setattr(mocks.MockMonitor, "RegisterResource", register)
        told(changed(changes))
        return noted

    return run


def test_each_resource_of_version_1_0_is_found_again_by_one_resource_alone(
    registered: Callable[[dict[str, Any]], Registered],
) -> None:
    recorded = yaml.safe_load(RECORDED.read_text(encoding="utf-8"))
    now = registered(EVERY_KIND).found
    takers = {old: [new for new, former in now.items() if old == new or old in former] for old in recorded}
    assert {old: new for old, new in takers.items() if len(new) != 1} == {}
    assert len({new for [new] in takers.values()}) == len(recorded)


def test_a_row_of_the_display_leaves_room_for_what_a_step_says(
    registered: Callable[[dict[str, Any]], Registered],
) -> None:
    found = registered(EVERY_KIND).depth
    # The test of a card has its command one deeper than all others, and is rarely asked for.
    ordinary = {name: depth for name, depth in found.items() if "PassthroughTest" not in name}
    types = {name: 3 * depth + len(name.partition("::")[0].rpartition("$")[2]) for name, depth in ordinary.items()}
    assert {name: columns for name, columns in types.items() if columns > TYPE_COLUMNS} == {}
    owners = {"pve", "pve2", "sandbox", "made", "ai", "shared"}
    words = {name: name.rpartition("::")[2].partition("-")[2] for name in ordinary}
    assert {name.rpartition("::")[2].partition("-")[0] for name in ordinary} == owners
    assert {name: word for name, word in words.items() if len(word) > LONGEST_WORD} == {}
