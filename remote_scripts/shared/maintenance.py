"""HA's maintenance mode for the time of a node's restart: HA moves the guests that it has here to other nodes, and
brings them back afterwards.

Of /var/lib/homelab/away (restart_settings.py): `maintenance NODE`, and `services vm:103 …`, those that ran here. A mode
that another person has switched on is neither noted nor switched off.
"""

from __future__ import annotations

import re
import time

from remote_scripts.shared import guest_conf, ha, pmxcfs, restart_settings, vm_conf
from remote_scripts.shared.booleans import is_true
from remote_scripts.shared.pmxcfs import Node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: For so long HA may move nothing before it is given up, in seconds.
STANDSTILL_SECONDS = 300.0
_MODE = ("ha-manager", "crm-command", "node-maintenance")
_ON_ITS_WAY = ("migrate", "relocate")
# What can't be on another node while the guest runs, as check_local_resources (PVE::QemuMigrate::Helpers) and pct's
# migration say.
_OF_VM = re.compile(
    r"^(usb\d+:(?!(?:.*,)?\s*(?:host=)?(?i:spice)\s*(?:,|$))|(?:serial|parallel)\d+: */dev/|ivshmem:|virtiofs\d+:"
    r"|amd-sev:|intel-tdx:|args:.*vfio-pci)",
    re.MULTILINE,
)
_OF_CONTAINER = re.compile(r"^(dev\d+:|lxc\.(?:cgroup2\.devices\.allow|mount\.entry *[:=] */dev/))", re.MULTILINE)
_BIND = re.compile(r"^mp\d+: *(?:volume=)?/.*", re.MULTILINE)
_SHARED = re.compile(r"(?:,|: *)shared=1(?:,|$)")


def why_not(system: System, node: Node) -> str:
    """What HA can't move, which is said before anything is changed: it would try again and again. Empty: nothing.

    :raises Failure: a configuration can't be read.
    """
    try:
        services = ha.services_here(system, node)
    except ha.NoAnswerError:
        return "`ha-manager status` gives no answer, and its maintenance mode is to be switched on (guestsAtReboot)"
    stuck = [service for service in services if _has_device(system, service)]
    return f"HA can't move {ha.in_words(stuck[-1:])}, which has a device of this host" if stuck else ""


