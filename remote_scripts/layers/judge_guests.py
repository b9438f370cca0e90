"""What Proxmox VE's own code says against guests that are to be made, before any is: all mistakes at once
(files/judge_guests.pl).
"""

from __future__ import annotations

import json

from remote_scripts import installed
from remote_scripts.both.judge_guests import Answer, Wanted
from remote_scripts.reading import vital
from remote_scripts.reading.source import Source
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.system import System


def read(system: System, wanted: Wanted) -> Answer:
    """Asks Proxmox VE, and who uses the host's devices."""
    guests, program = json.dumps(to_plain(wanted)).encode(), installed.TEXTS["judge_guests"]
    done = system.run.ask("perl", "-e", program, stdin=guests)
    answer = Answer(json.loads(done.output)) if done.status == 0 else Answer({}, done.failure("perl"))
    for guest, option, device in wanted.devices:
        if use := vital.find_use(Source(system), device):
            answer.mistakes.setdefault(guest, {})[option] = f"the host uses it: {use}"
    return answer
