"""Brings a container's changed configuration into force: a shutdown and a start, only if it runs and was changed. Then
its power. If it won't go off, its configuration is put back to what it runs with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from remote_scripts.shared import handover
from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.container_change import ConfigChange
from remote_scripts.shared.container_notes import waits_for_restart
from remote_scripts.shared.container_power import Power, Shutdown
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`cards`, `shutdown`: as of container_gpus.py; `power`: what it is to be in the end."""

    ctid: int
    cards: Cards = field(default_factory=Cards)
    shutdown: Shutdown = field(default_factory=Shutdown)
    power: Literal["keep", "running", "stopped"] = "keep"


@dataclass(frozen=True)
class Answer:
    """`state`: running or stopped."""

    state: str
    restarted: bool


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Restarts it where that is needed.

    :raises Failure: it doesn't go off in its time, or doesn't start.
    """
    handover.need_rest(system)
    power = Power(system, wanted.ctid, wanted.shutdown)
    config = ConfigChange(system, wanted.ctid, power, wanted.cards)
    # Where an earlier restart failed, the configuration was put back.
    config.apply(look_inside=False)
    if waits_for_restart(system, wanted.ctid) and power.is_up() and not power.shut_down_to_start():
        raise _still_up(config, power)
    config.mark_in_force()
    is_owed = power.is_owed()
    if not is_owed:
        system.log.say(f"container {wanted.ctid} needs no restart: it is off, or has what its configuration says")
    if wanted.power == "stopped":
        if power.is_up() and not power.shut_down():
            raise _still_up(config, power)
    elif is_owed or (wanted.power == "running" and not power.is_up()):
        power.start()
    config.notes.change(ran=None)
    return Answer("running" if power.is_up() else "stopped", is_owed)


def _still_up(config: ConfigChange, power: Power) -> Failure:
    is_back = config.restore_original()
    return power.shutdown_failure(
        "is as it was before" if is_back else "stays as it was written, and takes effect at its next start",
        "give it more time (shutdown.timeout)",
    )
