"""A state that an earlier version of the program left: this one goes on with it, and gives everything back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import kept
from tests.e2e.conftest import Stack


def named(path: Path) -> str:
    return path.name.removesuffix(".json.gz")


# What a later version has beside: this program's scripts on the host.
NEW = [("create", "pve"), ("create", "pve-put"), ("create", "pve-scripts")]
VERSIONS = sorted(kept.FOLDER.glob("*.json.gz"))


@pytest.mark.parametrize("version", [one for one in VERSIONS if kept.scenario(one) == "rtx5090"], ids=named)
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


@pytest.mark.parametrize("version", [one for one in VERSIONS if kept.scenario(one) != "rtx5090"], ids=named)
def test_every_resource_of_an_older_state_is_found_again_and_given_back(
    stack_on: Callable[..., Stack], version: Path
) -> None:
    """What is inside a container isn't kept, so nothing is done there: an act may be foreseen once more, but nothing comes anew or goes. But for
    what later versions have beside: the service that follows a boot."""
    stack, before = as_kept(stack_on, version)
    planned = stack.preview().planned
    made = [step for step in planned if step[0] in ("create", "delete")]
    assert made == [*NEW, ("create", "pve"), ("create", "pve-cards")]
    assert not {urn for urn in stack.urns() if urn.split("::")[-2].endswith("CardNodes")}, "kept with it: not new"
    # Destroyed as it is.
    stack.destroy()
    assert_given_back(stack, before)


@pytest.mark.parametrize("version", [one for one in VERSIONS if kept.scenario(one) == "rtx5090"], ids=named)
def test_an_older_state_is_destroyed_as_it_is(stack_on: Callable[..., Stack], version: Path) -> None:
    stack, before = as_kept(stack_on, version)
    stack.destroy()
    assert_given_back(stack, before)


def as_kept(stack_on: Callable[..., Stack], version: Path) -> tuple[Stack, dict[str, Any]]:
    """A stack that goes on with what was kept, and what its host had before."""
    scenario = kept.scenario(version)
    stack = stack_on(scenario, **kept.STACKS[scenario])
    before = {**kept.files(stack.lab), **kept.links(stack.lab)}
    kept.restore(stack, kept.read(version))
    return stack, before


def assert_given_back(stack: Stack, before: dict[str, Any]) -> None:
    after = {**kept.files(stack.lab), **kept.links(stack.lab)}
    # Proxmox VE keeps the file of its last mapping.
    assert after.pop("etc/pve/mapping/pci.cfg", (0, b""))[1] in (b"", b"\n")
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} == set()
