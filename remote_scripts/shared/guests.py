"""Which guests of this host run."""

from __future__ import annotations

import time
from typing import Literal

from remote_scripts.tools.system import System

Power = Literal["on", "off", "gone", "unknown"]
_LAST_LINES: dict[str, Power] = {"status: stopped": "off", "status: unknown": "unknown"}
_FOLDERS = {"qm": "qemu-server", "pct": "lxc"}
_LOOK_SECONDS = 1.0


def power_of(system: System, program: str, guest: str, seconds: float = 60.0) -> Power:
    """Whether a guest runs. `gone`: it is none of this node. What isn't known is neither on nor off: it is asked again
    until then. `qm status` prints QMP's own word (PVE::CLI::qm, vmstatus with `full`), so that a VM which is paused, or
    waits for its disk (io-error), is on.

    :param program: qm or pct.
    :param seconds: for which it is asked.
    """
    folder = f"/etc/pve/{_FOLDERS.get(program, 'lxc')}"
    until = time.monotonic() + seconds
    while True:
        power: Power = "unknown"
        done = system.run.ask(program, "status", guest)
        last = done.text.rpartition("\n")[2]
        if done.status == 0 and last.startswith("status: "):
            power = _LAST_LINES.get(last, "on")
        # Where Proxmox VE's own folder isn't there, such as at a restart of its service, no guest is gone.
        if (
            power == "unknown"
            and system.files.at(folder).is_dir()
            and not system.files.exists(f"{folder}/{guest}.conf")
        ):
            power = "gone"
        if power != "unknown" or time.monotonic() >= until:
            return power
        time.sleep(_LOOK_SECONDS)
