"""A machine that can't run the metal tier is told all that it lacks, at once; one that can runs one emulated host at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab.errors import HomelabError
from tests.conftest import PROJECT
from tests.metal import image, prerequisites
from tests.waiting import wait_until

_TURN = """
import sys
from tests.metal import image
with image.alone():
    print("mine", flush=True)
    sys.stdin.read()
"""


def lacking(name: str) -> Callable[..., str | None]:
    return lambda program, path=None: None if program in (name, "newuidmap") else f"/usr/bin/{program}"


def test_a_missing_program_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lacking("qemu-img"))
    monkeypatch.setattr(prerequisites, "FILES", {"/nowhere/OVMF.fd": "ovmf"})
    with pytest.raises(HomelabError) as error:
        prerequisites.check(image=False)
    assert error.value.found == "missing: ovmf, qemu-utils"
    assert error.value.next == "apt-get install ovmf qemu-utils"


def test_a_user_who_may_not_run_mmdebstrap_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lacking("no such program"))
    monkeypatch.setattr(prerequisites, "FILES", {})
    with pytest.raises(HomelabError, match="mmdebstrap can't run"):
        prerequisites.check()
    prerequisites.check(image=False)


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HomelabError, match="this is darwin"):
        prerequisites.check()


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "mirror", lambda: ("bookworm", ["deb one"]))
    first = image.recipe()
    assert image.recipe() == first
    monkeypatch.setattr(image, "mirror", lambda: ("bookworm", ["deb another"]))
    assert image.recipe() != first


def waits_for_a_lock(process: subprocess.Popen[str]) -> bool:
    # proc(5): a line with an arrow is of one that waits.
    lines = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
    return any(line[1] == "->" and str(process.pid) in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="the metal tier and /proc/locks are Linux's")
def test_a_run_waits_for_another_one_to_end_however_that_ends(tmp_path: Path) -> None:
    def take_turn() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _TURN]
        environ = os.environ | {"HOMELAB_CACHE": str(tmp_path)}
        return subprocess.Popen(
            command, cwd=PROJECT, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    with take_turn() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "mine\n"
        with take_turn() as second:
            assert second.stdout is not None
            wait_until(lambda: waits_for_a_lock(second))
            first.kill()
            assert second.stdout.readline() == "mine\n"
            second.kill()
