"""The fixtures of a host that is nothing but a folder; and what every test of this tier is held to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from homelab.remote.scripts import FOLDER
from remote_scripts.pve import api
from tests.agent.boot_kit import loader, stocked_boot
from tests.agent.card_kit import box
from tests.agent.cluster_kit import clock
from tests.agent.handover_kit import only
from tests.agent.kit import host

__all__ = ["box", "clock", "host", "loader", "only", "stocked_boot"]

_PROGRAM, _TOOLS, _TESTS = f"{FOLDER}/", f"{FOLDER / 'tools'}/", f"{Path(__file__).parent}/"
#: Keeps the bytecode of what is imported.
_IMPORTS = "<frozen importlib"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_BY_NAME = ("rename", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "utime")
_CHANGES = frozenset(
    {f"os.{call}" for call in _BY_NAME}
    | {"os.setxattr", "os.removexattr", "shutil.rmtree", "shutil.move", "shutil.copyfile"}
    | {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"}
)
#: Of the test that runs: which line of the program did what itself.
_found: list[set[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _found or (not arguments[2] & _WRITES if event == "open" else event not in _CHANGES):
        return
    # The nearest frame that is the program's or a test's: a test stands for the kernel, or for a program of the host.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith((_TOOLS, _TESTS, _IMPORTS)):
            return
        if file.startswith(_PROGRAM):
            _found[-1].add(f"{file.removeprefix(_PROGRAM)}:{frame.f_lineno}: {event}")
            return
        frame = frame.f_back


@pytest.fixture(autouse=True)
def _pvedaemon() -> Iterator[None]:
    """A host that is a folder has one where a test says what it answers (api_kit.py)."""
    # Not the fixture monkeypatch: a test's own must be undone before its folder goes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "exchange", lambda system, text: system.run.ask("pvedaemon", stdin=text).output)
        yield


@cache
def _begin_to_hear() -> None:
    sys.addaudithook(_hear)  # for good: Python takes none away


@pytest.fixture(autouse=True)
def only_by_the_tools() -> Iterator[set[str]]:
    """No layer changes a file or starts a program itself (test_only_by_the_tools.py)."""
    _begin_to_hear()
    _found.append(set())
    try:
        yield _found[-1]
        assert not _found[-1], "a layer did this itself, and not by remote_scripts/tools"
    finally:
        _found.pop()
