"""Workers share what is to be compiled (tests/compiled.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

from tests import compiled


def test_each_file_is_in_one_share(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"test_{number}.py").write_text("#" * (number % 4))
    files = {*tmp_path.iterdir()}
    shares = [compiled._share(files, number, 4) for number in range(4)]
    assert sorted(file for share in shares for file in share) == sorted(files)
    assert {len(share) for share in shares} == {2, 3}


def test_what_is_compiled_is_what_pytest_and_python_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    (tmp_path / "tests").mkdir()
    texts = {
        "test_whole.py": "def test() -> None:\n    assert 1 == 1\n",
        "test_broken.py": "def (",
        "plain.py": "A = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / "tests" / name).write_text(text)
    monkeypatch.setattr(compiled, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(pytestconfig, "args", [str(tmp_path / "tests"), f"{tmp_path}/missing.py::test_a"])
    compiled.compile_share(pytestconfig, 0, 1)
    made = {file.name for file in (tmp_path / "tests" / "__pycache__").iterdir()}
    plain = Path(importlib.util.cache_from_source(str(tmp_path / "tests" / "plain.py")))
    assert made == {f"test_whole{rewrite.PYC_TAIL}", plain.name}
    whole = tmp_path / "tests" / "test_whole.py"
    found = rewrite._read_pyc(whole, whole.parent / "__pycache__" / f"test_whole{rewrite.PYC_TAIL}")
    assert found is not None and found.co_filename == str(whole)
