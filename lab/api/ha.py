"""VMs under the HA manager: a start or a stop asks it, by a task that ends at once; the VM follows some time later (recorded on a cluster).

The manager ends a guest by force when the time that it was given for a shutdown is over.

A VM is one of its services if /etc/pve/ha/resources.cfg has `vm: ID` with another state than `ignored`. The fault ha-error, a VM's id, has it in the
state `error`; with ha-idle the manager never comes to what it was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .call import Call
from .errors import Died
from .guests import Guest
from .tasks import TaskLog, Work

_FILE = "/etc/pve/ha/resources.cfg"
#: Until the manager has the VM started or stopped; 10 to 20 seconds on a real one.
DELAY_SECONDS = 0.4
#: What a guest gets for a shutdown where the request doesn't say (PVE::API2::Qemu).
SHUTDOWN_SECONDS = 60


def _state(guest: Guest) -> str | None:
    """What the manager is to make of a VM; None: it isn't one of its services."""
    match = re.search(rf"(?m)^vm: {guest.vmid}\n((?:[ \t]+.*\n?)*)", guest.host.read(_FILE, ""))
    if match is None:
        return None
    state = re.search(r"(?m)^\s+state (\S+)$", match[1])
    wanted = state[1] if state else "started"
    if wanted == "ignored":
        return None
    return "error" if guest.has_fault("ha-error") and wanted != "disabled" else wanted


def _ask_for(guest: Guest, state: str) -> None:
    """Write the state that the manager is to bring a VM into."""
    sections = re.split(r"(?m)^(?=\S)", guest.host.read(_FILE, ""))
    for number, section in enumerate(sections):
        if re.match(rf"vm: {guest.vmid}\n", section):
            bare = re.sub(r"(?m)^\s+state \S+\n", "", section)
            sections[number] = re.sub(r"\n", f"\n\tstate {state}\n", bare, count=1)
    guest.host.write(_FILE, "".join(sections))


def shown(guest: Guest) -> dict[str, Any]:
    """`ha` of a VM's status."""
    state = _state(guest)
    return {"managed": 0} if state is None else {"managed": 1, "state": state}


def asked(call: Call, guest: Guest, verb: str, work: Callable[[TaskLog], Work]) -> str | None:
    """Have the manager do it; None: the VM isn't its.

    Args:
        verb: start or stop.
        work: what the node does then.
    """
    if _state(guest) is None:
        return None

    def request(log: TaskLog) -> Work:
        """A start is a state that is asked for at once; a stop goes to the manager, which writes the state when it comes to it (recorded)."""
        log(f"Requesting HA {verb} for VM {guest.vmid}")
        if _state(guest) == "error":
            log(f"service 'vm:{guest.vmid}' in error state, must be disabled and fixed first")
            raise Died(f"command 'ha-manager set vm:{guest.vmid} --state {verb}ed' failed: exit code 255")
        if verb == "start":
            _ask_for(guest, "started")
        yield 0.0

    def followed(log: TaskLog) -> Work:
        yield DELAY_SECONDS
        if _state(guest) == "error" or guest.has_fault("ha-idle"):
            return
        if verb == "stop":
            _ask_for(guest, "stopped")
        elif guest.running:
            return
        yield from work(log)

    upid = call.start(f"ha{verb}", str(guest.vmid), request)
    call.start_as_root(f"qm{verb}", str(guest.vmid), followed)
    return upid
