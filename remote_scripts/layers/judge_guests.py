"""What Proxmox VE's own code says against guests that are to be made, before any is: all mistakes at once
(files/judge_guests.pl).
"""

from __future__ import annotations

import json

from remote_scripts import installed
from remote_scripts.both.judge_guests import Answer, Wanted
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.system import System


def read(system: System, wanted: Wanted) -> Answer:
    """Asks Proxmox VE."""
    guests, program = json.dumps(to_plain(wanted)).encode(), installed.TEXTS["judge_guests"]
    done = system.run.ask("perl", "-e", program, stdin=guests)
    return Answer(json.loads(done.output)) if done.status == 0 else Answer({}, done.failure("perl"))
