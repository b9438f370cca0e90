"""Tells the other nodes of a cluster that this one is back from the restart that it had its turn for: removes
/etc/pve/homelab/turn, if it is this node's."""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import turn
from remote_scripts.tools.system import System

#: How long another run on the host is waited for, in seconds.
LOCK_SECONDS = 45
#: How long a node that has restarted waits until it can write to its cluster, in seconds: pmxcfs and corosync start
#: after the network.
CLUSTER_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Nothing is to be said."""


@dataclass(frozen=True)
class Answer:
    """`over`: whether the turn is."""

    over: bool


def apply(system: System, wanted: Wanted) -> Answer:
    """Ends the turn."""
    system.work.lock_seconds = LOCK_SECONDS
    return system.changing(lambda: Answer(turn.end(system, CLUSTER_SECONDS)))
