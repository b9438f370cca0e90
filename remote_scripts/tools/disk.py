"""The calls that change a file system, each by its own name. `files` and layers go through these: a test stops a run
before any of them.

`Disk` is what `files` asks of a file system; that of a container (container.py) answers the same.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

# Files are read in parts of so many bytes.
_PART = 1 << 20
# What the kernel says of a name that nothing has, or can have.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
# How often a file is looked for that its folder lists; which isn't there by so many looks; seconds between two of them.
_LOOKS, _ABSENT_LOOKS, _LOOK_SECONDS = 40, 4, 0.005
T = TypeVar("T")
#: Called before each call, with its name and the path.
Watch = Callable[[str, str], None]


#: Another one is put here by tests alone.
WATCH: list[Watch] = [lambda _call, _path: None]


def _about(call: str, path: Path | str) -> None:
    WATCH[-1](call, os.fspath(path))


def write(descriptor: int, content: bytes, path: Path) -> None:
    """All of it into an open file. `path`: its name."""
    view = memoryview(content)
    while view:
        _about("write", path)
        view = view[os.write(descriptor, view) :]


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """The descriptor of an open file, as of open(2)."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create(path: Path, mode: int) -> AbstractContextManager[int]:
    """The descriptor of a file for writing, which is made or emptied. A link is refused."""
    _about("create", path)
    return opened(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_TRUNC, mode)


def append(path: Path, content: bytes, mode: int) -> None:
    """Adds to the end of a file, which is made. A link is refused."""
    _about("append", path)
    with opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, mode) as descriptor:
        write(descriptor, content, path)


def flush(path: Path) -> None:
    """The bytes of a file, or the names in a folder, are on the disk (fsync(2))."""
    with opened(path, os.O_RDONLY) as descriptor:  # a folder may be a link, such as /lib
        flush_open(descriptor, path)


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


def remove_all(path: Path) -> None:
    """Takes away what is there, a folder with all that is in it."""
    _about("remove", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(target: str, path: Path) -> None:
    """Makes a symbolic link."""
    _about("symlink", path)
    path.symlink_to(target)


def make_node(path: Path, mode: int, major: int, minor: int) -> None:
    """Makes a character device."""
    _about("mknod", path)
    os.mknod(path, stat.S_IFCHR, os.makedev(major, minor))
    path.chmod(mode)


def copy_attributes(source: Path, target: Path) -> None:
    """Owner, permissions, times and extended attributes; of a link its own."""
    status = source.lstat()
    _about("chown", target)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    _about("copystat", target)
    shutil.copystat(source, target, follow_symlinks=False)


def read_up_to(file: BinaryIO, limit: int) -> bytes:
    """What an open file has, at most so many bytes, in parts: of 4 MiB at once /proc/sys says ENOMEM
    (fs/proc/proc_sysctl.c, KMALLOC_MAX_SIZE).
    """
    content = b""
    while len(content) < limit and (part := file.read(min(_PART, limit - len(content)))):
        content += part
    return content


def steady(where: Path, ask: Callable[[], T | None]) -> T | None:
    """What is asked of a file of pmxcfs, which replaces none at once (pve/pmxcfs.py); None: it isn't there. It has
    no end where /etc/pve hangs.

    :param ask: gives None, or raises FileNotFoundError, where it finds none.
    :raises OSError: there is no answer, or others take the file's place all the time.
    """
    absent = 0
    for _ in range(_LOOKS):
        try:
            if (found := ask()) is not None:
                return found
        except FileNotFoundError:
            pass
        absent = 0 if _is_listed(where) else absent + 1
        if absent == _ABSENT_LOOKS:
            return None
        time.sleep(_LOOK_SECONDS)
    raise OSError(errno.EAGAIN, "its folder lists it, and it can't be opened")


def _is_listed(where: Path) -> bool:
    try:
        with os.scandir(where.parent) as listed:
            return any(one.name == where.name and not one.is_symlink() and one.is_file() for one in listed)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_claimed(where: Path) -> bool:
    """Whether something has claimed a disk, or a partition of it: a file system, swap, LVM, md and the like. The kernel
    lets nobody else open it for one alone then (O_EXCL, open(2)).

    :raises OSError: it can't be told.
    """
    try:
        os.close(os.open(where, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK))
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOMEDIUM):
            raise
        return error.errno == errno.EBUSY
    return False


def below(
    place: Path,
    is_entered: Callable[[Path], bool] = lambda _: True,
    on_error: Callable[[OSError], None] = lambda _: None,
) -> Iterator[Path]:
    """What is below a folder and is none itself. Where a link leads isn't looked at, as os.walk does: it may be on a
    share that hangs. A folder that can't be read is passed over.

    :param is_entered: whether a folder is looked into.
    :param on_error: called with the error of each folder that can't be read.
    """
    folders = [place]
    while folders:
        entries: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folders.pop()) as scanned:
                entries = [*scanned]
        except OSError as error:
            on_error(error)
        for entry in entries:
            if entry.is_symlink() or not entry.is_dir():
                yield Path(entry.path)
            elif is_entered(Path(entry.path)):
                folders.append(Path(entry.path))


