"""Keeps on the host, as well as in Pulumi's state, what `destroy` needs to know of things that aren't files of this
host (a PCI mapping, a download). If the state is lost, a new stack sees by it what is ours.

A note is /var/lib/homelab/ledger/NAME, one line of JSON.
"""

from __future__ import annotations

from remote_scripts.both.ledger import Answer, Wanted
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System, changes


def read(system: System, wanted: Wanted) -> Answer:
    """What is noted.

    :raises OSError: there is a note, and it can't be read.
    """
    return Answer(system.files.need_text(_path(wanted.name)).rstrip("\n"))


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Writes the note, or removes it; it is on the disk when this returns."""
    files, path = system.files, _path(wanted.name)
    if not wanted.note:
        files.remove(path)
        return Answer("")
    files.need_folder(path.rpartition("/")[0])
    files.write(path, f"{wanted.note}\n".encode(), 0o600)
    return Answer(wanted.note)


def _path(name: str) -> str:
    return f"{HOME}/ledger/{name}"