def _has_device(system: System, service: str) -> bool:
    """A mapped PCI device can be on another node if its mapping says so."""
    kind, _, guest = service.partition(":")
    if kind == "vm":
        lines = guest_conf.lines_of_vm(system, guest)
        devices = vm_conf.given_devices(lines)
        return bool(_OF_VM.search("\n".join(lines))) or not all(_migrates(system, mapping) for mapping, _ in devices)
    text = "\n".join(guest_conf.own_lines(pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{guest}.conf")))
    return bool(_OF_CONTAINER.search(text)) or not all(_SHARED.search(line) for line in _BIND.findall(text))


def _migrates(system: System, mapping: str) -> bool:
    properties = vm_conf.mappings(pmxcfs.text_of(system, guest_conf.MAPPINGS)).get(mapping, [])
    return any(key == "live-migration-capable" and is_true(value) for key, value in properties)


def enter(system: System, node: Node, seconds: float) -> str:
    """Until HA has none of its guests here any more, also where the mode is on already.

    :returns: why that isn't so; empty: it is.
    :raises Failure: as of `Work.go_on`, and `away.noted`.
    """
    try:
        services = ha.services_here(system, node)
        if not services:
            return ""
        if why := _switch_on(system, node.name, services):
            return why
    except ha.NoAnswerError:
        return "`ha-manager status` gives no answer"
    system.log.say(f"HA moves {ha.in_words(services)} to other nodes")
    began = changed = time.monotonic()
    left, then = services, None
    for wait in system.work.tries(seconds):
        try:
            manager: ha.Status | None = ha.status(system)
        except ha.NoAnswerError:
            manager = None
        left = services
        if manager and node.name in manager.kept_free:
            left = _left_behind(manager, node.name, services)
            if not left:
                return ""
        wait.what = f"waiting for HA, which moves {' '.join(left)} to other nodes"
        # Where nothing changes, and nothing is on its way, HA has no place for them.
        if manager and (manager.services != then or any(service.state in _ON_ITS_WAY for service in manager.services)):
            then, changed = manager.services, time.monotonic()
        if time.monotonic() - changed >= STANDSTILL_SECONDS:
            break
    waited = time.monotonic() - began
    return f"HA hasn't moved {ha.in_words(left)} to another node within {waited:.0f} s (`ha-manager status`)"


def _switch_on(system: System, name: str, services: list[str]) -> str:
    """Why it can't be; empty: it is on. A mode that a user has switched on stays on: these guests don't come
    back with the end of our turn.
    """
    if not restart_settings.noted(system, "maintenance") and name in ha.status(system).kept_free:
        return ""
    noted = restart_settings.noted(system, "services").split()
    try:
        restart_settings.note(system, "services", " ".join(dict.fromkeys([*noted, *services])))
        restart_settings.note(system, "maintenance", name)
    except OSError:
        return "HA's maintenance mode can't be noted on this host"
    done = system.run.ask(*_MODE, "enable", name)
    return "" if done.status == 0 else f"HA's maintenance mode can't be switched on: {restart_settings.in_a_line(done)}"


def _left_behind(manager: ha.Status, name: str, services: list[str]) -> list[str]:
    """Of these, each that is on no other node and hasn't been stopped: HA may have given it up (error), or lost it. And
    what has come here meanwhile.
    """
    gone = {service.id for service in manager.services if service.node != name or service.state in ha.STOPPED}
    more = [service.id for service in manager.of(name) if not service.is_left and service.id not in services]
    return [service for service in [*services, *more] if service not in gone]


def refused(system: System, why: str) -> Failure:
    """One that was to be on another node isn't."""
    still = (
        ". HA has its maintenance mode on still: the node goes on switching it off"
        if restart_settings.noted(system, "maintenance")
        else ""
    )
    return Failure(
        "HA's guests on other nodes before this one restarts (guestsAtReboot: maintenance)",
        why,
        f"this host is restarted once they are away; it isn't, and those that moved come back{still}",
        "see to that guest (`ha-manager status`, and the log of its migration), or shut it down, or take it out of HA "
        "(`ha-manager remove vm:103`), or set guestsAtReboot: shutdown; then run `pulumi up` again",
    )


def leave(system: System) -> bool:
    """Switches off what is noted; False: HA doesn't take it, hasn't followed yet, or doesn't say."""
    name = restart_settings.noted(system, "maintenance")
    if not name:
        return True
    if system.run.ask(*_MODE, "disable", name).status != 0:
        return False
    try:
        if name in ha.status(system).kept_free:
            return False
    except ha.NoAnswerError:
        return False
    restart_settings.note(system, "maintenance", "")
    return True


def await_services(system: System, node: Node, seconds: float) -> None:
    """Until those that were here are back, which they come without this wait, too."""
    wanted = restart_settings.noted(system, "services").split()
    if not wanted:
        return
    missing = wanted
    for wait in system.work.tries(seconds):
        try:
            missing = _still_away(ha.status(system), node.name, wanted)
        except ha.NoAnswerError:
            missing = wanted
        if not missing:
            break
        wait.what = f"waiting for HA, which brings {' '.join(missing)} back"
    if missing:
        system.log.say(
            f"note: HA hasn't brought {ha.in_words(missing)} back yet; it goes on by itself (`ha-manager status`)"
        )
    restart_settings.note(system, "services", "")


def _still_away(manager: ha.Status, name: str, wanted: list[str]) -> list[str]:
    """Those that run on another node, or are on their way; not one that was stopped meanwhile, or taken out of HA."""
    return [
        service.id
        for service in manager.services
        if service.id in wanted and service.node != name and not service.is_left
    ]
