"""The host's Python, as the lab runs it: `FILE|-|-c TEXT ARGUMENTS` after its options, in the place of /usr/bin/python3.

What a program writes into a control file of sysfs acts before its write(2) has returned, and fails as write(2) would (sysfs_writes.py); what stands for
a device node in /dev is one to stat(2) and mknod(2); a disk in use isn't opened for one alone; 127.0.0.1:85 is the lab's pvedaemon. It is the
Python of the lab otherwise, with the standard library alone.

It is a process of its own, as on a host.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from .program import ask_daemon
from .state import HOST_PYTHON, PVEDAEMON, HostState

#: What stands in the file of a disk that is claimed.
CLAIMED = b"claimed\n"
_REFUSALS = {os.strerror(number): number for number in errno.errorcode}


def _hear_writes() -> None:
    real = os.write

    def write(descriptor: int, data: Any, /) -> int:
        count = real(descriptor, data)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) and mode & stat.S_ISVTX:
            # The process that asks is named, since /proc/self is the program's own.
            asked = [f"{os.environ['LAB_STATE']}/bin/lab-sysfs-write", f"/proc/{os.getpid()}/fd/{descriptor}"]
            done = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                refused = (done.stdout + done.stderr).strip()
                raise OSError(_REFUSALS.get(refused, errno.EIO), refused)
        return count

    os.write = write


def nodes_below(dev: str) -> tuple[Callable[..., os.stat_result], Callable[..., None]]:
    """stat(2) and mknod(2) as Python has them, to which the files in a lab's /dev are device nodes (nodes.py)."""
    real_stat, real_mknod = os.stat, os.mknod
    line = re.compile(rb"device c (\d+):(\d+) owner (\d+):(\d+)\n")

    def stat_of(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        found = real_stat(path, *arguments, **options)
        if isinstance(path, int) or not os.fspath(path).startswith(dev) or not stat.S_ISREG(found.st_mode):
            return found
        with open(path, "rb") as file:  # noqa: PTH123
            about = line.fullmatch(file.read(80))
        if not about:
            return found
        _, (items, names) = cast(Any, found.__reduce__())
        names["st_rdev"] = os.makedev(int(about[1]), int(about[2]))
        mode, owner = stat.S_IFCHR | stat.S_IMODE(found.st_mode), (int(about[3]), int(about[4]))
        return os.stat_result((mode, *items[1:4], *owner, *items[6:]), names)

    def mknod(path: Any, mode: int = 0o600, device: int = 0, **options: Any) -> None:
        if not os.fspath(path).startswith(dev):
            real_mknod(path, mode, device, **options)
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IMODE(mode))
        os.write(descriptor, f"device c {os.major(device)}:{os.minor(device)} owner 0:0\n".encode())
        os.close(descriptor)

    os.supports_follow_symlinks.add(stat_of)  # as the real one; shutil looks there
    return stat_of, mknod


def disks_below(dev: str) -> Callable[..., int]:
    """open(2) as Python has it, to which a file in a lab's /dev that says `claimed` is a disk that a file system or the like has claimed
    (sysfs.py): nobody else opens it with O_EXCL.
    """
    real_open = os.open

    def open_of(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        descriptor = real_open(path, flags, *arguments, **options)
        is_asked = flags & os.O_EXCL and not flags & os.O_CREAT and os.fspath(path).startswith(dev)
        if is_asked and os.pread(descriptor, 80, 0) == CLAIMED:
            os.close(descriptor)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        return descriptor

    return open_of


def _reach_pvedaemon(host: HostState) -> None:
    """The lab has this machine's network: its pvedaemon listens on a port of its own."""
    real = socket.create_connection

    def connect(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        if address != PVEDAEMON:
            return real(address, *arguments, **options)
        found = ask_daemon(host, "pvedaemon")
        if found is None:
            return cast(socket.socket, _Answered())
        if (port := found.get("port")) is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return real((address[0], port), *arguments, **options)

    socket.create_connection = connect  # type: ignore[assignment]


class _Answered:
    """A connection to pvedaemon of a host without a daemon: a program answers (guest_programs.py)."""

    def __enter__(self) -> _Answered:
        return self

    def __exit__(self, *_: object) -> None: ...

    def sendall(self, text: bytes) -> None:
        """Asks it."""
        asked = [f"{os.environ['LAB_STATE']}/bin/lab-pvedaemon"]
        self._answer = subprocess.run(asked, input=text, capture_output=True, check=True).stdout

    def recv(self, _most: int) -> bytes:
        """The answer, whole, and then its end."""
        answer, self._answer = self._answer, b""
        return answer


def _start_itself() -> None:
    """What is run so starts this again where it starts the host's Python by its path, which is no shell's function then."""
    real = subprocess.Popen.__init__

    def start(process: Any, arguments: Any, *others: Any, **options: Any) -> None:
        if isinstance(arguments, (list, tuple)) and arguments[0] == HOST_PYTHON:
            arguments = [f"{os.environ['LAB_STATE']}/bin/lab-python", *arguments[1:]]
        real(process, arguments, *others, **options)

    subprocess.Popen.__init__ = start  # type: ignore[assignment, method-assign]


#: The lab's modules, which a program doesn't find: to take them apart takes as long as half a start.
_kept: list[ModuleType] = []


def on_the_host() -> None:
    """Have this process be one of the lab's host, or guest, in whose environment it runs."""
    if "LAB_STATE" in os.environ:
        _hear_writes()
        _start_itself()
        _reach_pvedaemon(HostState(Path(os.environ["LAB_STATE"])))
        os.stat, os.mknod = nodes_below(f"{os.environ['HOMELAB_ROOT']}/dev/")
        os.open = disks_below(f"{os.environ['HOMELAB_ROOT']}/dev/")


def _forget_the_lab() -> None:
    """Nothing but the standard library is found, or was imported."""
    sys.path[:] = [folder for folder in sys.path if folder.startswith(sys.base_prefix) and "-packages" not in folder]
    own = {*sys.stdlib_module_names, "__main__"}
    _kept.extend(sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] not in own)


def main(_host: HostState, _name: str, arguments: list[str]) -> int:
    """Run what the arguments name."""
    words = [*arguments]
    while words and words[0] in ("-I", "-S", "-B", "-X"):
        del words[: 2 if words[0] == "-X" else 1]
    on_the_host()
    _forget_the_lab()
    what, *others = words
    if what in ("-c", "-"):
        text, sys.argv = (others[0], [what, *others[1:]]) if what == "-c" else (sys.stdin.read(), words)
        exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(what, run_name="__main__")
    return 0
