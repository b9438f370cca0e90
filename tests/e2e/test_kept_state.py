"""A state that an earlier version of the program left: this one goes on with it, and gives everything back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kept
from tests.e2e.conftest import Stack

VERSIONS = sorted(kept.FOLDER.glob("*.json.gz"))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_an_older_state_goes_on_without_a_replacement_or_a_reboot(
    stack_on: Callable[..., Stack], version: Path
) -> None:
    stack = stack_on("rtx5090", vms=kept.VMS)
    before = {**kept.files(stack.lab), **kept.links(stack.lab)}
    kept.restore(stack, kept.read(version))
    boots = len(stack.lab.boots())
    known = set(stack.urns())
    for arguments in ((), ("--refresh",)):
        result = stack.up(*arguments)
        assert not {operation for operation, _ in result.steps} - {"same", "update", "refresh", "read"}, result.output
    assert set(stack.urns()) == known and len(stack.lab.boots()) == boots
    stack.destroy()
    after = {**kept.files(stack.lab), **kept.links(stack.lab)}
    # Proxmox VE keeps the file of its last mapping.
    assert after.pop("etc/pve/mapping/pci.cfg")[1] in (b"", b"\n")
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} == set()
