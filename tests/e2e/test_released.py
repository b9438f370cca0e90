"""What earlier commits and releases from 2.0 on have left on a host and in a state: this one goes on from it, and gives all of it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import released
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import given_back


@pytest.mark.parametrize(
    "path", sorted(released.FOLDER.glob("2.*.tar.gz")), ids=lambda path: path.name.removesuffix(".tar.gz")
)
def test_a_host_and_a_state_of_a_release_are_gone_on_with_and_given_back(
    path: Path, stack_on: Callable[..., Stack]
) -> None:
    kept = released.KEPT[path.name.removesuffix(".tar.gz").partition("-")[2]]
    stack = stack_on(kept.scenario, **kept.settings)
    stock = stack.lab.snapshot()
    released.bring_back(stack, path)
    drivers, boots = stack.machine.drivers(), len(stack.lab.boots())

    stack.up("--refresh")
    assert (stack.machine.drivers(), len(stack.lab.boots())) == (drivers, boots)
    stack.destroy_as_left()
    given_back(stack, stock)
    assert not (stack.lab.root / "var/lib/homelab").exists()


def test_a_state_of_1_0_0_is_refused_before_anything_is_changed(stack_on: Callable[..., Stack]) -> None:
    kept = released.KEPT["rtx5090"]
    stack = stack_on(kept.scenario, **kept.settings)
    released.bring_back(stack, released.FOLDER / "1.0.0-rtx5090.tar.gz")
    host, programs = stack.lab.snapshot("etc", "boot", "var/lib/homelab"), stack.lab.programs()
    for command in ("preview",), ("up", "--yes", "--skip-preview"), ("refresh", "--yes", "--skip-preview"), ("destroy", "--yes", "--skip-preview"):  # fmt: skip
        done = stack.run(*command)
        assert done.code and "check out commit 082c80e5" in done.message and done.steps == [], done.output
    assert stack.lab.snapshot("etc", "boot", "var/lib/homelab") == host and stack.lab.programs() == programs
