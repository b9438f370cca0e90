"""Which guests of this host run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

from remote_scripts.pve import api, pmxcfs
from remote_scripts.pve.guest_kinds import KINDS, Kind, Running
from remote_scripts.tools.done import ASK_SECONDS
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

Power = Literal["on", "off", "gone", "unknown"]
_LAST_LINES: dict[str, Power] = {"status: stopped": "off", "status: unknown": "unknown"}
_LOOK_SECONDS = 1.0


def running(system: System) -> list[Running]:
    """The guests that run, also those that are paused: VMs first, by their ids. A VM whose QEMU alone runs is one of
    them (is_on).

    :raises Failure: there is no answer, which is no empty list.
    """
    if not system.run.has("qm"):
        return []
    return [
        Running(kind.program, int(guest["vmid"]), guest["name"])
        for kind in KINDS.values()
        for guest in sorted(api.of(system).get(f"/{kind.name}"), key=lambda guest: int(guest["vmid"]))
        if guest["status"] == "running"
    ]


def is_on(status: Mapping[str, Any]) -> bool:
    """Whether a guest runs, also if it is paused. A backup of a VM that is off starts its QEMU alone, without the guest
    (enforce_vm_running_for_backup of PVE::VZDump::QemuServer).

    :param status: what `status/current` of Proxmox VE's API says of it.
    """
    is_backed_up = (status.get("qmpstatus"), status.get("lock")) == ("prelaunch", "backup")
    return status["status"] == "running" and not is_backed_up


def listed(system: System) -> tuple[list[Running], str]:
    """The same, and why there is no answer; empty: there is one."""
    try:
        return running(system), ""
    except Failure as failure:
        return [], failure.found


def is_gone(system: System, program: str, guest: str) -> bool:
    """Whether it is none of this node. Where Proxmox VE's own folder isn't there, or doesn't answer, such as at a
    restart of its service, no guest is gone.

    :param program: qm or pct.
    """
    folder = f"/etc/pve/{KINDS[program].folder}"
    try:
        return pmxcfs.time_of(system, f"{folder}/{guest}.conf") is None and system.files.is_folder(folder)
    except OSError:
        return False


def place_of(system: System, kind: Kind, vmid: int) -> tuple[str, bool]:
    """The node of the cluster that a guest is on, empty: there is none of this id; and whether it is this one.

    :raises Failure: /etc/pve isn't there: nothing is known then.
    """
    this, nodes = pmxcfs.need(system, f"where {kind.label} {vmid} is"), system.files.need_names(pmxcfs.NODES)
    for pause in (0.0, 0.02):  # one that moves meanwhile is in no folder when that is read
        time.sleep(pause)
        folders = {node: system.files.need_names(f"{pmxcfs.NODES}/{node}/{kind.folder}") for node in nodes}
        if node := next((node for node in nodes if f"{vmid}.conf" in folders[node]), ""):
            return node, node == this
    return "", False


def power_of(system: System, program: str, guest: str, seconds: float = 120.0) -> Power:
    """Whether a guest runs. `gone`: it is none of this node. A guest whose state isn't known is asked again; it is
    neither on nor off. `qm status` prints QMP's own word (PVE::CLI::qm, vmstatus with `full`): a VM that is paused, or
    waits for its disk (io-error), is on.

    :param program: qm or pct.
    :param seconds: for which it is asked at least, by one process: a slow host takes a minute for an answer; 0: once.
    """
    until = time.monotonic() + (system.work.time_to_look(seconds) if seconds else 0.0)
    while True:
        power: Power = "unknown"
        done = system.run.ask(program, "status", guest, seconds=max(ASK_SECONDS, until - time.monotonic()))
        last = done.text.rpartition("\n")[2]
        if done.status == 0 and last.startswith("status: "):
            power = _LAST_LINES.get(last, "on")
        if power == "unknown" and is_gone(system, program, guest):
            power = "gone"
        if power != "unknown" or time.monotonic() >= until:
            return power
        time.sleep(_LOOK_SECONDS)
