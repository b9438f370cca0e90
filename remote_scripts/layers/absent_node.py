"""On another node than the one that hasn't come back from its restart: Ceph is to replace its disks."""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import cluster
from remote_scripts.tools.system import System


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`node`: its name in the cluster."""

    node: str


@dataclass(frozen=True)
class Answer:
    """`lifted`: whether noout is; none: there is nothing to lift."""

    lifted: cluster.Lifted


def apply(system: System, wanted: Wanted) -> Answer:
    """Asks Ceph alone, of what the node has noted in the cluster; nothing on this host changes."""
    return Answer(cluster.lift_noout(system, wanted.node))
