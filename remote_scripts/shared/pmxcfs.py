"""What is in /etc/pve, Proxmox VE's cluster file system. That it doesn't answer is never taken for "nothing there"."""

from __future__ import annotations

from remote_scripts.shared.hanging import ended
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

PVE_LXC = "/etc/pve/lxc"
#: Proxmox VE takes no longer file.
_BYTES = 1 << 20


def content_of(system: System, path: str) -> bytes | None:
    """The bytes of a file; None: it isn't there.

    :raises Failure: it can't be read.
    """

    def read() -> bytes | None:
        try:
            with system.files.at(path).open("rb") as file:
                return file.read(_BYTES + 1)
        except FileNotFoundError:
            return None

    try:
        content = ended(read)
    except OSError as error:
        raise _unread(path, error.strerror or str(error)) from error
    if content is not None and len(content) > _BYTES:
        raise _unread(path, f"it is longer than {_BYTES} bytes, which Proxmox VE doesn't allow")
    return content


def _unread(path: str, found: str) -> Failure:
    return Failure(
        f"to read {path}",
        found,
        "what can't be read isn't known, and nothing is decided by it; nothing more was changed",
        "see on the host what keeps the service pve-cluster, whose file system it is, then run `pulumi up` again",
    )
