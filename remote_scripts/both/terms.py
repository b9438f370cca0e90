"""How a guest is changed, for all layers that change one."""

from dataclasses import dataclass
from typing import Literal

from remote_scripts.notes.guest_note import SHUTDOWN_SECONDS

#: How much longer a start takes whose hookscript waits for a shared card: for work inside its containers and another
#: handover (layers/handover.py, INSIDE_SECONDS and START_SECONDS), then for the containers that are shut down for it.
HANDOVER_SECONDS = 300 + 1200 + 600


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a guest is changed."""

    owner: str = ""
    """The resource that keeps the guest's note: PROJECT/STACK/NAME."""
    power: Literal["keep", "running", "stopped"] = "keep"
    """What the guest is to be afterwards; `keep`: on if it was."""
    rebooted_at: int = 0
    """When this run has restarted the host, in seconds since 1970: what was asked before is asked anew by it."""
    shutdown: int = SHUTDOWN_SECONDS
    """For how many seconds the guest may take its time to go off."""
    otherwise: Literal["fail", "stop"] = "fail"
    """What happens to one that is still on then."""
    waits: tuple[str, ...] = ()
    """Options for which one that runs isn't switched off: they come into force with its next start."""
