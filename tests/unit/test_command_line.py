"""The command line as a shell uses it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homelab import __version__
from homelab.cli.command_line import _is_unread, main
from homelab.doctor.whole import Whole
from tests.conftest import PROJECT


@pytest.mark.parametrize("command", [["--help"], ["init", "--help"], []], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_told_no_traceback(command: list[str]) -> None:
    """`homelab --help | head -n 1`: the reader has gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    run = [sys.executable, "-m", "homelab", *command]
    done = subprocess.run(run, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == "" and done.returncode in (0, 2, 141)  # argparse passes over it by itself


def test_windows_has_no_number_of_its_own_for_a_pipe_without_a_reader() -> None:
    unread, file = OSError(errno.EINVAL, "Invalid argument"), OSError(errno.EINVAL, "Invalid argument", "a?.json")
    assert [_is_unread(error, windows=True) for error in (unread, file)] == [True, False]
    assert [_is_unread(error, windows=False) for error in (unread, BrokenPipeError())] == [False, True]


def test_ctrl_c_is_told_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("homelab.cli.show.trees", interrupted)
    assert main(["show"]) == 130
    assert capsys.readouterr() == ("", "Interrupted. What a host has begun it brings to its end.\n")


def test_a_file_that_cant_be_written_is_told_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("homelab.cli.doctor.everything", lambda _: Whole("homelab", []))
    file = tmp_path / "none" / "report.json"
    assert main(["report", "--output", str(file)]) == 2
    assert f"wanted: to read or write {file}" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"homelab {__version__}\n"


def test_its_help_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
