"""tests/pip_once: real pip, asked once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT


def test_pip_list_is_asked_of_pip_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "tests" / "pip_once"), "PIP_ONCE": str(tmp_path / "kept")}
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
