"""A small initramfs for a VM that starts the host's own kernel: a shell, mount, their libraries, and an /init."""

from __future__ import annotations

import gzip
from pathlib import Path, PurePosixPath

from remote_scripts.tools.system import System

_FOLDER, _PROGRAM = 0o040755, 0o100755
_FOLDERS = ("bin", "proc", "sys", "dev")


def image(system: System, init: bytes) -> bytes:
    """The initramfs, compressed.

    :param init: its /init.
    """
    # The programs are this machine's own, whatever is before other paths.
    files = {f"bin/{name}": Path(system.run.find(name)) for name in ("sh", "mount")}
    words = [word for path in files.values() for word in system.run.ask("ldd", str(path)).text.split()]
    files |= {word.lstrip("/"): Path(word) for word in words if word.startswith("/")}
    entries = {"init": (_PROGRAM, init)} | {name: (_PROGRAM, path.read_bytes()) for name, path in files.items()}
    folders = {str(folder) for name in entries for folder in PurePosixPath(name).parents} | {*_FOLDERS}
    entries |= {folder: (_FOLDER, b"") for folder in folders - {"."}}
    # A folder comes before what is in it. /dev/console is in the kernel's own initramfs.
    archive = b"".join(_entry(name, *details) for name, details in sorted(entries.items()))
    return gzip.compress(archive + _entry("TRAILER!!!", 0, b""), 1, mtime=0)


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """Of a cpio archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    """To the next multiple of four."""
    return data + b"\0" * (-len(data) % 4)
