"""The guests of a cluster whose configuration names a volume. A file that none names is removed by the caller, so what
can't be read may name it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from remote_scripts.shared.pmxcfs import NODES
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_KINDS = ("qemu-server", "lxc")
# Proxmox VE takes no longer file.
_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`volume`: such as local:iso/virtio-win.iso."""

    volume: str


@dataclass(frozen=True)
class Answer:
    """`users`: the lines that name it, each after its file's path below /etc/pve/nodes and a colon."""

    users: str


def read(system: System, wanted: Wanted) -> Answer:
    """Looks into all configurations.

    :raises Failure: one of them can't be read.
    """
    try:
        return Answer("\n".join(sorted(within_limit(lambda: _lines_naming(system.files.at(NODES), wanted.volume)))))
    except OSError as error:
        raise Failure(
            f"to know which guests name {wanted.volume}",
            str(error),
            "what can't be read may name it; nothing was removed",
            "read it on the host yourself (the service pve-cluster serves /etc/pve), mend what keeps it from being "
            "read, and run the same command again",
        ) from error


def _lines_naming(nodes: Path, volume: str) -> list[str]:
    folders = [folder for node in nodes.iterdir() for kind in _KINDS if (folder := node / kind).is_dir()]
    if not folders:
        raise FileNotFoundError(errno.ENOENT, "no guests' folders", str(nodes))
    # Not by glob, which passes over a folder that can't be listed.
    files = [folder / name for folder in folders for name in os.listdir(folder) if name.endswith(".conf")]
    texts = {file: as_text(file.read_bytes(), _BYTES) for file in files}
    return [
        f"{file.relative_to(nodes)}:{line}"
        for file, text in texts.items()
        for line in text.split("\n")
        if volume in line
    ]
