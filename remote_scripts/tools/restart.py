"""A restart of the system, once what asks for it has answered."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from remote_scripts.tools.done import Done
from remote_scripts.tools.run import parents
from remote_scripts.tools.system import System

# The first of its words is the process that has the answer to give, the second the connection's. Of a busy system what
# comes between the order and the answer can take longer than any fixed time.
_WAIT = (
    'timeout 60 tail -s 0.1 --pid="$1" -f /dev/null; timeout 1 tail -s 0.1 --pid="$2" -f /dev/null; systemctl reboot'
)


def starters() -> list[tuple[int, str]]:
    """The processes that have started this one, with their names; the nearest first."""
    processes, started_by, process = list[tuple[int, str]](), parents(), os.getpid()
    while (process := started_by.get(process, 0)) > 1:
        with suppress(OSError):  # it has ended
            processes.append((process, Path(f"/proc/{process}/comm").read_text(errors="replace").strip()))
    return processes


def is_going_down(system: System) -> bool:
    """Whether this system goes down or restarts: a guest that ends then ends with its host, and no unit that would
    start something is taken any more (`Transaction is destructive`).
    """
    return system.run.ask("systemctl", "is-system-running").text == "stopping"


def restart_soon(system: System) -> Done:
    """Restarts the system from a unit of its own, once the answer has been sent. The unit waits up to a minute for this
    process to end. Then it waits up to a second for the end of the connection that carries the answer, which its client
    ends; one that serves others, too, stays. (By default timers are up to a minute late.) If the system goes down
    already, the status is 0.
    """
    above = starters()
    # sshd's nearest process; the agent's last one before it has the answer to give.
    ends = next((place for place, (_, name) in enumerate(above) if name.startswith("sshd")), None)
    connection = 1 if ends is None else above[ends][0]  # 1 doesn't end
    words = ("sh", "-c", _WAIT, "restart", str(os.getpid()), str(connection))
    timer = ("--collect", "--on-active=0.1", "--timer-property=AccuracySec=100ms")
    done = system.run.do("systemd-run", *timer, *words)
    return Done(0, b"") if done.status and is_going_down(system) else done
