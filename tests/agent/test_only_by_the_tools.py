"""No layer opens a file for writing, changes a name or starts a program but by remote_scripts/tools, whose calls are those before which the sweeps stop.

Each test of this tier is held to it (`only_by_the_tools` in conftest.py). Here: that one is heard which does such a thing itself.
"""

from __future__ import annotations

from pathlib import Path

from homelab.remote.scripts import FOLDER

ITSELF = "import os\nopen(place, 'w').close()\nopen(place).close()\nos.remove(place)\n"


def _done_by(module: str, place: Path) -> None:
    exec(compile(ITSELF, str(FOLDER / module), "exec"), {"place": str(place)})


def test_a_layer_that_does_it_itself_is_heard(only_by_the_tools: set[str], tmp_path: Path) -> None:
    _done_by("layers/cmdline.py", tmp_path / "x")
    heard = set(only_by_the_tools)
    only_by_the_tools.clear()
    assert heard == {"layers/cmdline.py:2: open", "layers/cmdline.py:4: os.remove"}


def test_the_tools_may(only_by_the_tools: set[str], tmp_path: Path) -> None:
    _done_by("tools/disk.py", tmp_path / "x")
    assert not only_by_the_tools
