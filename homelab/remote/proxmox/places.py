"""Where guests are: the cluster is asked, through any of its nodes that answers. Once in a process: a run goes by one
answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from homelab.errors import HomelabError, raise_all
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import UnansweredError
from homelab.settings import Container, Host, Settings, Vm

# Seconds that a node's API may be away before the next one is asked.
PATIENCE_SECONDS = 2.0

# Cluster and addresses of its nodes -> id -> the node that the guest is on.
_FOUND: dict[tuple[str, ...], dict[int, str]] = {}
_ASKING = threading.Lock()


def located(settings: Settings) -> Settings:
    """The settings with the host on which each guest is now that names a cluster.

    :raises HomelabError: no node answers, or a guest is nowhere, or where its cards aren't.
    """
    return placed(settings, _where(settings)) if settings.roaming else settings


def seen(settings: Settings) -> dict[str, str]:
    """The host of each of these guests that is on one of the settings, whether its cards are there or not; of one that
    is to be made, the one that it is made on.

    :raises HomelabError: no node answers.
    """
    where = _where(settings)
    found: dict[str, str] = {}
    for name, guest in settings.roaming.items():
        node = where[guest.host].get(_id(guest))
        there = settings.candidates(guest)[0] if node is None and guest.create else _host_at(settings, guest.host, node)
        found |= {name: there} if there else {}
    return found


def placed(settings: Settings, where: Mapping[str, Mapping[int, str]]) -> Settings:
    """The same by what the clusters said.

    :param where: cluster -> id -> node.
    """
    hosts: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, guest in settings.roaming.items():
        node, fitting = where[guest.host].get(_id(guest)), settings.candidates(guest)
        there = _host_at(settings, guest.host, node)
        if node is None and guest.create is not None:
            hosts[name] = fitting[0]  # where it will be made
        elif node is None:
            errors.append(_nowhere(name, guest))
        elif there in fitting:
            hosts[name] = str(there)
        else:
            errors.append(_without_card(name, guest, node, [settings.hosts[one].node or one for one in fitting]))
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


def _id(guest: Vm | Container) -> int:
    return guest.vmid if isinstance(guest, Vm) else guest.ctid


def _host_at(settings: Settings, cluster: str, node: str | None) -> str | None:
    """The host of the settings that is a node of a cluster."""
    return next((one for one, host in settings.of_cluster(cluster).items() if (host.node or one) == node), None)


def _where(settings: Settings) -> dict[str, dict[int, str]]:
    clusters = {guest.host for guest in settings.roaming.values()}
    return {cluster: _asked(cluster, settings.of_cluster(cluster)) for cluster in clusters}


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
        wanted=f"to know on which node of the cluster {cluster} each guest is",
        found="; ".join(silent),
        why="a guest that names a cluster as its host is found where it is now",
        next="see whether pveproxy runs on one of them (`systemctl status pveproxy`), then run the same command "
        "again; or name the host for each guest",
    )


def _nowhere(name: str, guest: Vm | Container) -> HomelabError:
    place, called, key = _called(name, guest)
    return HomelabError(
        wanted=f"{called}, to be adopted as {place}, on a node of the cluster {guest.host}",
        found="no such guest that this user may see",
        why="a card can't be given to a guest that isn't there",
        next=f"correct {place}.{key}, describe the guest under {place}.create, or give the user VM.Audit on "
        f"/vms/{_id(guest)}",
    )


def _without_card(name: str, guest: Vm | Container, node: str, fitting: list[str]) -> HomelabError:
    place, called, _ = _called(name, guest)
    named = [use.gpu for use in guest.gpus] if isinstance(guest, Vm) else guest.gpus or []
    cards = ", ".join(named) or "cards for it"
    command = "qm" if isinstance(guest, Vm) else "pct"
    return HomelabError(
        wanted=f"{called} ({place}) on a node that has {cards}",
        found=f"it is on {node}, which has no such card in the settings; {', '.join(fitting)} "
        f"{'has' if len(fitting) == 1 else 'have'}",
        why="a card is in one machine; nothing was changed",
        next=f"migrate it while it is off (on {node}: `{command} migrate {_id(guest)} {fitting[0]}`), or describe "
        f"{node}'s card under hosts",
    )


def _called(name: str, guest: Vm | Container) -> tuple[str, str, str]:
    """Its place in the settings, its name for people, and the key of its id."""
    if isinstance(guest, Vm):
        return f"vms.{name}", f"VM {guest.vmid}", "vmid"
    return f"containers.{name}", f"container {guest.ctid}", "ctid"
