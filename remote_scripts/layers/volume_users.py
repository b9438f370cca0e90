"""The guests of a cluster whose configuration names a volume. A file that none names is removed by the caller, so what
can't be read may name it.
"""

from __future__ import annotations

from remote_scripts.both.volume_users import Answer, Wanted
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.pmxcfs import NODES
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

# Proxmox VE takes no longer file.
_BYTES = 1 << 20


def read(system: System, wanted: Wanted) -> Answer:
    """Looks into all configurations.

    :raises Failure: one of them can't be read, or has gone meanwhile.
    """
    paths = ["/".join(place) for place in pmxcfs.guests(system)]
    contents = {path: system.files.need(f"{NODES}/{path}.conf") for path in paths}
    if None in contents.values() or not system.files.need_names(NODES):
        raise Failure(
            f"to know which guests name {wanted.volume}",
            f"{NODES} isn't there, or a guest was moved or removed meanwhile",
            "what can't be read may name it; nothing was removed",
            "run the same command again; if it fails again, see on the host whether pve-cluster runs, which serves "
            "/etc/pve",
        )
    texts = {path: as_text(content or b"", _BYTES) for path, content in contents.items()}
    lines = [f"{path}.conf:{line}" for path, text in texts.items() for line in text.split("\n")]
    return Answer("\n".join(sorted(line for line in lines if wanted.volume in line)))
