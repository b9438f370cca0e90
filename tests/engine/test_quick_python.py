"""tests/quick_python: what the engine starts in the tests is the real program, started by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import install
from tests import quick_python
from tests.conftest import PROJECT


def host_of_the_program(engine: install.Engine, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """As the engine's language host starts it; its imports are on stderr."""
    environment = os.environ | {"PYTHONPATH": str(quick_python.FOLDER), "PYTHONPROFILEIMPORTTIME": "1"} | changes
    command = [sys.executable, str(engine.pulumi.with_name("pulumi-language-python-exec")), *arguments]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_a_process_of_the_engine_ends_as_its_fork_which_needs_no_imports(engine: install.Engine) -> None:
    with quick_python.server():
        done = host_of_the_program(engine)
    assert done.returncode == 2
    assert "PROGRAM" in done.stderr  # what it lacks
    assert "grpc" not in done.stderr


def test_one_server_in_anothers_time_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(quick_python.SERVER, "the session's")
    with quick_python.server():
        assert os.environ[quick_python.SERVER] != "the session's"
    assert os.environ[quick_python.SERVER] == "the session's"


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
