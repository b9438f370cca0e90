"""Whether Ceph can do without the monitors and disks of a node that restarts."""

from __future__ import annotations

from remote_scripts.tools.system import System

_OSDS, _MONITORS = "/var/lib/ceph/osd", "/var/lib/ceph/mon"


def _daemons(system: System, folder: str) -> list[str]:
    """The names of Ceph's daemons here.

    :raises Failure: their folder can't be read.
    """
    return [name for name in system.files.need_names(folder) if name.startswith("ceph-")]


def why_not(system: System) -> str:
    """Why Ceph can't do without the monitors and disks that run here; empty: it can.

    :raises Failure: which run here can't be read.
    """
    names = _daemons(system, _MONITORS)
    monitors = [name[5:] for name in names if system.files.at(f"{_MONITORS}/{name}").is_dir()]
    without = "Ceph can't do without this node's"
    if monitors and (why := _refusal(system, f"{without} monitor now", "mon", "ok-to-stop", *monitors)):
        return why
    paths = [f"{_OSDS}/{name}/whoami" for name in _daemons(system, _OSDS)]
    disks = [number for path in paths if (number := system.files.need_text(path).strip()).isdecimal()]
    return _refusal(system, f"{without} disks now", "osd", "ok-to-stop", *disks) if disks else ""


def _refusal(system: System, what: str, *words: str) -> str:
    """What is so where Ceph refuses a command, and why; empty: it takes it."""
    done = system.run.ask("ceph", *words)
    return "" if done.status == 0 else f"{what} (`ceph {' '.join(words)}`): {done.in_a_line}"
