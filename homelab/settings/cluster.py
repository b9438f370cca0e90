"""A Proxmox VE cluster: the settings that its nodes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from homelab.model import Model
from homelab.settings.access import SshLogin
from homelab.settings.keys import PublicKey
from homelab.settings.types import LocalPath, NetworkAddress, NodeName


class ClusterNode(Model):
    """A node of a cluster: where it is, and by which key it is recognised."""

    address: NetworkAddress
    """Where the node is reached."""
    host_key: PublicKey | None = None
    """The node's public key, as of `hosts.NAME.ssh.hostKey`. Set this or `hostKeyFile`."""
    host_key_file: LocalPath | None = None
    """A file with the node's public key. Set this or `hostKey`."""

    @model_validator(mode="after")
    def _one_host_key(self) -> Self:
        if (self.host_key is None) == (self.host_key_file is None):
            raise ValueError("expected hostKey (the line that `ssh-keyscan -t ed25519 ADDRESS` prints) or hostKeyFile")
        return self


class ProxmoxCluster(Model):
    """A Proxmox VE cluster. A host with this name as its `cluster` takes from here what it doesn't say itself:
    `address`, `ssh` and `guestsAtReboot`."""

    nodes: dict[NodeName, ClusterNode]
    """Its nodes, each under its name in Proxmox VE. One on which none of your guests may be, and which is no host of
    these settings, may be left out."""
    ssh: SshLogin
    """How one logs in to each of them."""
    guests_at_reboot: Literal["shutdown", "maintenance"] | None = None
    """The same as of each host, for all of them."""


# Characters at most of a message that quotes names from the settings.
_LONGEST_MESSAGE = 400


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration with what its hosts take from their clusters.

    :param values: key (without `homelab:`) -> value, not validated yet: a value of a wrong type is left to the models.
    :raises ValueError: a host is no node of the cluster that it takes something from.
    """
    clusters, hosts = values.get("clusters"), values.get("hosts")
    if not isinstance(clusters, Mapping) or not isinstance(hosts, Mapping):
        return dict(values)
    return {**values, "hosts": {name: _filled(str(name), host, clusters) for name, host in hosts.items()}}


def _filled(name: str, host: Any, clusters: Mapping[str, Any]) -> Any:
    cluster_name = host.get("cluster") if isinstance(host, Mapping) else None
    cluster = clusters.get(cluster_name) if isinstance(cluster_name, str) else None
    node_name = host.get("node", name) if isinstance(host, Mapping) else None
    if not isinstance(cluster, Mapping) or not isinstance(node_name, str):
        return host
    nodes, ssh = cluster.get("nodes"), cluster.get("ssh")
    node = nodes.get(node_name) if isinstance(nodes, Mapping) else None
    if node is None and isinstance(nodes, Mapping) and not {"address", "ssh"} <= host.keys():
        there = ", ".join(map(str, nodes)) or "none"
        message = f"hosts.{name}: clusters.{cluster_name} has no node {node_name}; it has {there}"
        if message.isprintable() and len(message) < _LONGEST_MESSAGE:  # else the names themselves are refused
            raise ValueError(message)
    if isinstance(node, Mapping):
        host = {**_selected(node, "address"), **host}
        if isinstance(ssh, Mapping):
            host = {"ssh": {**ssh, **_selected(node, "hostKey", "hostKeyFile")}, **host}
    return {**_selected(cluster, "guestsAtReboot"), **host}


def _selected(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
