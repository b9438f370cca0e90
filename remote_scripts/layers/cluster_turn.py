"""Tells the other nodes of a cluster that this one is back from the restart that it had its turn for: removes
/etc/pve/homelab/turn, if it is this node's."""

from __future__ import annotations

from remote_scripts.both.cluster_turn import CLUSTER_SECONDS, LOCK_SECONDS, Answer
from remote_scripts.both.nothing import Wanted
from remote_scripts.cluster import turn
from remote_scripts.tools.system import System


def apply(system: System, wanted: Wanted) -> Answer:
    """Ends the turn."""
    system.work.lock_seconds = LOCK_SECONDS
    return system.changing(lambda: Answer(turn.end(system, CLUSTER_SECONDS)))
