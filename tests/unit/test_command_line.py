"""The command line as a shell uses it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT


@pytest.mark.parametrize("command", [["--help"], ["init", "--help"], ["outdated", "--help"], []], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_told_no_traceback(command: list[str]) -> None:
    """`homelab --help | head -n 1`: the reader has gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    run = [sys.executable, "-m", "homelab", *command]
    done = subprocess.run(run, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == "" and done.returncode in (0, 141)  # argparse passes over it by itself
