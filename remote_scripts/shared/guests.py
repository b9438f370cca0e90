"""Which guests of this host run."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools.system import System

Power = Literal["on", "off", "gone", "unknown"]
_LAST_LINES: dict[str, Power] = {"status: stopped": "off", "status: unknown": "unknown"}
_FOLDERS = {"qm": "qemu-server", "pct": "lxc"}
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Guest:
    """A guest that runs."""

    id: int
    name: str


def running(system: System, kind: str) -> list[Guest] | None:
    """The guests that run; None: there was no answer, which is no empty list.

    The last column of `qm list` is the VM's process: one without a name is listed as `VM 103`, so that its status isn't
    the third, and a paused one runs, too.

    :param kind: vm or lxc.
    """
    program = "qm" if kind == "vm" else "pct"
    if not system.run.has(program):
        return []
    done = system.run.ask(program, "list")
    if done.status != 0:
        return None
    guests = []
    for words in map(str.split, done.text.split("\n")):
        if len(words) < 2 or not words[0].isdecimal():
            continue
        if kind != "vm":
            if words[1] == "running":
                guests.append(Guest(int(words[0]), words[-1]))
        elif re.fullmatch(r"[1-9][0-9]*", words[-1]):
            is_nameless = words[1:3] == ["VM", words[0]]
            guests.append(Guest(int(words[0]), f"VM {words[0]}" if is_nameless else words[1]))
    return guests


def is_gone(system: System, program: str, guest: str) -> bool:
    """Whether it is none of this node. Where Proxmox VE's own folder isn't there, or doesn't answer, such as at a
    restart of its service, no guest is gone.

    :param program: qm or pct.
    """
    folder = f"/etc/pve/{_FOLDERS.get(program, 'lxc')}"

    def ask() -> bool:
        try:
            os.lstat(system.files.at(f"{folder}/{guest}.conf"))
        except FileNotFoundError:
            return system.files.at(folder).is_dir()
        return False

    try:
        return within_limit(ask)
    except OSError:
        return False


def power_of(system: System, program: str, guest: str, seconds: float = 60.0) -> Power:
    """Whether a guest runs. `gone`: it is none of this node. What isn't known is neither on nor off: it is asked again
    until then. `qm status` prints QMP's own word (PVE::CLI::qm, vmstatus with `full`), so that a VM which is paused, or
    waits for its disk (io-error), is on.

    :param program: qm or pct.
    :param seconds: for which it is asked.
    """
    until = time.monotonic() + seconds
    while True:
        power: Power = "unknown"
        done = system.run.ask(program, "status", guest)
        last = done.text.rpartition("\n")[2]
        if done.status == 0 and last.startswith("status: "):
            power = _LAST_LINES.get(last, "on")
        if power == "unknown" and is_gone(system, program, guest):
            power = "gone"
        if power != "unknown" or time.monotonic() >= until:
            return power
        time.sleep(_LOOK_SECONDS)
