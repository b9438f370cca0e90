"""tests/scratch.py: where the temporary files of `make test` are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import scratch
from tests.conftest import PROJECT

SEEN = (
    "import os, tempfile; print(open(tempfile.mkstemp()[1], 'w').name, os.environ.get('TMPDIR')); raise SystemExit(3)"
)


@pytest.mark.parametrize(
    ("meminfo", "room"),
    [("MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n", True), ("MemAvailable: 6000000 kB\n", False), ("", False)],
)
def test_memory_is_taken_where_there_is_room(meminfo: str, room: bool) -> None:
    assert scratch.has_room(meminfo) is room


@pytest.mark.parametrize("own", [False, True], ids=["as it is", "TMPDIR"])
def test_a_run_has_its_status_and_leaves_no_file(tmp_path: Path, own: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment |= {"TMPDIR": str(tmp_path)} if own else {}
    done = subprocess.run(
        [sys.executable, "-m", "tests.scratch", "-c", SEEN],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    file, said = done.stdout.split()[:2]
    assert done.returncode == 3, done.stderr
    if own:
        assert Path(file).parent == tmp_path and said == str(tmp_path) and Path(file).exists()
    elif said != "None":  # there is memory, and we may
        assert Path(file).is_relative_to(said) and not Path(said).exists() and "were in memory" in done.stdout
