"""Finds the node of each guest that names a cluster in the settings, through any node that answers. Each cluster is
asked once in a process, so that a run uses one answer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from homelab.errors import HomelabError, raise_all
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import UnansweredError
from homelab.settings import Container, Host, Settings, Vm

# Seconds that a node's API may be away before the next one is asked.
PATIENCE_SECONDS = 2.0

# Cluster and addresses of its nodes -> guest's id -> its node.
_NODES_OF_GUESTS: dict[tuple[str, ...], dict[int, str]] = {}
_LOCK = threading.Lock()


def located(settings: Settings) -> Settings:
    """The settings, with the current host of each guest that names a cluster.

    :raises HomelabError: no node answers, a guest wasn't found, or it is on a node without its cards.
    """
    return placed(settings, _nodes_of_guests(settings)) if settings.roaming else settings


def seen(settings: Settings) -> dict[str, str]:
    """The host of each guest that names a cluster: guest's name -> host's, whether its cards are there or not. A guest
    that is to be created has the host on which it will be; one on a node outside of the settings is left out.

    :raises HomelabError: no node answers.
    """
    nodes = _nodes_of_guests(settings)
    hosts: dict[str, str] = {}
    for name, guest in settings.roaming.items():
        node = nodes[guest.host].get(guest.guest_id)
        host = settings.candidates(guest)[0] if node is None and guest.create else _host_at(settings, guest.host, node)
        hosts |= {name: host} if host else {}
    return hosts


def placed(settings: Settings, nodes: Mapping[str, Mapping[int, str]]) -> Settings:
    """The settings, with the current host of each guest that names a cluster.

    :param nodes: cluster -> guest's id -> its node.
    :raises HomelabError: a guest wasn't found, or is on a node without its cards, or two have the same card.
    """
    hosts: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, guest in settings.roaming.items():
        node, candidates = nodes[guest.host].get(guest.guest_id), settings.candidates(guest)
        host = _host_at(settings, guest.host, node)
        if node is None and guest.create is not None:
            hosts[name] = candidates[0]  # where it will be created
        elif node is None:
            errors.append(_not_found_error(name, guest))
        elif host in candidates:
            hosts[name] = str(host)
        else:
            errors.append(
                _no_card_error(
                    name, guest, node, [settings.hosts[candidate].node or candidate for candidate in candidates]
                )
            )
    raise_all(errors)
    try:
        return settings.with_hosts(hosts)
    except ValueError as error:
        raise HomelabError(
            wanted="each guest with its cards on the node that it is on",
            found=str(error),
            why="a guest that names a cluster counts where it is now",
            next="migrate one of them to another node that has such a card, or take the card out of one",
        ) from error


def _host_at(settings: Settings, cluster: str, node: str | None) -> str | None:
    """The name in the settings of a cluster's node; None: it isn't in the settings."""
    return next((name for name, host in settings.of_cluster(cluster).items() if (host.node or name) == node), None)


def _nodes_of_guests(settings: Settings) -> dict[str, dict[int, str]]:
    clusters = {guest.host for guest in settings.roaming.values()}
    return {cluster: _cached_nodes(cluster, settings.of_cluster(cluster)) for cluster in clusters}


def _cached_nodes(cluster: str, nodes: Mapping[str, Host]) -> dict[int, str]:
    key = (cluster, *(host.address for host in nodes.values()))
    with _LOCK:
        if key not in _NODES_OF_GUESTS:
            _NODES_OF_GUESTS[key] = _ask_cluster(cluster, nodes)
        return _NODES_OF_GUESTS[key]


def _ask_cluster(cluster: str, nodes: Mapping[str, Host]) -> dict[int, str]:
    silent = []
    for name, host in nodes.items():
        try:
            api = Api(host, host.node or name, patience=PATIENCE_SECONDS)
            guests = api.get("cluster/resources", f"to see where the guests of the cluster {cluster} are", type="vm")
        except UnansweredError as error:
            silent.append(f"{name}: {error.found}")
        else:
            return {int(guest["vmid"]): str(guest["node"]) for guest in guests}
    raise HomelabError(
        wanted=f"to know on which node of the cluster {cluster} each guest is",
        found="; ".join(silent),
        why="a guest that names a cluster as its host is found where it is now",
        next="see whether pvedaemon runs on one of them (`systemctl status pvedaemon`), then run the same command "
        "again; or name the host for each guest",
    )


def _not_found_error(name: str, guest: Vm | Container) -> HomelabError:
    place, label, key = _names(name, guest)
    return HomelabError(
        wanted=f"{label}, to be adopted as {place}, on a node of the cluster {guest.host}",
        found="no such guest",
        why="a card can't be given to a guest that isn't there",
        next=f"correct {place}.{key}, or describe the guest under {place}.create",
    )


def _no_card_error(name: str, guest: Vm | Container, node: str, candidates: list[str]) -> HomelabError:
    place, label, _ = _names(name, guest)
    cards = ", ".join(guest.cards) or "cards for it"
    command = "qm" if isinstance(guest, Vm) else "pct"
    return HomelabError(
        wanted=f"{label} ({place}) on a node that has {cards}",
        found=f"it is on {node}, which has no such card in the settings; {', '.join(candidates)} "
        f"{'has' if len(candidates) == 1 else 'have'}",
        why="a card is in one machine; nothing was changed",
        next=f"migrate it while it is off (on {node}: `{command} migrate {guest.guest_id} {candidates[0]}`), or "
        f"describe {node}'s card under hosts",
    )


def _names(name: str, guest: Vm | Container) -> tuple[str, str, str]:
    """A guest's path in the settings, its name in messages, and the key of its id in the settings."""
    if isinstance(guest, Vm):
        return f"vms.{name}", f"VM {guest.vmid}", "vmid"
    return f"containers.{name}", f"container {guest.ctid}", "ctid"
