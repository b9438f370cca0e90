"""Guests under the HA manager: a start or a stop asks it, by a task that ends at once; the guest follows some time later (recorded on a cluster).

The manager ends a guest by force when the time that it was given for a shutdown is over. What else it does: lab.api.ha_manager.

A guest is one of its services if /etc/pve/ha/resources.cfg has `vm: ID` or `ct: ID` with another state than `ignored`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import ha_config
from .call import Call
from .guests import Guest
from .tasks import TaskLog, Work

#: Until the manager has the guest started or stopped; 10 to 20 seconds on a real one.
DELAY_SECONDS = 0.4
#: What a guest gets for a shutdown where the request doesn't say (PVE::API2::Qemu, PVE::API2::LXC::Status).
SHUTDOWN_SECONDS = 60


def _state(guest: Guest) -> str | None:
    """What the manager is to make of a guest; None: it isn't one of its services."""
    settings = ha_config.read(guest.host).get(ha_config.sid_of(guest))
    wanted = "ignored" if settings is None else ha_config.wanted(settings)
    return None if wanted == "ignored" else wanted


def _ask_for(guest: Guest, state: str) -> None:
    """Write the state that the manager is to bring a guest into."""
    header = ha_config.sid_of(guest).replace(":", ": ")
    sections = re.split(r"(?m)^(?=\S)", guest.host.read(ha_config.FILE, ""))
    for number, section in enumerate(sections):
        if section.startswith(f"{header}\n"):
            bare = re.sub(r"(?m)^\s+state \S+\n", "", section)
            sections[number] = re.sub(r"\n", f"\n\tstate {state}\n", bare, count=1)
    guest.host.write(ha_config.FILE, "".join(sections))


def shown(guest: Guest) -> dict[str, Any]:
    """`ha` of a guest's status."""
    state = _state(guest)
    return {"managed": 0} if state is None else {"managed": 1, "state": state}


def asked(call: Call, guest: Guest, verb: str, work: Callable[[TaskLog], Work]) -> str | None:
    """Have the manager do it; None: the guest isn't its.

    Args:
        verb: start or stop.
        work: what the node does then.
    """
    if _state(guest) is None:
        return None
    prefix = "qm" if guest.kind == "qemu" else "vz"

    def request(log: TaskLog) -> Work:
        """A start is a state that is asked for at once; a stop goes to the manager, which writes the state when it comes to it (recorded)."""
        log(f"Requesting HA {verb} for {guest.label}")
        if verb == "start":
            _ask_for(guest, "started")
        yield 0.0

    def followed(log: TaskLog) -> Work:
        yield DELAY_SECONDS
        if verb == "stop":
            _ask_for(guest, "stopped")
        elif guest.running:
            return
        yield from work(log)

    upid = call.start(f"ha{verb}", str(guest.vmid), request)
    call.start_as_root(f"{prefix}{verb}", str(guest.vmid), followed)
    return upid
