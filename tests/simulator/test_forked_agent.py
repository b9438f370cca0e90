"""The agent as a fork of the test's process has nothing to do with what that process has left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

from tests import forked_agent
from tests.boot_layers import initramfs


class _Left:
    """In a cycle, so that the next collection finds it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.itself = self

    def __del__(self) -> None:
        self.file.write_text(str(os.getpid()))


class _Collecting(dict[str, str]):
    """An environment that is a moment of collection for the process that takes it."""

    def __iter__(self) -> Iterator[str]:
        gc.collect()
        return super().__iter__()


def test_what_the_tests_process_has_left_is_collected_by_it_alone(tmp_path: Path) -> None:
    """A finalizer in the middle of the agent's parsing was a SystemError of Python 3.11 (gh-106905) in all tests of one moment."""
    collected = tmp_path / "collected"
    gc.collect()
    gc.disable()
    try:
        _Left(collected)
        asked = initramfs()
        forked = forked_agent.asked(
            _Collecting({"ROOT": str(tmp_path), "PATH": os.environ["PATH"]}), "plan", asked.layer, asked.wanted
        )
        assert "initramfs-tools" in forked.stdout  # it had its way to an answer
        assert not collected.exists()
    finally:
        gc.enable()
    gc.collect()
    assert collected.read_text() == str(os.getpid())
