"""A restart of the system, once what asks for it has answered."""

from __future__ import annotations

import os

from remote_scripts.tools.done import Done
from remote_scripts.tools.system import System

# Its word is the process that has the answer to give: of a busy system what comes between the order and the answer can
# take longer than any fixed time.
_WAIT = 'timeout 60 tail -s 0.1 --pid="$1" -f /dev/null; sleep 1; systemctl reboot'


def is_going_down(system: System) -> bool:
    """Whether this system goes down or restarts: a guest that ends then ends with its host, and no unit that would
    start something is taken any more (`Transaction is destructive`).
    """
    return system.run.ask("systemctl", "is-system-running").text == "stopping"


def restart_soon(system: System) -> Done:
    """Restarts the system from a unit of its own, once the answer has been sent. The unit waits up to a minute for this
    process to end, and then a second, in which the connection hands the answer on. If the system goes down already, the
    status is 0.
    """
    done = system.run.do("systemd-run", "--collect", "sh", "-c", _WAIT, "restart", str(os.getpid()))
    return Done(0, b"") if done.status and is_going_down(system) else done
