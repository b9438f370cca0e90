"""Stock hosts that are kept: who installs the same scenarios again and again, as tests do, has each installed once and its files written from then on.

An installation starts two dozen programs, and takes twenty times as long as writing what comes of it.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import sys
from pathlib import Path

from lab.host.state import write_file
from lab.scenario import Scenario

#: The environment's variable with the folder that they are kept in, for all processes of one run of tests. Without it none are.
FOLDER = "LAB_KEPT_HOSTS"
#: What an installation makes of a state folder. network.json isn't the scenario's.
_MADE = ("root", "esp", "bin", "machine.json", "scenario.yaml", "bash-env")
#: Path, mode with its kind, and a file's content or a link's target.
_Entry = tuple[str, int, bytes | str]


def keep(scenario: Scenario, state: Path) -> None:
    """Keep a host that was installed just now."""
    file = _file(scenario)
    if file is None:
        return
    entries: list[_Entry] = []
    for name in _MADE:
        _collect(state / name, name, entries)
    temporary = f"{file}.{os.getpid()}"
    with open(temporary, "wb") as made:  # noqa: PTH123
        made.write(marshal.dumps(entries))
    os.replace(temporary, file)  # noqa: PTH105


def write(scenario: Scenario, state: Path) -> bool:
    """Write a scenario's host into a folder that has none of it; return False if none is kept."""
    file = _file(scenario)
    if file is None or not file.exists():
        return False
    entries: list[_Entry] = marshal.loads(file.read_bytes())  # of this run  # noqa: S302
    for name, mode, content in entries:
        path = f"{state}/{name}"
        if stat.S_ISLNK(mode):
            os.symlink(content, path)  # noqa: PTH211
        elif stat.S_ISDIR(mode):
            os.mkdir(path)  # noqa: PTH102
            os.chmod(path, stat.S_IMODE(mode))  # noqa: PTH101
        elif "/" in name:
            write_file(path, os.fsencode(content), stat.S_IMODE(mode))
        else:  # machine.json: a daemon may read it meanwhile
            write_file(f"{path}.new", os.fsencode(content), stat.S_IMODE(mode))
            os.replace(f"{path}.new", path)  # noqa: PTH105
    return True


def _collect(path: Path, name: str, entries: list[_Entry]) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        entries.append((name, mode, os.readlink(path)))  # noqa: PTH115
    elif stat.S_ISDIR(mode):
        entries.append((name, mode, b""))
        for below in sorted(os.listdir(path)):  # noqa: PTH208
            _collect(path / below, f"{name}/{below}", entries)
    else:
        entries.append((name, mode, path.read_bytes()))


def _file(scenario: Scenario) -> Path | None:
    folder = os.environ.get(FOLDER)
    if not folder or scenario.cluster:  # a node writes into what it shares with the others
        return None
    # Programs in the tree name the Python and the checkout.
    told = "\0".join((sys.executable, __file__, scenario.model_dump_json()))
    return Path(folder, hashlib.sha256(told.encode()).hexdigest())
