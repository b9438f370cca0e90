"""Files as they are read: what can't be read is never taken for "nothing there"."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from remote_scripts.tools import disk
from remote_scripts.tools.device import Device
from remote_scripts.tools.errors import UnreadableError
from remote_scripts.tools.log import Log
from remote_scripts.tools.places import HOME as HOME
from remote_scripts.tools.run import Run
from remote_scripts.tools.text import ANSWER_BYTES, as_text
from remote_scripts.tools.time_limit import within_limit

#: No file that decides something is longer.
GREATEST_BYTES = 1 << 26
T = TypeVar("T")


class ReadFiles:
    """The files of a system.

    :param root: before every path.
    :param there: the disk that they are on; by default this system's.
    """

    def __init__(self, root: Path, log: Log, run: Run, there: disk.Disk | None = None) -> None:
        self._root = root
        self._log = log
        self._run = run
        self._disk = there or disk.Disk()
        #: Whether /etc/pve, once it hasn't answered, isn't waited for again.
        self.asks_pve_once = False
        self._pve_hangs = ""

    def at(self, path: str) -> Path:
        """Where a path of this system is, for this process.

        :raises ValueError: the system is a container, whose files this process never opens itself.
        """
        if not self._disk.is_near:
            raise ValueError(f"{path} of another system")
        return self._at(path)

    def name(self, path: str) -> str:
        """A path as programs of the system know it."""
        return str(self._at(path))

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    # Reading.

    def _of(self, path: str, look: Callable[[Path], T]) -> T:
        """What a look at a path shows. One at /etc/pve has an end: it hangs where its daemon does.

        :raises TimeoutError: it has no answer.
        """
        where = self._at(path)
        if not _is_pve(path):
            return look(where)
        if self._pve_hangs:
            raise TimeoutError(self._pve_hangs)
        try:
            return within_limit(lambda: look(where))
        except TimeoutError as error:
            self._pve_hangs = str(error) if self.asks_pve_once else ""
            raise

    def exists(self, path: str) -> bool:
        """A link counts, wherever it leads.

        :raises OSError: it can't be told.
        """
        return self._of(path, self._disk.exists)

    def is_file(self, path: str) -> bool:
        """Whether it is a file, or a link that leads to one."""
        return self._of(path, self._disk.is_file)

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder, or a link that leads to one."""
        return self._of(path, self._disk.is_folder)

    def is_link(self, path: str) -> bool:
        """Whether it is a symbolic link."""
        return self._of(path, self._disk.is_link)

    def target(self, path: str) -> str:
        """Where a symbolic link leads, as it says; empty: it is none."""
        return self._of(path, self._disk.target) if self.is_link(path) else ""

    def resolved(self, path: str) -> str:
        """The path that a path leads to, by all links; empty where there is nothing."""
        return self._disk.resolved(self._at(path)).removeprefix(self._real_root)

    @functools.cached_property
    def _real_root(self) -> str:
        return self._disk.resolved(self._root).rstrip("/") if str(self._root) != "/" else ""

    def real(self, path: str) -> str:
        """The path without links, whether anything is there or not."""
        root = os.path.realpath(self._root).rstrip("/")
        return os.path.realpath(self.at(path)).removeprefix(root) or "/"

    def need(self, path: str, limit: int = GREATEST_BYTES) -> bytes | None:
        """All that a file has; None: it isn't there.

        :raises UnreadableError: it is there, and can't be read, or has more than `limit` bytes.
        """
        try:
            content = self._of(path, functools.partial(self._look, path, limit))
        except OSError as error:
            raise UnreadableError(path, error.strerror or str(error)) from error
        if content is not None and len(content) > limit:
            raise UnreadableError(path, f"it is longer than {limit} bytes")
        return content

    def _look(self, path: str, limit: int, where: Path) -> bytes | None:
        look = functools.partial(self._disk.read, where, limit)
        return disk.steady(where, look) if _is_pve(path) else look()

    def need_text(self, path: str, limit: int = GREATEST_BYTES) -> str:
        """The same as text, in which bytes that are no UTF-8 are surrogates; empty: it isn't there."""
        return (self.need(path, limit) or b"").decode("utf-8", "surrogateescape")

    def read(self, path: str, limit: int = ANSWER_BYTES) -> bytes | None:
        """What a file has, at most `limit` bytes and one more, by which much can be told from all; None: it can't be
        read, or is no file.
        """
        try:
            return self._of(path, lambda where: self._disk.read(where, limit))
        except OSError:
            return None

    def text(self, path: str) -> str:
        """What a file has, as text without the newlines at its end; empty where it can't be read."""
        return as_text(self.read(path) or b"").rstrip("\n")

    def line(self, path: str) -> str:
        """The first line of a file; empty where it can't be read."""
        return as_text((self.read(path, 4096) or b"").partition(b"\n")[0])

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted; nothing where it can't be read."""
        return sorted(self._of(path, self._disk.names))

    def need_names(self, path: str) -> list[str]:
        """The same; nothing where there is no such folder.

        :raises UnreadableError: it is there, and can't be read.
        """
        try:
            return sorted(self._of(path, lambda _: os.listdir(self.at(path))))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UnreadableError(path, error.strerror or str(error)) from error

    def device(self, path: str) -> Device | None:
        """The character device at a path, links followed; None: there is none, or something else.

        :raises OSError: it can't be told.
        """
        try:
            status = os.stat(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISCHR(status.st_mode):
            return None
        return Device(os.major(status.st_rdev), os.minor(status.st_rdev), stat.S_IMODE(status.st_mode))

    def mode(self, path: str) -> int:
        """The permission bits of a file; of a link its own."""
        return self._disk.look(self._at(path))[0]

    def digest(self, path: str) -> str:
        """The SHA-256 of a file's content, links followed.

        :raises OSError: it can't be read.
        """
        return self._disk.digest(self._at(path))

    def _lines(self, path: str) -> list[str]:
        return self.need_text(path).splitlines()


def _is_pve(path: str) -> bool:
    return f"{path}/".startswith("/etc/pve/")
