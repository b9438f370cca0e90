"""What earlier releases have left on a host and in a state: this version goes on from it, and gives all of it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import released
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import given_back


@pytest.mark.parametrize(
    "path", sorted(released.FOLDER.glob("*.tar.gz")), ids=lambda path: path.name.removesuffix(".tar.gz")
)
def test_a_host_and_a_state_of_a_release_are_gone_on_with_and_given_back(
    path: Path, stack_on: Callable[..., Stack]
) -> None:
    scenario = path.name.removesuffix(".tar.gz").partition("-")[2]
    stack = stack_on(scenario, **released.SCENARIOS[scenario])
    stock = stack.lab.snapshot()
    released.bring_back(stack, path)
    drivers, boots = stack.drivers(), len(stack.lab.boots())

    stack.up("--refresh")
    assert (stack.drivers(), len(stack.lab.boots())) == (drivers, boots)
    again = stack.up()
    assert again.changed == set(), again.output

    stack.destroy_as_left()
    given_back(stack, stock)
    assert not (stack.lab.root / "var/lib/homelab").exists()
