"""The guests of a cluster whose configuration names a volume. A file that none names is removed by the caller, so what
can't be read may name it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_NODES = "/etc/pve/nodes"
_GUEST = re.compile(r"[^/]+/(?:qemu-server|lxc)/[^/]+\.conf:")


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
    folder = f"{system.files.at(_NODES)}/"
    # By programs that have an end: pmxcfs, a FUSE file system, may hang.
    kinds = ("(", "-name", "qemu-server", "-o", "-name", "lxc", ")")
    done = system.run.ask("find", folder, "-mindepth", "2", "-maxdepth", "2", *kinds, "-print0")
    folders = [name for name in done.output.decode("utf-8", "surrogateescape").split("\0") if name]
    if done.status == 0 and folders:
        done = system.run.ask("grep", "-RaHF", "--include=*.conf", "-e", wanted.volume, "--", *folders)
    if done.status > 1 or (done.status == 1 and (not folders or done.error)):
        message = as_text(done.error).rstrip("\n").rpartition("\n")[2]
        raise Failure(
            f"to know which guests name {wanted.volume}",
            message or f"no answer: exit status {done.status}",
            "what can't be read may name it; nothing was removed",
            "read it on the host yourself (the service pve-cluster serves /etc/pve), mend what keeps it from being "
            "read, and run the same command again",
        )
    lines = (line.removeprefix(folder) for line in as_text(done.output).splitlines())
    return Answer("\n".join(sorted(line for line in lines if _GUEST.match(line))))