class Disk:
    """The file systems of this system. What changes them raises OSError where it can't."""

    #: Whether this process reaches them itself.
    is_near = True

    flush = staticmethod(flush)

    def exists(self, where: Path) -> bool:
        """A link counts, wherever it leads.

        :raises OSError: it can't be told, as of a disk that fails.
        """
        try:
            os.lstat(where)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return False
        except ValueError:  # a NUL
            return False
        return True

    def there(self, places: Sequence[Path]) -> list[Path]:
        """Those of the paths that exist."""
        return [where for where in places if self.exists(where)]

    def is_file(self, where: Path) -> bool:
        """Whether it is a file, or a link that leads to one."""
        return where.is_file()

    def is_folder(self, where: Path) -> bool:
        """Whether it is a folder, or a link that leads to one."""
        return where.is_dir()

    def is_link(self, where: Path) -> bool:
        """Whether it is a symbolic link."""
        return where.is_symlink()

    def target(self, where: Path) -> str:
        """Where a link leads, as it says."""
        return os.readlink(where)

    def resolved(self, where: Path) -> str:
        """The path that a path leads to, by all links; empty where there is nothing."""
        return os.path.realpath(where) if where.exists() else ""

    def read(self, where: Path, limit: int) -> bytes | None:
        """What a file has, at most `limit` bytes and one more; None: there is nothing.

        :raises OSError: it is no file, or can't be read.
        """
        try:
            mode = os.stat(where).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISDIR(mode):  # a pipe would be waited for
                raise OSError(errno.EINVAL, "it is no file", os.fspath(where))
            with where.open("rb") as file:
                return read_up_to(file, limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            if self.is_link(where):
                raise OSError(errno.EINVAL, "it is no file", os.fspath(where)) from None
            return None

    def names(self, where: Path) -> list[str]:
        """What is in a folder; nothing where it can't be read."""
        try:
            return os.listdir(where)
        except OSError:
            return []

    def digest(self, where: Path) -> str:
        """The SHA-256 of a file's bytes."""
        digest = hashlib.sha256()
        with where.open("rb") as file:
            while data := file.read(_PART):
                digest.update(data)
        return digest.hexdigest()

    def look(self, where: Path) -> tuple[int, str]:
        """The permissions, of a link its own, and the SHA-256 of a file's bytes."""
        return where.lstat().st_mode & 0o7777, self.digest(where)

    def files_below(self, where: Path) -> list[str]:
        """The files in a folder and below it, no links, by their paths from there; none where there is no such folder.

        :raises OSError: a folder can't be read.
        """

        def fail(error: OSError) -> None:
            raise error

        found = below(where, on_error=fail) if self.exists(where) else ()
        return [os.path.relpath(path, where) for path in found if not path.is_symlink() and path.is_file()]

    def folders_of(self, where: Path) -> list[Path]:
        """A folder and those below it, the lowest first."""
        return [Path(folder) for folder, _, _ in os.walk(where, topdown=False)]

    def left_below(self, places: Sequence[Path], but: Path, is_left: Callable[[str], bool]) -> Iterator[Path]:
        """What `is_left` says of by its name, and is no folder, below these places and on their file systems.

        :param but: a folder that isn't looked into.
        """
        for place in places:
            # A folder is none of homelab's, whatever its name.
            for path in below(place, functools.partial(_is_near, place, but)):
                if is_left(path.name):
                    yield path

    def make(self, where: Path, content: bytes, mode: int) -> None:
        """A new file, on the disk."""
        with create(where, 0o600) as descriptor:
            write(descriptor, content, where)
            with suppress(PermissionError):  # a FAT has no modes
                os.fchmod(descriptor, mode)
            flush_open(descriptor, where)

    def write(self, temporary: Path, content: bytes, mode: int, where: Path) -> None:
        """A file that is new as a whole, by another name beside it, which a run that was cut short may have left."""
        if self.exists(temporary):  # it may be a link
            remove(temporary)
        self.make(temporary, content, mode)
        self.rename(temporary, where)

    def copy(self, source: Path, where: Path) -> None:
        """A copy of a file or link, with its attributes (`copy_attributes`), in the place of what is there; flushed."""
        remove(where)
        if source.is_symlink():
            link(os.readlink(source), where)
            copy_attributes(source, where)
            return
        with create(where, 0o600) as descriptor, source.open("rb") as file:
            while data := file.read(_PART):
                write(descriptor, data, where)
            copy_attributes(source, where)
            flush_open(descriptor, where)

    def link(self, target: str, where: Path) -> None:
        """Makes a symbolic link, in the place of what is there."""
        remove(where)
        link(target, where)

    def rename(self, source: Path, where: Path) -> None:
        """`source` takes the name `where`, in the place of what has it; that is on the disk."""
        rename(source, where)
        flush(where.parent)

    def remove(self, *places: Path) -> None:
        """Takes files away, which is on the disk; what isn't there is no error."""
        for where in self.there(places):
            remove(where)
            flush(where.parent)

    def remove_all(self, where: Path) -> None:
        """Takes away what is there, a folder with all that is in it, which is on the disk."""
        remove_all(where)
        flush(where.parent)

    def need_folder(self, where: Path, mode: int = 0o755) -> None:
        """Makes a folder and those above it, each with this mode, which is on the disk."""
        if where == where.parent or self.is_folder(where):
            return
        self.need_folder(where.parent, mode)
        with suppress(FileExistsError):
            make_folder(where, mode)
        flush(where.parent)

    def remove_folders(self, folders: Sequence[Path]) -> None:
        """Takes those away that are empty by then, one after the other, which is on the disk."""
        for folder in folders:
            with suppress(OSError):
                remove_folder(folder)
                flush(folder.parent)


def _is_near(place: Path, but: Path, folder: Path) -> bool:
    """Whether a folder is on the file system of `place`: not /etc/pve, which is the cluster's and may hang."""
    if folder == but:
        return False
    with suppress(OSError):  # it has gone meanwhile
        return folder.lstat().st_dev == place.stat().st_dev
    return False
