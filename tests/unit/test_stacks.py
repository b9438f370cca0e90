"""Each scenario of the lab has its stack, so that `make up SCENARIO=…` shows what it is for."""

from __future__ import annotations

import yaml

from homelab.settings import Gpu
from lab.machine import scenario_names
from tests.conftest import PROJECT


def test_every_scenario_has_a_stack_with_valid_cards() -> None:
    stacks = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (PROJECT / "lab" / "stacks").glob("*.yaml")
    }
    assert sorted(stacks) == sorted(scenario_names())
    for stack in stacks.values():
        assert [Gpu.model_validate(gpu) for gpu in stack["gpus"].values()]
