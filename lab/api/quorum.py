"""The cluster's members, and what a node without a quorum refuses: three ways, each in words of its own.

pmxcfs shows /etc/pve read-only then: a guest's file can't be written, at once; what changes a file of the whole cluster
asks for that file's lock and gives up after ten seconds (here at once); what begins something new on a guest asks beforehand.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from lab.host import units
from lab.host.cluster import Cluster
from lab.host.state import HostState

from .errors import ApiError, Died


class Members:
    """The nodes of a host's cluster; `quorate` whether most of them see each other."""

    def __init__(self, host: HostState) -> None:
        self._host = host
        #: Of a cluster whose nodes are labs; None for a host that is alone, or whose scenario says what it sees.
        self.cluster = Cluster.of(host)
        if self.cluster is not None:
            self._of_labs(self.cluster)
            return
        text = host.read("/etc/pve/.members", "")
        data = json.loads(text) if text else {}
        self.name: str | None = data.get("cluster", {}).get("name")
        #: Of the cluster's own configuration.
        self.version = int(data.get("cluster", {}).get("version", 2))
        self.quorate = bool(data.get("cluster", {}).get("quorate", 1)) and not host.fault("no-quorum")
        self.nodes: dict[str, dict[str, Any]] = data.get("nodelist") or {
            host.node: {"id": 0, "online": 1, "ip": _own_address(host)}
        }

    def _of_labs(self, cluster: Cluster) -> None:
        seen = cluster.seen_by(self._host.node)
        self.name, self.version = cluster.name, cluster.version
        self.quorate = cluster.is_quorate(self._host.node) and not self._host.fault("no-quorum")
        self.nodes = {
            peer.name: {"id": peer.id, "online": int(peer.name in seen), "ip": peer.ip}
            for peer in cluster.peers.values()
        }

    def expect(self, votes: int) -> None:
        """Let fewer votes be a quorum, as `corosync-quorumtool -e` does: never fewer than more than half of the nodes that are there."""
        there = sum(bool(about["online"]) for about in self.nodes.values())
        data = json.loads(self._host.read("/etc/pve/.members"))
        data["cluster"]["quorate"] = int(there > max(votes, there) // 2)
        self._host.write("/etc/pve/.members", json.dumps(data))


def _own_address(host: HostState) -> str:
    match = re.search(rf"(?m)^(\d\S+)\s.*\b{re.escape(host.node)}$", host.read("/etc/hosts", ""))
    return match[1] if match else "127.0.0.1"


def is_pmxcfs_there(host: HostState) -> bool:
    """Whether /etc/pve is there, which pve-cluster serves."""
    return units.runs(host, "pve-cluster.service")


def require_pmxcfs(host: HostState) -> None:
    """Refuse everything without /etc/pve: nobody's rights can be read.

    Raises:
        ApiError: 500.
    """
    if not is_pmxcfs_there(host):
        why = "Unable to load access control list: Connection refused"
        raise ApiError(500, f"RPCEnvironment init request failed: {why}", body=False)


def require_cluster_ready(host: HostState) -> None:
    """Refuse to begin something on a guest: a start, a new one, a clone.

    Raises:
        ApiError: 500.
    """
    if not Members(host).quorate:
        raise Died("cluster not ready - no quorum?")


def require_writable(host: HostState, path: str) -> None:
    """Refuse to write a guest's file below /etc/pve.

    Raises:
        ApiError: 500, as open(2) says it of the file that would replace it.
    """
    if not Members(host).quorate:
        raise Died(f"unable to open file '{path}.tmp.{100 + secrets.randbelow(900)}' - Permission denied")


def require_cluster_lock(host: HostState, name: str, doing: str = "") -> None:
    """Refuse to change a file of the whole cluster.

    Args:
        name: its lock's, such as `file-user_cfg`.
        doing: what is then said to have failed, such as `create user failed`; nothing for some.

    Raises:
        ApiError: 500.
    """
    if not Members(host).quorate:
        raise Died(f"{doing + ': ' if doing else ''}cfs-lock '{name}' error: no quorum!")
    if host.rooted(f"/etc/pve/priv/lock/{name}").exists():
        raise Died(f"{doing + ': ' if doing else ''}cfs-lock '{name}' error: got lock request timeout")
