"""The disk of a host that is nothing but a folder, and what a power cut leaves on it.

Of a power cut there are two disks: on one nothing is but what was flushed (`sync`), by the strictest reading of POSIX: a file's bytes by
flushing the file, its name by flushing the directory. On the other every name is, as a journal may have it, and files whose bytes weren't
flushed are empty.

/etc/pve is pmxcfs': of what is written there nothing is on the disk, whatever is flushed there, until the log of its database is flushed.
"""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.host.state import write_file

#: Path -> mode, and content, link target or None for a directory.
Tree = Mapping[str, tuple[int, bytes | str | None]]

#: What lasts, and is compared: the rest is the running system's.
LASTING = ("etc", "boot", "usr", "var", "esp")

#: pmxcfs' files, and where it has them: its database, and that one's log, which has what was written last.
CLUSTER, DATABASE = "etc/pve", ("var/lib/pve-cluster/config.db", "var/lib/pve-cluster/config.db-wal")

#: A file's name below the root, its path and its inode.
Listed = tuple[str, str, os.stat_result]


def all_below(root: Path, tops: Sequence[str] = LASTING) -> list[Listed]:
    """Everything that lasts, or is below these folders, each folder before what is in it."""
    found: list[Listed] = []
    folders = [*reversed(tops)]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{root}/{folder}") as entries:
            for entry in sorted(entries, key=operator.attrgetter("name")):
                found.append((f"{folder}/{entry.name}", entry.path, entry.stat(follow_symlinks=False)))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
    return found


def tree(root: Path) -> Tree:
    """Everything that lasts below ``root``."""
    return tree_of(all_below(root))


def tree_of(below: list[Listed]) -> dict[str, tuple[int, bytes | str | None]]:
    """The same of what was listed just now."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for key, path, about in below:
        if stat.S_ISLNK(about.st_mode):
            found[key] = (0, os.readlink(path))  # noqa: PTH115
        else:
            found[key] = (about.st_mode & 0o7777, _bytes_of(path) if stat.S_ISREG(about.st_mode) else None)
    return found


def _bytes_of(path: str) -> bytes:
    """Without a Path and a buffer for each file: a sweep over cuts reads thousands of trees."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall()


def restore(root: Path, wanted: Tree) -> None:
    """Make everything that lasts below ``root`` what ``wanted`` is."""
    for name in LASTING:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    write(root, wanted)


def write(root: Path, wanted: Tree) -> None:
    """Make all of ``wanted`` below ``root``, where none of it is yet but folders."""
    made: set[str] = set()
    for key, (mode, content) in wanted.items():
        path = f"{root}/{key}"
        folder = path if content is None else path.rpartition("/")[0]
        if folder not in made:
            made.add(folder)
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        if isinstance(content, str):
            os.symlink(content, path)  # noqa: PTH211
        elif content is None:
            os.chmod(path, mode)  # noqa: PTH101
        else:
            write_file(path, content, mode)


#: Inode, size and time of a file -> its bytes.
Contents = dict[tuple[int, int, int], bytes]
#: In nanoseconds: of files changed later than that, a time doesn't say whether they were changed once more (a kernel's tick, and more).
_TICK = 100_000_000


@dataclass
class Disk:
    """What is on the disk, as far as it was flushed. Files are known by their inode."""

    root: Path
    bytes_of: dict[int, bytes] = field(default_factory=dict)
    names_in: dict[str, dict[str, int]] = field(default_factory=dict)
    contents: Contents = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flush_all()

    def flush_all(self) -> None:
        self.bytes_of, self.names_in = {}, {name: {} for name in LASTING}
        for key, path, about in all_below(self.root):
            folder, _, name = key.rpartition("/")
            self.names_in[folder][name] = about.st_ino
            self._note(key, path, about)
            if stat.S_ISDIR(about.st_mode):
                self.names_in[key] = {}
            elif stat.S_ISREG(about.st_mode):
                self.bytes_of[about.st_ino] = self._content(path, about)

    def flush(self, path: Path) -> None:
        key = os.path.relpath(path, self.root)
        if key == DATABASE[1]:
            self._flush_cluster()
        if f"{key}/".startswith(f"{CLUSTER}/"):
            return
        self._flush(path)

    def _flush_cluster(self) -> None:
        self._flush(self.root / CLUSTER)
        for _, path, _ in all_below(self.root, [CLUSTER]):
            self._flush(Path(path))

    def _flush(self, path: Path) -> None:
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            key = path.relative_to(self.root).as_posix()
            with os.scandir(path) as entries:
                names = {each.name: each.stat(follow_symlinks=False) for each in entries}
            for name, of_name in names.items():
                self._note(f"{key}/{name}", f"{path}/{name}", of_name)
            self.names_in[key] = {name: of_name.st_ino for name, of_name in sorted(names.items())}
        elif stat.S_ISREG(about.st_mode):
            self.bytes_of[about.st_ino] = self._content(str(path), about)

    def _note(self, key: str, path: str, about: os.stat_result) -> None:
        is_link = stat.S_ISLNK(about.st_mode)
        self._earlier[key] = (0, str(Path(path).readlink())) if is_link else (about.st_mode & 0o7777, b"")

    def _content(self, path: str, about: os.stat_result) -> bytes:
        """A file's bytes, which were read before where it hasn't changed."""
        kept = (about.st_ino, about.st_size, about.st_ctime_ns)
        if kept in self.contents:
            return self.contents[kept]
        found = _bytes_of(path)
        if about.st_ctime_ns < time.time_ns() - _TICK:
            self.contents[kept] = found
        return found

    def forget_gone(self, below: list[Listed]) -> None:
        """An inode number is given again."""
        there = {about.st_ino for _, _, about in below}
        there.update(*(names.values() for names in self.names_in.values()))
        for inode in self.bytes_of.keys() - there:
            del self.bytes_of[inode]

    def after_a_cut(self, now: Tree, below: list[Listed], *, names_as_now: bool) -> Tree:
        """The files after a power cut at this moment, in which these files are there."""
        kinds: dict[int, tuple[int, str | None, bool]] = {}
        named: dict[str, dict[str, int]] = {name: {} for name in LASTING}
        for key, _, about in below:
            inode, (mode, content) = about.st_ino, now[key]
            kinds[inode] = (mode, content if isinstance(content, str) else None, content is None)
            folder, _, name = key.rpartition("/")
            named[folder][name] = inode
            if content is None:
                named[key] = {}
        names_in = named if names_as_now else self.names_in
        found: dict[str, tuple[int, bytes | str | None]] = {}

        def walk(folder: str) -> None:
            for name, inode in names_in.get(folder, {}).items():
                key = f"{folder}/{name}"
                mode, target, is_folder = kinds.get(inode) or self._gone(key)
                if target is not None:
                    found[key] = (0, target)
                elif is_folder:
                    found[key] = (mode, None)
                    walk(key)
                else:
                    found[key] = (mode, self.bytes_of.get(inode, b""))

        for name in LASTING:
            walk(name)
        return found

    def _gone(self, key: str) -> tuple[int, str | None, bool]:
        """Mode, link target and whether it is a folder of what still has its name on the disk alone."""
        mode, content = self._earlier.get(key, (0o600, b""))
        return mode, content if isinstance(content, str) else None, key in self.names_in

    #: Mode, and a link's target, of what has its name on the disk.
    _earlier: dict[str, tuple[int, bytes | str]] = field(default_factory=dict)
