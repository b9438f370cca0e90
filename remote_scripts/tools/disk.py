"""The calls that change a file system, each by its own name. `files` and layers go through these: a test stops a run
before any of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

#: Called before each call, with its name and the path.
Watch = Callable[[str, str], None]


def _unwatched(call: str, path: str) -> None:
    pass


#: Another one is put here by tests alone.
WATCH: list[Watch] = [_unwatched]


def _about(call: str, path: Path | str) -> None:
    WATCH[-1](call, os.fspath(path))


def write(descriptor: int, content: bytes, path: Path) -> None:
    """All of it into an open file. `path`: its name."""
    view = memoryview(content)
    while view:
        _about("write", path)
        view = view[os.write(descriptor, view) :]


def create(path: Path, mode: int) -> int:
    """Opens a file for writing, which is made or emptied; returns its descriptor. A link is refused."""
    _about("create", path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_TRUNC, mode)


def flush(path: Path) -> None:
    """The bytes of a file, or the names in a folder, are on the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a folder may be a link, such as /lib
    try:
        _about("flush", path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_open(descriptor: int, path: Path) -> None:
    """The same for a file that is open."""
    _about("flush", path)
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """`source` takes the name `target`, in the place of what has it."""
    _about("rename", target)
    source.replace(target)


def remove(path: Path) -> None:
    """Takes a name away; there may be none."""
    _about("remove", path)
    path.unlink(missing_ok=True)


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Makes one folder."""
    _about("mkdir", path)
    path.mkdir(mode)


def remove_folder(path: Path) -> None:
    """Takes an empty folder away."""
    _about("rmdir", path)
    path.rmdir()


def link(target: str, path: Path) -> None:
    """Makes a symbolic link."""
    _about("symlink", path)
    path.symlink_to(target)


def make_node(path: Path, mode: int, major: int, minor: int) -> None:
    """Makes a character device, with this mode from its beginning."""
    _about("mknod", path)
    before = os.umask(0)
    try:
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
    finally:
        os.umask(before)


def touch(path: Path, seconds: float) -> None:
    """Sets both times of what is there, in seconds since 1970."""
    _about("utime", path)
    os.utime(path, (seconds, seconds))


def copy_attributes(source: Path, target: Path) -> None:
    """Owner, permissions, times and extended attributes; of a link its own."""
    found = source.lstat()
    _about("chown", target)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        try:
            value = os.getxattr(source, name, follow_symlinks=False)
            _about("setxattr", target)
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError:  # such as security.* where this kernel has no such module; `cp -a` passes over them, too
            continue
    if not source.is_symlink():
        _about("chmod", target)
        os.chmod(target, found.st_mode & 0o7777)
    _about("utime", target)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
