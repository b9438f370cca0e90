"""How long the layer cluster_turn may wait, and what it answers."""

from dataclasses import dataclass

#: How long another run on the host is waited for, in seconds.
LOCK_SECONDS = 45
#: How long a node that has restarted waits until it can write to its cluster, in seconds: pmxcfs and corosync start
#: after the network.
CLUSTER_SECONDS = 120


@dataclass(frozen=True)
class Answer:
    """`over`: whether the turn is."""

    over: bool
