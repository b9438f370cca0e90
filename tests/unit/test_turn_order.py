"""A VM that takes a card from containers comes after everything that needs that card, however many cards it has: its start ends the containers, and no step
of the driver's is possible while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_settings_reach_resources import at_each_registration, changed, told

__all__ = ["told"]

pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")

#: The last step of each: what hands over, the host's driver, both containers' devices, what is installed in one of them.
BEFORE = {"pve-handover", "pve-verified", "ai-opened", "ai-verified", "shared-opened"}


@pytest.fixture
def after(
    told: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], Callable[[str], set[str]]]:
    """What each resource waits for, itself or by others, by name."""

    def run(changes: dict[str, Any]) -> Callable[[str], set[str]]:
        names: dict[str, str] = {}
        waits: dict[str, set[str]] = {}

        def note(urn: str, request: Any) -> None:
            names[urn] = request.name
            waits[urn] = {*request.dependencies, *([request.parent] if request.parent else [])}

        at_each_registration(monkeypatch, note)
        told(changed(changes))

        def found(name: str) -> set[str]:
            (todo,) = ([urn] for urn in names if names[urn] == name)
            seen: set[str] = set()
            while todo:
                seen.add(urn := todo.pop())
                todo += waits.get(urn, set()) - seen
            return {names[urn] for urn in seen if urn in names}

        return found

    return run


@pytest.mark.parametrize(
    ("uses", "gpus", "installed", "waits"),
    [
        ({"rtx5090": "shared", "rtx4090": "lxc"}, ["rtx5090"], True, True),
        ({"rtx5090": "shared", "rtx4090": "shared"}, ["rtx5090", "rtx4090"], False, True),
        ({"rtx5090": "shared", "rtx4090": "vm"}, ["rtx5090", "rtx4090"], False, True),
        ({"rtx5090": "shared", "rtx4090": "vm"}, ["rtx4090", "rtx5090"], True, True),
        ({"rtx5090": "shared", "rtx4090": "vm"}, ["rtx4090"], True, False),
    ],
)
def test_it_comes_after_all_that_needs_the_card(
    after: Callable[[dict[str, Any]], Callable[[str], set[str]]],
    uses: dict[str, str],
    gpus: list[str],
    installed: bool,
    waits: bool,
) -> None:
    cards = {"rtx5090": "10de:2b85", "rtx4090": "10de:2684"}
    # The host restarts after it, and every VM comes after that.
    always = {"pve-handover"}
    settings: dict[str, Any] = {
        f"hosts.pve.gpus.{name}": {"match": cards[name], "use": use} for name, use in uses.items()
    }
    for name in ("shared", "ai"):
        settings[f"containers.{name}.gpus"] = ["rtx5090"]
    # Without software of its own in a container, nothing else but the host's waits for the driver.
    if not installed:
        settings["containers.ai.nvidia"] = None
    settings |= {"containers.ai.gpuAssignment": None, "vms.sandbox.gpus": [{"gpu": gpu} for gpu in gpus]}
    before = BEFORE if installed else BEFORE - {"ai-verified"}
    found = after(settings)
    assert found("sandbox-cards") & BEFORE == (before if waits else always)
    assert not any("sandbox-cards" in found(name) for name in before), "none of these waits for the VM in turn"
