"""Ceph on a node that restarts: whether it can do without the node's monitor and disks, and that it doesn't replace
these disks meanwhile.

`noout` is set for this node's disks alone (`ceph osd add-noout`), not for the cluster: the other nodes' are replaced as
ever. What has it already keeps it. `noout` of /var/lib/homelab/away (restart_settings.py): the disks that have it from
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from remote_scripts.shared import notes, restart_settings
from remote_scripts.tools.system import System

_OSDS, _MONITORS = "/var/lib/ceph/osd", "/var/lib/ceph/mon"
# For the message where one can't be read.
_WANTED = "to know which disks and monitors of Ceph this node has"
_WHY = "Ceph may not do without one that isn't known, while this node restarts"
_FLAGS = re.compile(r"^flags (.*)", re.MULTILINE)


def own_disks(system: System) -> list[str]:
    """The ids of the OSDs that run here.

    :raises Failure: one can't be told.
    """
    paths = (f"{_OSDS}/{name}/whoami" for name in _daemons(system, _OSDS))
    numbers = (notes.need(system, path, _WANTED, _WHY).decode("ascii", "replace").strip() for path in paths)
    return [number for number in numbers if number.isdecimal()]


def _daemons(system: System, folder: str) -> list[str]:
    """The names of Ceph's daemons here.

    :raises Failure: their folder can't be read.
    """
    try:
        return [name for name in system.files.need_names(folder) if name.startswith("ceph-")]
    except OSError as error:
        raise notes.unreadable(folder, _WANTED, _WHY) from error


def why_not(system: System) -> str:
    """Why Ceph can't do without the monitors and disks that run here; empty: it can.

    :raises Failure: as of `own_disks`.
    """
    names = _daemons(system, _MONITORS)
    monitors = [name[5:] for name in names if system.files.at(f"{_MONITORS}/{name}").is_dir()]
    without = "Ceph can't do without this node's"
    if monitors and (why := _refusal(system, f"{without} monitor now", "mon", "ok-to-stop", *monitors)):
        return why
    disks = own_disks(system)
    return _refusal(system, f"{without} disks now", "osd", "ok-to-stop", *disks) if disks else ""


def _refusal(system: System, what: str, *words: str) -> str:
    """What is so where Ceph refuses a command, and why; empty: it takes it."""
    done = system.run.ask("ceph", *words)
    return "" if done.status == 0 else f"{what} (`ceph {' '.join(words)}`): {restart_settings.in_a_line(done)}"


def note_disks(system: System) -> str:
    """Notes what `keep_disks` is going to set; what an earlier run noted stays noted.

    :returns: why it can't; empty: it is noted.
    :raises Failure: as of `own_disks` and `away.noted`.
    :raises OSError: as of `away.note`.
    """
    own = own_disks(system)
    if not own:
        return ""
    disks = _replaced(system, own)
    if disks is None:
        return "Ceph doesn't say which disks it would replace (`ceph osd dump` gave no answer)"
    noted = {*restart_settings.noted(system, "noout").split(), *disks}
    if noted:
        restart_settings.note(system, "noout", " ".join(sorted(noted, key=int)))
    return ""


def keep_disks(system: System) -> str:
    """Sets it for those that are noted.

    :returns: why not; empty: it is set.
    """
    disks = restart_settings.noted(system, "noout").split()
    return _refusal(system, "Ceph would replace this node's disks", "osd", "add-noout", *disks) if disks else ""


def let_disks_go(system: System) -> bool:
    """Unsets it for those that are noted; False: Ceph doesn't answer."""
    disks = restart_settings.noted(system, "noout").split()
    if disks:
        if not allow_replacement(system, disks):
            return False
        restart_settings.note(system, "noout", "")
    return True


def allow_replacement(system: System, disks: Iterable[str]) -> bool:
    """Whether Ceph replaces these disks again, as soon as they are away for too long."""
    return system.run.ask("ceph", "osd", "rm-noout", *disks).status == 0


def _replaced(system: System, own: Iterable[str]) -> list[str] | None:
    """The disks of this node that would be replaced; None: no answer. A line of `ceph osd dump` is `osd.0 up   in
    weight 1 … exists,up,noout UUID`, and `flags noout,sortbitwise,…` is for all disks.
    """
    done = system.run.ask("ceph", "osd", "dump", limit=16 << 20)
    flags = _FLAGS.search(done.text)
    if done.status != 0 or not flags:
        return None
    if "noout" in flags[1].split(","):
        return []
    lines = {line.partition(" ")[0]: line for line in done.text.splitlines()}
    return [disk for disk in own if f"osd.{disk}" in lines and not _has_noout(lines[f"osd.{disk}"])]


def _has_noout(line: str) -> bool:
    return any("noout" in word.split(",") for word in line.split(" "))
