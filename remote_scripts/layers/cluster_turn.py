"""Tells the other nodes of a cluster that this one is back from the restart that it had its turn for.

Puts back what was set for the restart (shared/restart_settings.py), removes /etc/pve/priv/homelab-reboot, if it is this
node's, and /var/lib/homelab/turn (shared/cluster.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remote_scripts.shared import cluster, restart_settings
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: How long another run on the host is waited for, in seconds.
LOCK_SECONDS = 45
#: How long a node that has restarted waits until it can write to its cluster, in seconds: pmxcfs and corosync start
#: after the network.
CLUSTER_SECONDS = 120
#: How long a node waits for guests that HA brings back to it, in seconds.
RETURN_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Nothing is to be said."""


@dataclass(frozen=True)
class Answer:
    """`over`: whether the turn is; `set`: what is still set, for a person."""

    over: bool
    set: str = ""


def apply(system: System, wanted: Wanted) -> Answer:
    """Ends the turn, or leaves the rest to the node's own timer.

    :raises Failure: what is set can't be told.
    """
    system.work.lock_seconds = LOCK_SECONDS
    return system.changing(lambda: _end(system))


def program(system: System, _arguments: Sequence[str] = ()) -> None:
    """What the node's own timer starts.

    :raises Failure: it isn't over; systemd starts it again in a minute.
    """

    def end() -> None:
        if not cluster.end_turn(system, CLUSTER_SECONDS, RETURN_SECONDS, itself=True):
            raise Failure(
                "what was set for this node's restart put back",
                f"not all of it could be: {cluster.still_set(system)}",
                "it stays set until a later try succeeds",
                "wait: homelab-turn.service tries again in a minute",
            )

    system.work.lock_seconds = LOCK_SECONDS
    system.changing(end)


def _end(system: System) -> Answer:
    if cluster.end_turn(system, CLUSTER_SECONDS, RETURN_SECONDS):
        return Answer(True)
    # It goes on trying at once, not when its timer's time is over.
    if not cluster.is_restart_ordered(system) and restart_settings.TIMER.is_whole(system):
        restart_settings.TIMER.start_now(system)
    return Answer(False, cluster.still_set(system))
