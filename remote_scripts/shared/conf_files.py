"""What a container's configuration names outside of itself: files (container_conf.whole), and links to device nodes.
The owner has chosen the place of a file: it may be on a share that is gone, so a child process looks
(tools/child_process.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from remote_scripts.shared.container_conf import LXCS, ContainerConf
from remote_scripts.tools import disk
from remote_scripts.tools.child_process import in_child
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

T = TypeVar("T")
_BYTES = 1 << 26


def links_of(system: System, conf: ContainerConf, chosen: Callable[[str, Callable[[], str]], str]) -> dict[str, str]:
    """The paths with links by which a configuration names device nodes, such as udev's, and what they lead to: also
    where that is gone for a while, such as the node of a card that a VM has.

    :param chosen: what its second argument finds at a path whose place an owner has chosen, as `need`.
    """

    def real(path: str) -> str:
        return system.files.real(path) if path.startswith("/dev/") else chosen(path, lambda: system.files.real(path))

    folders = conf.folders if conf.rules else []  # without a rule nothing in them can be opened
    paths = sorted({entry.source for entry in (*conf.entries, *folders) if entry.source})
    return {path: target for path in paths if (target := real(path)) != path}


def texts_of(system: System, path: str) -> list[str]:
    """What a path has.

    :raises Failure: it can't be read.
    """
    contents = need(path, lambda: contents_of(system, path, _BYTES))
    return [decoded(content) for content in contents]


def decoded(content: bytes) -> str:
    """As text: without zero bytes, which no text has."""
    return content.replace(b"\0", b"").decode("utf-8", "surrogateescape")


def need(path: str, work: Callable[[], T]) -> T:
    """What `work` finds at a path, as `look`.

    :raises Failure: it can't be read.
    """
    try:
        return look(path, work)
    except OSError as error:
        raise Failure(
            f"to read {path}, which a container's configuration names",
            f"{path}: {error.strerror or error}",
            "it may give that container a card; what can't be read isn't known, and nothing is decided by it",
            "see on the host why it can't be read (a share may be gone), then try it again",
        ) from error


def look(path: str, work: Callable[[], T]) -> T:
    """What `work` finds at a path: in a child process, but for lxc's own files, which no owner has chosen the place of.

    :raises OSError: as of `in_child`.
    """
    return work() if path.startswith(LXCS) else in_child(work)


def contents_of(system: System, path: str, limit: int) -> list[bytes]:
    """What a path has: of a file its bytes, of a folder those of its files `*.conf`, as lxc reads them
    (do_includedir); of what isn't there, and of /dev/null, nothing.

    :raises OSError: it can't be read, or is something else.
    """
    where = system.files.at(path)
    if where.is_dir():
        names = sorted(name for name in os.listdir(where) if len(name) > len(".conf") and name.endswith(".conf"))
        return [content for name in names if (content := _content(where / name, f"{path.rstrip('/')}/{name}", limit))]
    content = _content(where, path, limit)
    return [content] if content else []


def _content(where: Path, path: str, limit: int) -> bytes | None:
    try:
        status = where.stat()
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == Path(os.devnull).stat().st_rdev:
            return None
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "it is no file", path)
        with where.open("rb") as file:
            content = disk.read_up_to(file, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(content) >= limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes", path)
    return content
