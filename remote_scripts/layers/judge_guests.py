"""What Proxmox VE's own code says against guests that are to be made, before any is: all mistakes at once
(files/judge_guests.pl).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from remote_scripts import installed
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.system import System

# Perl loads nearly all of Proxmox VE for it.
_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`vms`, `containers`: those that are to be made: name in the settings -> options as the API takes them, also the
    id (`vmid`)."""

    vms: dict[str, dict[str, str]]
    containers: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """`mistakes`: a guest's name -> an option -> what is wrong with it; empty where Proxmox VE's modules can't be
    loaded: then the making of the guest judges."""

    mistakes: dict[str, dict[str, str]] = field(default_factory=dict)


def read(system: System, wanted: Wanted) -> Answer:
    """Asks Proxmox VE."""
    guests, program = json.dumps(to_plain(wanted)).encode(), installed.TEXTS["judge_guests"]
    done = system.run.ask("perl", "-e", program, stdin=guests, seconds=_SECONDS)
    return Answer(json.loads(done.output) if done.status == 0 else {})
