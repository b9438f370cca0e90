"""run_guard.sh: one run at a time on a host, for as long as its client's end of the connection is open and says something."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder
from tests.waiting import PATIENCE


@contextmanager
def run(folder: Folder, who: str, silence: str = "60", handing: str = "45") -> Iterator[subprocess.Popen[str]]:
    text = scripts.compose("run_guard.sh", WHO=who)
    for name, was, value in (("SILENCE", 60, silence), ("PATIENCE", 5, "0.2"), ("HANDING", 45, handing)):
        assert f"{name}_SECONDS={was}\n" in text
        text = text.replace(f"{name}_SECONDS={was}\n", f"{name}_SECONDS={value}\n")
    process = subprocess.Popen(
        ["bash", "-s", "--", "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=folder.environment
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(text)
    process.stdin.flush()
    with process:
        yield process
        process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


HELD = '{"held":"yes"}\n'


def test_the_second_is_told_who_is_at_work_and_the_first_goes_on(folder: Folder) -> None:
    with run(folder, "anna on desk, since 14:02") as first:
        assert answer(first) == HELD
        with run(folder, "ben") as second:
            said, _ = second.communicate()
        assert second.returncode == 1
        assert "found:  another one is: anna on desk, since 14:02\n" in said and "this run changes nothing more" in said
        assert first.poll() is None


@pytest.mark.parametrize("end", ["its input ends", "it is told to end", "it is killed", "it hears nothing any more"])
def test_the_host_is_free_again_however_the_first_ends(folder: Folder, end: str) -> None:
    with run(folder, "anna", silence="0.3" if end == "it hears nothing any more" else "60") as first:
        assert answer(first) == HELD and first.stdin is not None
        if end == "its input ends":
            first.stdin.close()
        elif end != "it hears nothing any more":
            first.send_signal(signal.SIGTERM if end == "it is told to end" else signal.SIGKILL)
        first.wait(timeout=PATIENCE)
        with run(folder, "ben") as second:
            assert answer(second) == HELD


def test_it_goes_on_for_as_long_as_it_hears_something(folder: Folder) -> None:
    with run(folder, "anna", silence="2") as first:
        assert answer(first) == HELD and first.stdin is not None
        for _ in range(8):
            with pytest.raises(subprocess.TimeoutExpired):
                first.wait(timeout=0.4)
            first.stdin.write("\n")
            first.stdin.flush()


def test_a_full_run_keeps_nobody_from_holding_the_host(folder: Folder) -> None:
    """What it needs no byte of disk for, and a `destroy` may be what makes room."""
    folder.write("/run/homelab/up", "")
    (folder.root / "run/homelab/up").unlink()
    (folder.root / "run/homelab/up").symlink_to("/dev/full")
    with run(folder, "anna") as first:
        assert answer(first) == HELD
        assert first.poll() is None
