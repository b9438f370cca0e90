"""Stock hosts that are kept: who installs the same scenarios again and again, as tests do, has each installed once and its files written from then on.

An installation starts two dozen programs, and takes twenty times as long as writing what comes of it.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from lab.host.state import HostState, write_file
from lab.scenario import Scenario

#: The environment's variable with the folder that they are kept in, for all processes of one run of tests. Without it none are.
FOLDER = "LAB_KEPT_HOSTS"
_NETWORK = "network.json"
#: What an installation makes of a state folder. network.json isn't the scenario's.
_MADE = ("root", "esp", "bin", "machine.json", "scenario.yaml", "bash-env")
#: Path, mode with its kind, and a file's content or a link's target, in which this stands for the state folder.
_Entry = tuple[str, int, bytes]
_HERE = b"\0state folder\0"


def keep(scenario: Scenario, state: Path) -> None:
    """Keep a host that was installed just now."""
    _keep(_file(scenario, "installed"), state, _MADE)


def keep_running(scenario: Scenario, state: Path) -> None:
    """Keep a host that was booted just now for the first time; not one with a process that its boot has started."""
    guests = HostState(state).machine["guests"].values()
    if not any("process" in guest for guest in guests):
        _keep(_file(scenario, "running"), state, sorted({*os.listdir(state)} - {_NETWORK}))  # noqa: PTH208


def _keep(file: Path | None, state: Path, names: Iterable[str]) -> None:
    if file is None:
        return
    entries: list[_Entry] = []
    for name in names:
        _collect(f"{state}/{name}", name, os.fsencode(state), entries)
    temporary = f"{file}.{os.getpid()}"
    with open(temporary, "wb") as made:  # noqa: PTH123
        made.write(marshal.dumps(entries))
    os.replace(temporary, file)  # noqa: PTH105


def write(scenario: Scenario, state: Path) -> bool:
    """Write a scenario's host into a folder that has none of it; return False if none is kept."""
    return _write(_file(scenario, "installed"), state)


def write_running(scenario: Scenario, state: Path) -> bool:
    """The same for one that runs, since just now."""
    if not _write(_file(scenario, "running"), state):
        return False
    with HostState(state).changing_running() as running:
        running["started_at"] = time.time()
    return True


def _write(file: Path | None, state: Path) -> bool:
    if file is None or not file.exists():
        return False
    entries: list[_Entry] = marshal.loads(file.read_bytes())  # of this run  # noqa: S302
    state.mkdir(parents=True, exist_ok=True)
    here = os.fsencode(state)
    for name, mode, kept in entries:
        path, content = f"{state}/{name}", kept.replace(_HERE, here)
        if stat.S_ISLNK(mode):
            os.symlink(content, os.fsencode(path))  # noqa: PTH211
        elif stat.S_ISDIR(mode):
            os.mkdir(path)  # noqa: PTH102
            os.chmod(path, stat.S_IMODE(mode))  # noqa: PTH101
        elif stat.S_ISSOCK(mode):  # a guest's device node here and there
            os.mknod(path, mode)
            os.chmod(path, stat.S_IMODE(mode))  # noqa: PTH101
        elif "/" in name:
            write_file(path, content, stat.S_IMODE(mode))
        else:  # machine.json: a daemon may read it meanwhile
            write_file(f"{path}.new", content, stat.S_IMODE(mode))
            os.replace(f"{path}.new", path)  # noqa: PTH105
    return True


def _collect(path: str, name: str, state: bytes, entries: list[_Entry]) -> None:
    mode = os.lstat(path).st_mode
    content = b""
    if stat.S_ISLNK(mode):
        content = os.fsencode(os.readlink(path))  # noqa: PTH115
    elif stat.S_ISREG(mode):
        content = Path(path).read_bytes()
    entries.append((name, mode, content.replace(state, _HERE)))
    if stat.S_ISDIR(mode):
        for below in sorted(os.listdir(path)):  # noqa: PTH208
            _collect(f"{path}/{below}", f"{name}/{below}", state, entries)


def _file(scenario: Scenario, kind: str) -> Path | None:
    folder = os.environ.get(FOLDER)
    if not folder or scenario.cluster:  # a node writes into what it shares with the others
        return None
    # Programs in the tree name the Python and the checkout.
    told = "\0".join((kind, sys.executable, __file__, scenario.model_dump_json()))
    return Path(folder, hashlib.sha256(told.encode()).hexdigest())
