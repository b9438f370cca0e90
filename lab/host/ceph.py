"""Ceph on the nodes of a cluster: which disks (OSDs) and monitors each has, which of them run, and what is lost if some stop.

`ceph.json` beside the cluster's /etc/pve has it; the cluster's description says what is in it (lab/cluster.py). A disk and a monitor run while their node does,
and some time after its boot. Each placement group has a copy on `size` nodes. Not there: data, and that the disks of a node that stays away are replaced.
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


class Ceph:
    """A cluster's Ceph, as its monitors know it.

    Args:
        cluster: whose it is; it has one.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        data = json.loads((cluster.folder / FILE).read_text(encoding="utf-8"))
        #: Disk's number -> its node.
        self.osds: dict[int, str] = {int(number): node for number, node in data["osds"].items()}
        #: The nodes with a monitor, by name.
        self.monitors: list[str] = data["monitors"]
        self.size, self.min_size = int(data["size"]), int(data["min_size"])

    @classmethod
    def of(cls, host: HostState) -> Ceph | None:
        """That of a host's cluster; None where there is none."""
        cluster = Cluster.of(host)
        return cls(cluster) if cluster and (cluster.folder / FILE).exists() else None

    @classmethod
    def make(cls, folder: Path, data: dict[str, Any]) -> None:
        """Write what a description says: `osds`, node -> numbers; `monitors` (without it: the nodes with disks), `size` (3) and `min_size` (2).

        Args:
            folder: the cluster's.
        """
        osds = {number: node for node, numbers in data["osds"].items() for number in numbers}
        made = {
            "osds": osds, "monitors": data.get("monitors", list(data["osds"])),
            "size": data.get("size", 3), "min_size": data.get("min_size", 2),
        }  # fmt: skip
        write_atomically(folder / FILE, json.dumps(made, indent=1) + "\n")

    @classmethod
    def files(cls, data: dict[str, Any], node: str) -> dict[str, str]:
        """What a node of such a cluster has of it: path -> content."""
        found = {f"/var/lib/ceph/osd/ceph-{number}/whoami": f"{number}\n" for number in data["osds"].get(node, [])}
        if node in data.get("monitors", list(data["osds"])):
            found[f"/var/lib/ceph/mon/ceph-{node}/kv_backend"] = "rocksdb\n"
        return found

    def _runs(self, node: str, seconds: float) -> bool:
        peer = self._cluster.peers[node]
        return peer.listens and not peer.is_cut_off and peer.host.uptime() >= seconds

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
        left = set(self.up) - set(stopped)
        return sum(sum(number in left for number in copies) < self.min_size for copies in self._placed())

    def _placed(self) -> list[list[int]]:
        """For each placement group the disks that have it: one of each of `size` nodes."""
        nodes = sorted(set(self.osds.values()))
        own = {node: [number for number, at in sorted(self.osds.items()) if at == node] for node in nodes}
        chosen = [
            [nodes[(group + turn) % len(nodes)] for turn in range(min(self.size, len(nodes)))]
            for group in range(GROUPS)
        ]
        return [[own[node][group % len(own[node])] for node in some] for group, some in enumerate(chosen)]
