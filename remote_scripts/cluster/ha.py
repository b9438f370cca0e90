"""What Proxmox VE's HA has, and what it does with it: read from its files and `ha-manager status`, here and nowhere
else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_scripts.cluster.ha_files import options_of, refused_to_change
from remote_scripts.pve.guest_kinds import Kind
from remote_scripts.pve.pmxcfs import Node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

CONFIG = "/etc/pve/ha/resources.cfg"
_MANAGER = "/etc/pve/ha/manager_status"
_HAS_ONE = re.compile(rb"^(vm|ct):", re.MULTILINE)
# A state may have several words (clearing error flag); a service whose guest is gone is on the node `---`.
_SERVICE = re.compile(r"^service ([^ ]+) \(([^,]+), ([^)]+)\)", re.MULTILINE)
# `lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)`; older ones don't name the watchdog.
_ACTIVE = re.compile(r"^lrm (\S+) \(active,(?!.*watchdog standby)", re.MULTILINE)
# Its watchdogs are off everywhere, since `ha-manager crm-command disarm-ha` (pve-ha-manager 5.1.3).
_DISARMED = re.compile(r"^fencing disarmed,", re.MULTILINE)
#: Of a guest that doesn't run, by HA's will.
STOPPED = frozenset(("stopped", "disabled", "ignored", "ignore"))
#: A service that is in one of these states is moved nowhere.
LEFT_ALONE = STOPPED | {"error", "freeze"}


@dataclass(frozen=True)
class Service:
    """A guest that HA has. `id`: such as vm:200."""

    id: str
    node: str
    state: str


@dataclass(frozen=True)
class Status:
    """What HA says. `active`: nodes whose agent is; `disarmed`: no node has a watchdog that HA keeps."""

    services: tuple[Service, ...]
    active: tuple[str, ...]
    disarmed: bool


class NoAnswerError(Exception):
    """HA's manager gives no answer; the text is what it said instead."""


def has_services(system: System, node: Node) -> bool | None:
    """Whether HA has any; None: /etc/pve isn't there, on a node of a cluster. Where it isn't there on a host that is in
    no cluster, HA does nothing.

    :raises Failure: /etc/pve doesn't answer.
    """
    content = system.files.need(CONFIG)
    if content is None and not node.name and node.clustered:
        return None
    return bool(_HAS_ONE.search(content or b""))


def need_own_power(system: System, kind: Kind, vmid: int) -> None:
    """:raises Failure: HA switches the guest on and off; or /etc/pve doesn't answer, or its files can't be read."""
    refused = refused_to_change(system.files.need_text(CONFIG), system.files.need_text(_MANAGER), kind, vmid)
    if refused:
        raise refused


def is_managed(system: System, service: str) -> bool:
    """Whether HA starts and stops a guest by itself.

    :param service: its id, such as vm:200.
    :raises Failure: /etc/pve doesn't answer, or the files can't be read.
    """
    return options_of(system.files.need_text(CONFIG), system.files.need_text(_MANAGER), service) is not None


def may_manage(system: System, service: str) -> bool:
    """The same; where that can't be told, it may."""
    try:
        return is_managed(system, service)
    except Failure:
        return True


def status(system: System) -> Status:
    """Asks HA's manager.

    :raises NoAnswerError: it gives no answer.
    """
    done = system.run.ask("ha-manager", "status")
    text = done.all_text
    if done.status != 0 or "quorum" not in text:
        raise NoAnswerError(text)
    services = tuple(Service(*fields) for fields in _SERVICE.findall(text))
    return Status(services, tuple(_ACTIVE.findall(text)), bool(_DISARMED.search(text)))


def needs_watchdog(system: System, node: Node) -> str:
    """In words: what keeps HA's watchdog armed on any node of the cluster; empty where HA is idle."""
    try:
        if has_services(system, node) is False:
            return ""
        manager = status(system)
    except (Failure, NoAnswerError):
        return "guests, and `ha-manager status` gives no answer"
    if manager.disarmed:
        return ""
    users = [service.id for service in manager.services if service.state not in STOPPED]
    users += [f"an active agent on {name}" for name in manager.active if name != node.name]
    return ", ".join(users)
