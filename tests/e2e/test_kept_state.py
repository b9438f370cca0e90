"""A state that an earlier version of the program left: this one goes on with it, and gives everything back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kept
from tests.e2e.conftest import Stack


def named(path: Path) -> str:
    return path.name.removesuffix(".json.gz")


# What a later version has beside: this program's scripts on the host.
NEW = [("create", "pve"), ("create", "pve-put"), ("create", "pve-scripts")]


def of(scenario: str) -> list[Path]:
    """What was kept of it, of each version."""
    return [one for one in sorted(kept.FOLDER.glob("*.json.gz")) if kept.scenario(one) == scenario]


@pytest.mark.parametrize("version", of("rtx5090"), ids=named)
def test_an_older_state_goes_on_without_a_replacement_or_a_reboot(
    stack_on: Callable[..., Stack], version: Path
) -> None:
    stack, before = as_kept(stack_on, version)
    boots = len(stack.lab.boots())
    known = stack.urns()
    for arguments in ((), ("--refresh",)):
        result = stack.up(*arguments)
        done = [step for step in result.steps if step[0] not in ("same", "update", "refresh", "read")]
        assert done == ([] if arguments else NEW), result.output
    now = [urn for urn in stack.urns() if "HostScripts" not in urn.split("::")[-2]]
    # Each of them under its present name, and none twice.
    assert len(now) == len(known) and not [urn for urn in now if "homelab:index:" in urn]
    assert len(stack.lab.boots()) == boots
    stack.destroy()
    assert_given_back(stack, before)


@pytest.mark.parametrize("version", of("bound-by-hand"), ids=named)
def test_an_older_state_with_nvidias_stack_in_a_vm_goes_on_without_a_replacement_or_a_reboot(
    stack_on: Callable[..., Stack], version: Path
) -> None:
    """Its resources have settings and inputs that it doesn't know, and other scripts. So what looks and what verifies is done again, by an update."""
    stack, before = as_kept(stack_on, version)
    mark, known = stack.lab.mark(), stack.urns()
    first = stack.up()
    assert [step for step in first.steps if step[0] != "update"] == NEW, first.output
    assert {"sandbox-reboot", "sandbox-verified"} <= first.changed
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
    assert len([urn for urn in stack.urns() if "HostScripts" not in urn.split("::")[-2]]) == len(known)
    assert (stack.lab.boots(mark), stack.lab.guest_boots(103, mark)) == ([], [])
    stack.destroy()
    assert_given_back(stack, before)


@pytest.mark.parametrize("version", of("phoenix"), ids=named)
def test_an_older_state_with_a_container_goes_on_without_a_restart(
    stack_on: Callable[..., Stack], version: Path
) -> None:
    """What is inside the container isn't kept: NVIDIA's libraries are installed there anew, and verified by another one for that."""
    stack, before = as_kept(stack_on, version)
    boots, mark = len(stack.lab.boots()), stack.lab.mark()
    first = stack.up()
    others = [step for step in first.steps if step[0] != "update"]
    assert [step for step in others if step[0] == "create"] == [*NEW, ("create", "pve"), ("create", "pve-cards")]
    assert [name for operation, name in others if operation == "replace"] == ["ai-lab-verified"], first.output
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
    assert len(stack.lab.boots()) == boots and stack.container_power(901, mark) == []
    stack.destroy()
    assert_given_back(stack, before)


@pytest.mark.parametrize("version", of("rtx5090"), ids=named)
def test_an_older_state_is_destroyed_as_it_is(stack_on: Callable[..., Stack], version: Path) -> None:
    stack, before = as_kept(stack_on, version)
    stack.destroy()
    assert_given_back(stack, before)


def as_kept(stack_on: Callable[..., Stack], version: Path) -> tuple[Stack, kept.Found]:
    """A stack that goes on with what was kept, and what its host had before."""
    scenario = kept.scenario(version)
    stack = stack_on(scenario, **kept.STACKS[scenario])
    kept.reach_guests(stack)
    before = kept.Found.of(stack)
    kept.restore(stack, kept.read(version))
    return stack, before


def assert_given_back(stack: Stack, before: kept.Found) -> None:
    there, after = before.on_host(), kept.Found.of(stack).on_host()
    # Proxmox VE keeps the file of its last mapping.
    assert after.pop("etc/pve/mapping/pci.cfg", (0, b""))[1] in (b"", b"\n")
    assert {path for path in {*there, *after} if there.get(path) != after.get(path)} == set()
