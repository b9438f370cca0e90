"""A VM that is migrated while it is off, over the API: what Proxmox VE says of it, and doing it. What is decided: homelab/vm/migration.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from homelab.errors import HomelabError
from homelab.remote.proxmox.api import OUTAGE_SECONDS, Api
from homelab.remote.proxmox.errors import ApiError, ElsewhereError, NotThereError
from homelab.remote.proxmox.machine import HA_SECONDS
from homelab.settings import Host, Vm
from homelab.vm.config import strings
from homelab.vm.migration import OfflineMigration


def place_of(api: Api, vmid: int) -> str:
    """The node that a VM is on; empty: there is none. ``api``: of any node. Raises ApiError."""
    try:
        api.get(f"nodes/{api.node}/qemu/{vmid}/config", f"to see where VM {vmid} is")
    except ElsewhereError as error:
        return error.node
    except NotThereError:
        return ""
    return api.node


def under_way(api: Api, vmid: int) -> str:
    """The task of a migration of this program's that is at work. ``api``: of the node that the VM leaves. Empty: there is none. Raises ApiError."""
    found = api.tasks(source="active", vmid=vmid, typefilter="qmigrate")
    return str(found[0]["upid"]) if found else ""


def read(api: Api, name: str, vmid: int, node: str, storage: str) -> OfflineMigration:
    """What is to be known of a migration of a VM from a node to that of the API.

    :param name: in the settings; ``storage``: `migrateStorage`, empty: none.
    :raises ApiError: the API doesn't say.
    """
    there, path = api.at(node), f"nodes/{node}/qemu/{vmid}"
    config = strings(there.get(f"{path}/config", f"to read the configuration of VM {vmid}, which is on {node}"))
    status = there.get(f"{path}/status/current", f"to see whether VM {vmid} runs")
    begun = under_way(there, vmid) if config.get("lock") == "migrate" else ""
    said: dict[str, Any] = {}
    if "lock" not in config:  # else it says nothing but that
        said = there.get(f"{path}/migrate", f"to see whether VM {vmid} can be migrated from {node} to {api.node}")
    jobs = api.get("cluster/replication", f"to see whether VM {vmid} is replicated")
    nodes = api.get("nodes", "to see the nodes of the cluster")
    return OfflineMigration(
        name=name,
        vmid=vmid,
        node=node,
        target=api.node,
        config=config,
        running=status["status"] == "running",
        storage=storage,
        said=said,
        here=_storages(there),
        there=_storages(api),
        bridges_here=_bridges(there),
        bridges_there=_bridges(api),
        jobs=tuple(str(one["id"]) for one in jobs if one.get("guest") == vmid),
        memory=next((int(one.get("maxmem") or 0) for one in nodes if one["node"] == api.node), 0),
        under_way=begun,
        by_ha=bool((status.get("ha") or {}).get("managed")),
    )


def _storages(api: Api) -> dict[str, Mapping[str, Any]]:
    rows = api.get(f"nodes/{api.node}/storage", f"to see the storages of {api.node}")
    return {str(row["storage"]): row for row in rows}


def _bridges(api: Api) -> frozenset[str]:
    """Those that this user may see."""
    rows = api.get(f"nodes/{api.node}/network", f"to see the bridges of {api.node}", type="any_bridge")
    return frozenset(str(row["iface"]) for row in rows)


def read_all(
    name: str, host: Host, vms: Mapping[str, Vm], patience: float = OUTAGE_SECONDS
) -> dict[str, OfflineMigration | HomelabError]:
    """The same of each VM that is to come to a host; or why it isn't known.

    :param name: the host's in the settings; ``vms``: on it, or to be.
    :param patience: seconds that an outage of the API may last.
    """
    found: dict[str, OfflineMigration | HomelabError] = {}
    for guest, vm in vms.items():
        if vm.leaves:
            try:
                api = Api(host, host.node or name, patience=patience)
                found[guest] = read(api, guest, vm.vmid, vm.leaves, vm.migrate_storage or "")
            except HomelabError as error:
                found[guest] = error
    return found


def migrate(api: Api, node: str, vmid: int, storage: str, say: Callable[[str], None]) -> None:
    """Moves a VM that is off from a node to that of the API, or waits for the migration that an earlier run began.

    :param storage: as of `read`.
    :raises ApiError: it was refused, failed, or still runs.
    """
    there, wanted = api.at(node), f"VM {vmid} migrated from {node} to {api.node}"
    seconds = api.host.timeouts.create
    if upid := under_way(there, vmid):
        say(f"it is on its way already, since an earlier run: waiting for that ({upid})")
        there.task(upid, wanted, seconds, say)
        return
    more = {"targetstorage": storage} if storage else {}
    say(f"migrating from {node} to {api.node}")
    path, kinds = f"nodes/{node}/qemu/{vmid}/migrate", ("qmigrate", "hamigrate")
    there.carry_out("post", path, wanted, seconds, say, kinds=kinds, target=api.node, **more)
    # HA's task ends at once, and HA follows later.
    deadline = api.clock.now() + HA_SECONDS
    while place_of(api, vmid) != api.node:
        if api.clock.now() > deadline:
            raise ApiError(
                wanted=wanted,
                found=f"its task ended well, and it is still on {node}",
                why="HA was asked to move it, and hasn't",
                next="see what keeps HA from it (`ha-manager status`, `journalctl -u pve-ha-crm`), then run `pulumi up` again",
                status=500,
                reason="not moved",
            )
        api.clock.sleep(1)
