"""The host's Python, as the lab runs it: `host_python.py OPTIONS FILE|-|-c TEXT ARGUMENTS`, in the place of /usr/bin/python3.

What a program writes into a control file of sysfs acts before its write(2) has returned, and fails as write(2) would (sysfs_writes.py); what stands for
a device node in /dev is one to stat(2) and mknod(2). It is the real Python of this machine otherwise, and has what its options ask for: whoever
starts this gives them to it, too.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
import stat
import subprocess
import sys
import zipimport
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any, cast

_PATH = "/usr/bin/python3"
_PACKAGE = "remote_scripts"
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

    return stat_of, mknod


def _start_itself() -> None:
    """What is run so starts this again where it starts the host's Python by its path, which is no shell's function then."""
    real = subprocess.Popen.__init__

    def start(process: Any, arguments: Any, *others: Any, **options: Any) -> None:
        if isinstance(arguments, (list, tuple)) and arguments[0] == _PATH:
            arguments = [_PATH, "-I", "-S", "-B", "-X", "utf8", __file__, *arguments[1:]]
        real(process, arguments, *others, **options)

    subprocess.Popen.__init__ = start  # type: ignore[assignment, method-assign]


def _compile_once() -> None:
    """Of an archive of the agent's modules, what is as in this project has the bytecode that lies beside it there: to make it is half of a start."""
    real = zipimport._compile_source  # type: ignore[attr-defined]
    project = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120

    def compile_source(path: str, source: bytes) -> CodeType:
        loader = SourceFileLoader(_PACKAGE, f"{project}/{_PACKAGE}/{path.rpartition(f'/{_PACKAGE}/')[2]}")
        try:
            is_ours = loader.get_data(loader.path) == source
        except OSError:
            is_ours = False
        return cast(CodeType, loader.get_code(_PACKAGE) if is_ours else real(path, source))

    zipimport._compile_source = compile_source  # type: ignore[attr-defined]


def on_the_host() -> None:
    """Have this process be one of the lab's host, or guest, in whose environment it runs."""
    if "LAB_STATE" in os.environ:
        _hear_writes()
        _start_itself()
        os.stat, os.mknod = nodes_below(f"{os.environ['ROOT']}/dev/")


def main() -> None:
    """Run what the arguments name."""
    words = sys.argv[1:]
    while words and words[0] in ("-I", "-S", "-B", "-X"):
        del words[: 2 if words[0] == "-X" else 1]
    on_the_host()
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-":
        sys.argv = words
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        _compile_once()
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
