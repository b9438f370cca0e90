"""tests/quick_python: what the engine and people start in the tests is the real program, started by a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.engine import install
from lab.host.command_server import MARK
from tests import quick_python
from tests.conftest import PROJECT
from tests.engine_stack import kill_tree
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """Its imports take two seconds."""
    with quick_python.server():
        yield


def started(folder: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A Python in a folder; its imports are on stderr."""
    environment = os.environ | {"PYTHONPATH": str(quick_python.FOLDER), "PYTHONPROFILEIMPORTTIME": "1"} | changes
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def host_of_the_program(engine: install.Engine, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """As the engine's language host starts it."""
    return started(PROJECT, str(engine.pulumi.with_name("pulumi-language-python-exec")), *arguments, **changes)


def test_a_process_of_the_engine_ends_as_its_fork_which_needs_no_imports(engine: install.Engine, server: None) -> None:
    done = host_of_the_program(engine)
    assert done.returncode == 2
    assert "PROGRAM" in done.stderr  # what it lacks
    assert "grpc" not in done.stderr


def test_a_command_is_a_fork_in_the_projects_folder_and_where_a_test_has_links_to_its_parts(
    tmp_path: Path, server: None
) -> None:
    (tmp_path / "homelab").symlink_to(PROJECT / "homelab")
    (tmp_path / "another" / "homelab").mkdir(parents=True)
    for folder in (PROJECT, tmp_path):
        done = started(folder, "-m", "homelab", "--help")
        assert (done.returncode, done.stdout[:6]) == (0, "usage:") and "homelab" not in done.stderr, done.stderr
    # Which has a program of its own.
    assert "homelab" in started(tmp_path / "another", "-m", "homelab", "--help").stderr


def test_who_is_killed_with_all_that_it_started_is_killed_with_its_fork(server: None) -> None:
    environment = os.environ | {"PYTHONPATH": str(quick_python.FOLDER)}
    command = [sys.executable, "-m", "homelab.provider", "127.0.0.1:1"]
    client = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE)
    assert client.stdout and client.stdout.readline().strip().isdigit()  # its port
    names = {path.parent.name: path.read_text() for path in Path("/proc").glob("[0-9]*/comm")}
    [fork] = [int(pid) for pid, name in names.items() if name == f"{MARK}{client.pid}\n"]
    its_server = int(state_of(fork)[1])
    os.kill(its_server, signal.SIGSTOP)  # it would do the same, later
    try:
        kill_tree(client.pid)
        wait_until(lambda: state_of(fork)[0] == "Z")
    finally:
        os.kill(its_server, signal.SIGCONT)
    client.communicate()


def state_of(process: int) -> list[str]:
    """Its state, its parent and what follows in /proc/PID/stat."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


@pytest.mark.parametrize("name", ["", "nobody-listens"])
def test_without_a_server_it_makes_its_imports_itself(engine: install.Engine, name: str) -> None:
    done = host_of_the_program(engine, QUICK_PYTHON=name)
    assert done.returncode == 2
    assert "grpc" in done.stderr


def test_pip_list_is_asked_of_pip_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(quick_python.FOLDER), "PIP_ONCE": str(tmp_path / "kept")}
    command = [sys.executable, "-m", "pip", "list", "-v", "--format", "json"]
    first = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert b'"pulumi"' in first
    [kept] = (tmp_path / "kept").iterdir()
    assert kept.read_bytes() == first
    kept.write_bytes(first + b" " * (1 << 17))  # more than a pipe takes at once
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == kept.read_bytes()
    with_another_option = subprocess.run([*command, "--local"], env=environment, capture_output=True, check=True)
    assert b'"pulumi"' in with_another_option.stdout
    assert len(list((tmp_path / "kept").iterdir())) == 2
