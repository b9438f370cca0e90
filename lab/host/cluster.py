"""A cluster's nodes: what they share, and which of them sees which.

Each node is a lab of its own, with its daemon. What they share lies in one folder: `pve/`, the content of /etc/pve, of which each node has a
view with links of its own (`local`, `qemu-server`, `lxc`), and `cluster.json`. A scenario's `cluster` names the folder; lab/cluster.py makes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .state import HostState, write_atomically

_FILE = "cluster.json"
_ROOTS_KEYS, _SHARED_KEYS = "/root/.ssh/authorized_keys", "/etc/pve/priv/authorized_keys"
#: What pmxcfs has at its top, in which somebody writes; elsewhere a node has it only when it was written.
_FOLDERS = ("nodes", "mapping", "priv", "ha", "sdn", "firewall", "virtual-guest", "homelab")
_FILES = (
    "storage.cfg", "user.cfg", "datacenter.cfg", "corosync.conf", "jobs.cfg", "replication.cfg", "vzdump.cron",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A node as the cluster's own configuration has it."""

    name: str
    id: int
    ip: str
    host: HostState

    @property
    def listens(self) -> bool:
        """Whether it runs, with its network."""
        if not (self.host.state / "machine.json").exists():
            return False
        self.host.reload()
        return self.host.machine["power"] == "on" and bool(self.host.running.get("network"))


class Cluster:
    """What the nodes of one cluster share.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        self.name: str = data["name"]
        self.version: int = data["version"]
        self.peers = {
            name: Peer(name, one["id"], one["ip"], HostState(folder / "nodes" / name))
            for name, one in data["nodes"].items()
        }

    @classmethod
    def make(cls, folder: Path, name: str, nodes: dict[str, dict[str, Any]]) -> Cluster:
        """Make the shared folder.

        Args:
            nodes: node's name -> id and ip.
        """
        for one in _FOLDERS:
            (folder / "pve" / one).mkdir(parents=True, exist_ok=True)
        (folder / "pve" / "priv" / "lock").mkdir(exist_ok=True)
        (folder / "nodes").mkdir(exist_ok=True)
        data = {"name": name, "version": len(nodes), "nodes": nodes}
        write_atomically(folder / _FILE, json.dumps(data, indent=1) + "\n")
        write_atomically(folder / "pve" / "corosync.conf", _corosync(name, nodes))
        # As the installer writes it. What nobody has written leads to nothing by a node's links, and is no file there.
        write_atomically(folder / "pve" / "datacenter.cfg", "keyboard: en-us\n")
        for one in ("jobs.cfg", "replication.cfg", "vzdump.cron"):
            (folder / "pve" / one).touch()
        return cls(folder)

    @classmethod
    def of(cls, host: HostState) -> Cluster | None:
        """A host's cluster; None for one that is alone."""
        folder = host.machine.get("cluster")
        return cls(Path(folder)) if folder else None

    def show(self, host: HostState) -> None:
        """Give a node its /etc/pve."""
        view = host.rooted("/etc/pve")
        view.mkdir(parents=True, exist_ok=True)
        for name in (*_FOLDERS, *_FILES):
            host.symlink(f"/etc/pve/{name}", str(self.folder / "pve" / name))

    def seen_by(self, name: str) -> set[str]:
        """The nodes that a node sees, itself among them."""
        return {name} | {peer.name for peer in self.peers.values() if self.peers[name].listens and peer.listens}

    def is_quorate(self, name: str) -> bool:
        """Whether most nodes are on a node's side; each has one vote."""
        return len(self.seen_by(name)) > len(self.peers) // 2


def share_keys(host: HostState) -> None:
    """Make root's authorized_keys a link to the cluster's, as `pvecm updatecerts` does at each start of pve-cluster.

    A file there is renamed to .org, and its lines are added to the cluster's, with the node's own key (PVE::Cluster::Setup, setup_ssh_keys and
    ssh_merge_keys).
    """
    keys, backup = host.rooted(_ROOTS_KEYS), host.rooted(f"{_ROOTS_KEYS}.org")
    if keys.is_file() and not keys.is_symlink():
        keys.rename(backup)
    host.symlink(_ROOTS_KEYS, str(host.rooted(_SHARED_KEYS)))
    texts = [host.read(path, "") for path in (_SHARED_KEYS, str(backup), "/root/.ssh/id_rsa.pub")]
    lines = [line for text in texts for line in text.splitlines()]
    host.write(_SHARED_KEYS, "".join(f"{line}\n" for line in dict.fromkeys(lines)), 0o600)
    backup.unlink(missing_ok=True)


def _corosync(name: str, nodes: dict[str, dict[str, Any]]) -> str:
    """corosync.conf as `pvecm create` and `pvecm add` leave it (the Proxmox VE Administration Guide, Cluster Manager)."""
    members = "".join(
        f"  node {{\n    name: {node}\n    nodeid: {one['id']}\n    quorum_votes: 1\n    ring0_addr: {one['ip']}\n  }}\n"
        for node, one in nodes.items()
    )
    return (
        "logging {\n  debug: off\n  to_syslog: yes\n}\n\n"
        f"nodelist {{\n{members}}}\n\n"
        f"quorum {{\n  provider: corosync_votequorum\n}}\n\n"
        f"totem {{\n  cluster_name: {name}\n  config_version: {len(nodes)}\n  interface {{\n    linknumber: 0\n  }}\n"
        "  ip_version: ipv4-6\n  link_mode: passive\n  secauth: on\n  version: 2\n}\n"
    )
