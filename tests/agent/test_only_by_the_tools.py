"""No layer opens a file for writing, changes a name or starts a program but by remote_scripts/tools, whose calls are those before which the sweeps stop.

An audit hook of Python's hears it all (sys.addaudithook). It can't be taken away again, so the layers' tests run once more in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from homelab.remote.scripts import FOLDER
from tests.waiting import PATIENCE

HERE = Path(__file__).parent
#: Runs some tests, and says at the end which module of a layer did such a thing itself: the nearest frame of this program isn't one of the tools', nor a
#: test's that stands for the kernel or for a program of the host.
HEARD = """
import os, sys
import pytest
tools, stands, program = sys.argv[1:4]
found = set()
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr",
           "os.removexattr", "shutil.rmtree", "shutil.move", "shutil.copyfile", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"}
def hear(event, arguments):
    if event != "open" and event not in CHANGES:
        return
    if event == "open" and not arguments[2] & WRITES:
        return
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith((tools, stands)):
            return
        if file.startswith(program):
            found.add(f"{os.path.relpath(file, program)}:{frame.f_lineno}: {event}")
            return
        frame = frame.f_back
sys.addaudithook(hear)
status = pytest.main(["-q", "-p", "no:cacheprovider", "-n", "0", *sys.argv[4:]])
print("HEARD", sorted(found))
sys.exit(status)
"""


def _heard(*tests: str, program: Path = FOLDER) -> str:
    tools = f"{program / 'tools'}/"
    # -B: Python itself would write what it compiles of a test beside it.
    arguments = [sys.executable, "-B", "-c", HEARD, tools, f"{HERE}/", f"{program}/", *tests]
    done = subprocess.run(arguments, cwd=FOLDER.parent, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


#: Those that run a layer in their own process; sweeps do the same calls again and again.
TESTS = sorted(
    path
    for path in HERE.glob("test_*.py")
    if path.name != Path(__file__).name and "tests.agent.kit" in path.read_text() and "host.ask(" in path.read_text()
)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_layer_changes_anything_itself(path: Path) -> None:
    assert _heard(str(path), "-k", "not cut_short and not killed") == "HEARD []"


def test_one_that_does_is_heard(tmp_path: Path) -> None:
    """The same, with a layer that doesn't go by the tools."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "layer.py").write_text(
        "import os\ndef work(place):\n    open(place, 'w').close()\n    os.remove(place)\n"
    )
    (tmp_path / "test_layer.py").write_text("import layer\ndef test_it(tmp_path):\n    layer.work(tmp_path / 'x')\n")
    said = _heard(
        str(tmp_path / "test_layer.py"), "--rootdir", str(tmp_path), "--import-mode=prepend", program=tmp_path
    )
    assert said == "HEARD ['layer.py:3: open', 'layer.py:4: os.remove']"
