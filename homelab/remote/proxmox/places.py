"""Where guests are: the cluster is asked, through any of its nodes that answers. Once in a process: a run goes by one answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from homelab.errors import HomelabError, raise_all
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import UnansweredError
from homelab.settings import Host, Settings, Vm

# Seconds that a node's API may be away before the next one is asked.
PATIENCE_SECONDS = 2.0

# Cluster and addresses of its nodes -> id -> the node that the guest is on.
_FOUND: dict[tuple[str, ...], dict[int, str]] = {}
_ASKING = threading.Lock()


def located(settings: Settings) -> Settings:
    """The settings with the host on which each VM is now that names a cluster.

    :raises HomelabError: no node answers, or a VM is nowhere, or where its cards aren't.
    """
    roaming = settings.roaming
    if not roaming:
        return settings
    asked = {cluster: _asked(cluster, settings.of_cluster(cluster)) for cluster in {vm.host for vm in roaming.values()}}
    return placed(settings, asked)


def placed(settings: Settings, where: Mapping[str, Mapping[int, str]]) -> Settings:
    """The same by what the clusters said.

    :param where: cluster -> id -> node.
    """
    hosts: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, vm in settings.roaming.items():
        node, fitting = where[vm.host].get(vm.vmid), settings.candidates(vm)
        there = next((one for one, host in settings.of_cluster(vm.host).items() if (host.node or one) == node), None)
        if node is None and vm.create is not None:
            hosts[name] = fitting[0]  # where it will be made
        elif node is None:
            errors.append(_nowhere(name, vm))
        elif there in fitting:
            hosts[name] = str(there)
        else:
            errors.append(_without_card(name, vm, node, [settings.hosts[one].node or one for one in fitting]))
    raise_all(errors)
    try:
        return settings.with_hosts(hosts)
    except ValueError as error:
        raise HomelabError(
            wanted="each VM with its cards on the node that it is on",
            found=str(error),
            why="a VM that names a cluster counts where it is now",
            next="migrate one of them to another node that has such a card, or take the card out of one",
        ) from error


def _asked(cluster: str, nodes: Mapping[str, Host]) -> dict[int, str]:
    key = (cluster, *(host.address for host in nodes.values()))
    with _ASKING:
        if key not in _FOUND:
            _FOUND[key] = _answered(cluster, nodes)
        return _FOUND[key]


def _answered(cluster: str, nodes: Mapping[str, Host]) -> dict[int, str]:
    silent = []
    for name, host in nodes.items():
        if host.api is None:
            continue
        try:
            api = Api(host, host.node or name, patience=PATIENCE_SECONDS)
            guests = api.get("cluster/resources", f"to see where the guests of the cluster {cluster} are", type="vm")
        except UnansweredError as error:
            silent.append(f"{name}: {error.found}")
        else:
            return {int(one["vmid"]): str(one["node"]) for one in guests}
    raise HomelabError(
        wanted=f"to know on which node of the cluster {cluster} each VM is",
        found="; ".join(silent),
        why="a VM that names a cluster as its host is found where it is now",
        next="see whether pveproxy runs on one of them (`systemctl status pveproxy`), then run the same command again; or name the host for each VM",
    )


def _nowhere(name: str, vm: Vm) -> HomelabError:
    return HomelabError(
        wanted=f"VM {vm.vmid}, to be adopted as vms.{name}, on a node of the cluster {vm.host}",
        found="no such VM that this user may see",
        why="a card can't be given to a VM that isn't there",
        next=f"correct vms.{name}.vmid, describe the VM under vms.{name}.create, or give the user VM.Audit on /vms/{vm.vmid}",
    )


def _without_card(name: str, vm: Vm, node: str, fitting: list[str]) -> HomelabError:
    cards = ", ".join(use.gpu for use in vm.gpus)
    return HomelabError(
        wanted=f"VM {vm.vmid} (vms.{name}) on a node that has {cards}",
        found=f"it is on {node}, which has no such card in the settings; {', '.join(fitting)} {'has' if len(fitting) == 1 else 'have'}",
        why="a card is in one machine; nothing was changed",
        next=f"migrate it while it is off (on {node}: `qm migrate {vm.vmid} {fitting[0]}`), or describe {node}'s card under hosts",
    )
