"""Each scenario of the lab has its stack, so that `make up SCENARIO=…` shows what it is for."""

from __future__ import annotations

from homelab import tables
from homelab.settings import Gpu
from lab.scenario import load_scenario, scenario_names
from tests.conftest import PROJECT


def test_a_container_that_runs_gets_the_drivers_libraries_with_its_card() -> None:
    for path in (PROJECT / "lab" / "stacks").glob("*.yaml"):
        guests = {guest.id: guest for guest in load_scenario(path.stem).guests}
        for name, container in tables.read(path).get("containers", {}).items():
            guest = guests[container["ctid"]]
            assert "nvidia" in container or guest.nvidia or not guest.onboot, f"{path.stem}: {name}"


def test_every_scenario_has_a_stack_with_valid_cards() -> None:
    stacks = {path.stem: tables.read(path) for path in (PROJECT / "lab" / "stacks").glob("*.yaml")}
    assert sorted(stacks) == sorted(scenario_names())
    for stack in stacks.values():
        assert [Gpu.model_validate(gpu) for gpu in stack["gpus"].values()]
