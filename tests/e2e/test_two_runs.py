"""Two runs at once on one host, of stacks with states of their own, as from two machines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from engine import install
from homelab.remote import guard
from tests.e2e.conftest import Stack
from tests.lab.host_kit import settings_of
from tests.waiting import PATIENCE


def test_the_second_run_gets_one_sentence_and_the_host_one_reboot(
    stack_on: Callable[..., Stack], engine: install.Engine, tmp_path: Path
) -> None:
    first = stack_on("rtx5090")
    (tmp_path / "second").mkdir()
    second = Stack(tmp_path / "second", engine, copy.deepcopy(first.config), lab=first.lab)
    second.create()
    # The first has the host from here on; its first script waits until the second has been answered.
    first.lab.fault("script-hangs", "NAME=iommu")
    running = first.start("up", "--yes", "--skip-preview")
    first.lab.wait_command("NAME=iommu", timeout=PATIENCE)
    refused = second.up(ok=False)
    assert refused.message.count("wanted:") == 1, refused.message
    assert "to be the only run at work on this host" in refused.message and "since 20" in refused.message
    first.kill(running)
    first.lab.fault("script-hangs", None)
    # It was killed: nothing has to be cleared away, and whoever comes next makes the one reboot.
    first.run("cancel", "--yes")
    second.up()
    assert len(first.lab.boots()) == 2


def test_a_destroy_beside_another_run_gets_one_sentence_and_gives_back_nothing(converged: Callable[..., Stack]) -> None:
    stack = converged("rtx5090")
    configured = stack.lab.snapshot()
    guard.hold("another", settings_of(stack.lab))
    try:
        refused = stack.destroy(ok=False)
        assert refused.message.count("wanted:") == 1, refused.message
        assert "to be the only run at work on this host" in refused.message
        assert stack.lab.snapshot() == configured
    finally:
        guard.release("another")
