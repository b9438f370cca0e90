"""A lab's host as it was at a moment, running: what `Lab.save` keeps and `Lab.restore` brings back.

As a snapshot of a VM with its memory, restoring is no boot: the host and its guests go on in the boots that they were in. What is kept
is the state folder's files; sessions and what runs in them are not, so that a host is saved when nothing runs.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.state import StatePaths

_FOLDER = "saved"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Args:
    state: the lab's folder.
    boots: how many the host had made.
    guests: the VMs that ran, by id: when each was started, in seconds since 1970.
    environment: in which the host's commands run.
    """

    state: Path
    boots: int
    guests: dict[int, float]
    environment: dict[str, str]

    def keep(self) -> None:
        """Copy the files."""
        folder = self.state / _FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _copy(list(_files(self.state)), self.state, folder)

    def bring_back(self) -> None:
        """Put the files back, and take away what has come since."""
        for path in list(_files(self.state)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        folder = self.state / _FOLDER
        _copy(list(_files(folder)), folder, self.state)


def _files(state: Path) -> Iterator[Path]:
    """What belongs to the host: not the daemon's own files, which it keeps open or writes, nor the guests' keys, which stay the lab's."""
    paths = StatePaths(state)
    own = (paths.lab_file, paths.control_socket, paths.guest_key(0).parent, state / _FOLDER)
    for path in state.iterdir():
        if path == paths.daemon_log.parent:
            yield from (log for log in path.iterdir() if log != paths.daemon_log)
        elif path not in own:
            yield path


def _copy(files: list[Path], folder: Path, to: Path) -> None:
    # cp: guests' device nodes are sockets here and there, which Python's copytree can't copy.
    names = [f"./{path.relative_to(folder)}" for path in files]
    subprocess.run(["cp", "-a", "--parents", "--", *names, str(to)], cwd=folder, check=True)
