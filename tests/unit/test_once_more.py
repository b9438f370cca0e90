"""What CI tries once more when tests have failed, and what it doesn't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT
from tests.once_more import AT_MOST

CHANCE = """
from pathlib import Path

def test_by_chance():
    ran = Path("ran")
    first = not ran.exists()
    ran.touch()
    assert not first

def test_well():
    with Path("well").open("a") as runs:
        runs.write("x")
"""
ALWAYS = "def test_never():\n    assert False\n"


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip


def tried(folder: Path, **modules: str) -> subprocess.CompletedProcess[str]:
    for name, text in modules.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    assert run(folder, "pytest", "-n", "2", "-p", "tests.once_more").returncode
    return run(folder, "tests.once_more")


def test_a_test_that_fails_by_chance_is_tried_alone_and_named(tmp_path: Path) -> None:
    again = tried(tmp_path, chance=CHANCE)
    assert again.returncode == 0
    assert again.stdout.count("test_chance.py::test_by_chance") == 2
    assert "They depend on chance, and need mending" in again.stdout
    assert (tmp_path / "well").read_text(encoding="utf-8") == "x"


def test_a_test_that_fails_twice_is_a_failure(tmp_path: Path) -> None:
    again = tried(tmp_path, chance=CHANCE, always=ALWAYS)
    assert again.returncode == 1
    assert "They depend on chance" not in again.stdout


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    again = tried(tmp_path, **{f"chance_{number}": ALWAYS for number in range(AT_MOST + 1)})
    assert again.returncode == 1
    assert f"{AT_MOST + 1} tests failed" in again.stderr


def test_a_run_that_was_broken_off_says_nothing_of_the_tests(tmp_path: Path) -> None:
    again = tried(tmp_path, chance=CHANCE, broken="import nothing_of_that_name\n")
    assert again.returncode == 1
    assert "did not run to their end" in again.stderr
    assert run(tmp_path / "..", "tests.once_more").returncode == 1
