"""A small initramfs for a VM that starts the host's own kernel: a shell, mount, their libraries, and an /init."""

from __future__ import annotations

import gzip
from pathlib import Path, PurePosixPath

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_FOLDER, _PROGRAM, _LINK = 0o040755, 0o100755, 0o120777
_FOLDERS = ("bin", "proc", "sys", "dev")


def image(system: System, init: bytes) -> bytes:
    """The initramfs, compressed.

    :param init: its /init.
    :raises Failure: this system has no shell, or one that lacks a library.
    """
    shell, mount = _programs(system)
    # The programs are this machine's own, whatever is before other paths.
    entries: dict[str, tuple[int, bytes]] = {"init": (_PROGRAM, init), "bin/sh": (_PROGRAM, Path(shell).read_bytes())}
    # busybox is what it is called.
    entries["bin/mount"] = (_PROGRAM, Path(mount).read_bytes()) if mount else (_LINK, b"sh")
    for library in (path for program in filter(None, (shell, mount)) for path in _libraries(system, program)):
        entries[library.lstrip("/")] = (_PROGRAM, Path(library).read_bytes())
    folders = {str(folder) for name in entries for folder in PurePosixPath(name).parents} | {*_FOLDERS}
    entries |= {folder: (_FOLDER, b"") for folder in folders - {"."}}
    # A folder comes before what is in it. /dev/console is in the kernel's own initramfs.
    archive = b"".join(_entry(name, *details) for name, details in sorted(entries.items()))
    return gzip.compress(archive + _entry("TRAILER!!!", 0, b""), 1, mtime=0)


def _programs(system: System) -> tuple[str, str]:
    """The files of a shell and of mount; the latter is empty where the shell is a busybox, which is mount, too."""
    busybox = system.run.find("busybox")
    if busybox and {"mount", "sh"} <= {*system.run.ask(busybox, "--list").text.split()}:
        return busybox, ""
    shell, mount = system.run.find("sh"), system.run.find("mount")
    if not shell or not mount:
        raise Failure(
            "busybox, or sh and mount, for the test VM's initramfs",
            "neither on the PATH",
            "the VM needs a shell to say what it sees",
            "apt install busybox",
        )
    return shell, mount


def _libraries(system: System, program: str) -> list[str]:
    done = system.run.ask("ldd", program)
    if done.status != 0:  # a program without libraries: nothing to add
        return []
    if "not found" in done.text:
        raise Failure(
            f"every library of {program}",
            done.text,
            "it would not start in the test VM",
            f"reinstall its package, which dpkg -S {program} names; then run `pulumi up` again",
        )
    return [word for word in done.text.split() if word.startswith("/")]


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """Of a cpio archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    """To the next multiple of four."""
    return data + b"\0" * (-len(data) % 4)
