"""Whose a process is: what ends when a guest goes down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.processes import of_system


def started(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A shell with a child: both wait until it is killed."""
    return subprocess.Popen(
        ["/bin/bash", "-c", "sleep 600 & echo $!; wait"], cwd=folder, env=environment, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("guests_by", ["folder", "environment"])
def test_what_works_in_a_guests_tree_or_environment_is_the_guests_with_what_it_started(
    tmp_path: Path, guests_by: str
) -> None:
    state = tmp_path / "guests" / "qemu-103"
    (state / "root").mkdir(parents=True)
    folder, environment = (state / "root", {}) if guests_by == "folder" else (tmp_path, {"LAB_STATE": str(state)})
    with started(folder, {"PATH": "/usr/bin:/bin", **environment}) as shell:
        assert shell.stdout is not None
        command = int(shell.stdout.readline())
        try:
            assert {pid for pid, _ in of_system(state)} == {shell.pid, command}
        finally:
            subprocess.run(["/bin/kill", "-9", str(command), str(shell.pid)], check=True)
