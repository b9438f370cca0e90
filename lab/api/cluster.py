"""The cluster: its nodes, everything on them, the next free id, PCI mappings.

A host alone is a cluster of one. /etc/pve/.members, as pmxcfs writes it, makes one of several: a scenario's `files` may
give it, with nodes that are offline.
"""

from __future__ import annotations

import re
from typing import Any

from lab.host.cluster import Peer
from lab.host.pve_packages import is_pve9
from lab.host.state import HostState

from . import lxc, qemu
from .call import Call
from .errors import ApiError, Died, bad_parameters
from .guests import all_ids, guests_of
from .mapping import Mapping, Mappings
from .quorum import Members, require_cluster_lock

_NODE = re.compile(r"/nodes/([^/]+)/")


def require_reachable(host: HostState, name: str) -> None:
    """Refuse what is for another node; what a shell asks of another lab of a cluster was handed to it before (`Shell.ask`).

    Raises:
        ApiError: 500 for a name that nobody knows, 595 for a node that is in the cluster but doesn't answer.
    """
    if name in (host.node, "localhost"):
        return
    if name not in Members(host).nodes:
        raise Died(
            f"hostname lookup '{name}' failed - failed to get address info for: {name}: "
            "Temporary failure in name resolution"
        )
    raise ApiError(595, "No route to host", body=False)


def require_own(host: HostState, given: dict[str, list[str]]) -> None:
    """Refuse what another node of the cluster answers: pvedaemon hands nothing on.

    Raises:
        ApiError: 500.
    """
    others = Members(host).nodes.keys() - {host.node}
    if any(given.get(name, [""])[0] in others for name in ("node", "check-node")):
        raise ApiError(500, "proxy not allowed", body=False)


def peer_of(host: HostState, path: str) -> Peer | None:
    """The other node of a cluster that answers a request; None for this one's own, and for a node that can't be reached."""
    match = _NODE.match(path)
    if match is None or match[1] in (host.node, "localhost"):
        return None
    members = Members(host)
    online = members.cluster is not None and members.nodes.get(match[1], {}).get("online")
    return members.cluster.peers[match[1]] if members.cluster is not None and online else None


def nodes(call: Call) -> list[dict[str, Any]]:
    """GET /nodes."""
    found = []
    for name, about in Members(call.host).nodes.items():
        there = _host_of(call.host, name)
        status = "online" if name == call.host.node or about["online"] else "offline"
        entry = {"id": f"node/{name}", "type": "node", "node": name, "level": "", "status": status}
        found.append(entry | (_usage(there) if there else {}))
    return found


def _usage(host: HostState) -> dict[str, int | float]:
    """What lists of nodes say of one's load: numbers that nothing depends on, in the order of magnitude of a small host."""
    memory, disk = 64 << 30, 96 << 30
    return {
        "cpu": 0.01, "maxcpu": 8, "mem": memory // 8, "maxmem": memory, "disk": disk // 10, "maxdisk": disk,
        "uptime": int(host.uptime()),
    }  # fmt: skip


def _host_of(host: HostState, name: str) -> HostState | None:
    """A node, for what it tells the others of itself; None for one that nobody hears of."""
    if name == host.node:
        return host
    members = Members(host)
    if members.cluster is None or not members.nodes.get(name, {}).get("online"):
        return None
    return members.cluster.peers[name].host


#: What a guest's own lists say of it, and the cluster's doesn't.
_LEFT_OUT = frozenset({"cpus", "swap", "maxswap", "pid", *qemu.PRESSURES})


def resources(call: Call) -> list[dict[str, Any]]:
    """GET /cluster/resources: of all that a node lists, the guests."""
    found: list[dict[str, Any]] = []
    for name in Members(call.host).nodes:
        if (there := _host_of(call.host, name)) is None:
            continue
        entries = [("qemu", qemu.summary(guest)) for guest in guests_of(there, "qemu")]
        entries += [("lxc", lxc.summary(guest)) for guest in guests_of(there, "lxc")]
        for kind, entry in entries:
            kept = {k: v for k, v in entry.items() if k not in _LEFT_OUT}
            defaults = {"diskread": 0, "diskwrite": 0, "template": 0, "maxcpu": entry["cpus"]}
            if is_pve9(there):
                defaults["memhost"] = entry["mem"]
            found.append({**defaults, **kept, "type": kind, "id": f"{kind}/{entry['vmid']}", "node": name})
    known = {entry["vmid"] for entry in found}
    for vmid, (name, kind) in all_ids(call.host).items():
        if vmid not in known and name != call.host.node:
            found.append({"type": kind, "id": f"{kind}/{vmid}", "vmid": vmid, "node": name, "status": "unknown"})
    return found


def next_id(call: Call) -> str:
    """GET /cluster/nextid: the lowest free one from 100 on, or the one asked for if it is free."""
    taken = all_ids(call.host)
    wanted = call.parameters.get("vmid")
    if wanted is None:
        return str(next(vmid for vmid in range(100, 1_000_000_000) if vmid not in taken))
    if wanted in taken:
        raise bad_parameters({"vmid": f"VM {wanted} already exists"})
    return str(wanted)


# -- mappings --------------------------------------------------------------------------------------------------
_MAPPING_LOCK = "file-mapping_pci_cfg"


def mappings(call: Call) -> list[dict[str, Any]]:
    """GET /cluster/mapping/pci, without `check-node`, which nobody asks for."""
    if "check-node" in call.parameters:
        raise Died("the lab doesn't check mappings on a node")
    every = Mappings(call.host)
    return [{**every.shown(mapping), "id": mapping.name} for mapping in every.all.values()]


def mapping(call: Call) -> dict[str, Any]:
    """GET /cluster/mapping/pci/{id}."""
    every = Mappings(call.host)
    if call.parameters["id"] not in every.all:
        raise Died(f"mapping '{call.parameters['id']}' not found")
    return every.shown(every.all[call.parameters["id"]])


def create_mapping(call: Call) -> None:
    """POST /cluster/mapping/pci."""
    require_cluster_lock(call.host, _MAPPING_LOCK, "create hardware mapping failed")
    Mappings(call.host).create(call.parameters["id"], call.parameters)


def update_mapping(call: Call) -> None:
    """PUT /cluster/mapping/pci/{id}."""
    require_cluster_lock(call.host, _MAPPING_LOCK, "update hardware mapping failed")
    Mappings(call.host).update(call.parameters["id"], call.parameters)


def delete_mapping(call: Call) -> None:
    """DELETE /cluster/mapping/pci/{id}; one that isn't there is no mistake."""
    require_cluster_lock(call.host, _MAPPING_LOCK, "delete pci mapping failed")
    every = Mappings(call.host)
    gone: Mapping | None = every.all.pop(call.parameters["id"], None)
    if gone is not None:
        every.save()
