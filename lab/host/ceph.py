"""Ceph on the nodes of a cluster: which disks (OSDs) and monitors each has, which of them run, and what is lost if some stop.

`ceph.json` beside the cluster's /etc/pve has it; the cluster's description says what is in it (lab/cluster.py). A node with disks has a monitor. Both run
while their node does, and some time after its boot. Each placement group has a copy on each disk. Not there: data, and that the disks of a node that stays
away are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .state import HostState, write_atomically

FILE = "ceph.json"
#: From a node's boot until its monitor has joined the others, and until its disks are up; a few seconds and some ten on a real one.
MONITOR_SECONDS, OSD_SECONDS = 0.3, 0.6
GROUPS = 33
#: As many copies of a placement group must be there, so that it can be written.
_MIN_SIZE = 2


class Ceph:
    """A cluster's Ceph, as its monitors know it.

    Args:
        cluster: whose it is; it has one.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        osds: dict[str, list[int]] = json.loads((cluster.folder / FILE).read_text(encoding="utf-8"))["osds"]
        #: Disk's number -> its node.
        self.osds = {number: node for node, numbers in osds.items() for number in numbers}
        #: The nodes with a monitor, by name.
        self.monitors = list(osds)

    @classmethod
    def of(cls, host: HostState) -> Ceph | None:
        """That of a host's cluster; None where there is none."""
        cluster = Cluster.of(host)
        return cls(cluster) if cluster and (cluster.folder / FILE).exists() else None

    @classmethod
    def make(cls, folder: Path, data: dict[str, Any]) -> None:
        """Write what a description says: `osds`, node -> numbers.

        Args:
            folder: the cluster's.
        """
        write_atomically(folder / FILE, json.dumps(data, indent=1) + "\n")

    @classmethod
    def files(cls, data: dict[str, Any], node: str) -> dict[str, str]:
        """What a node of such a cluster has of it: path -> content."""
        found = {f"/var/lib/ceph/osd/ceph-{number}/whoami": f"{number}\n" for number in data["osds"].get(node, [])}
        if node in data["osds"]:
            found[f"/var/lib/ceph/mon/ceph-{node}/kv_backend"] = "rocksdb\n"
        return found

    def _runs(self, node: str, seconds: float) -> bool:
        peer = self._cluster.peers[node]
        return peer.listens and peer.host.uptime() >= seconds

    @property
    def quorum(self) -> list[str]:
        """The monitors that have one; none where they are too few."""
        up = [node for node in self.monitors if self._runs(node, MONITOR_SECONDS)]
        return up if len(up) > len(self.monitors) // 2 else []

    @property
    def up(self) -> list[int]:
        """The disks that run."""
        return [number for number, node in sorted(self.osds.items()) if self._runs(node, OSD_SECONDS)]

    def offline_without(self, stopped: Collection[int]) -> int:
        """How many placement groups have too few copies to be written once these disks have stopped, too."""
        return GROUPS if len(set(self.up) - set(stopped)) < _MIN_SIZE else 0
