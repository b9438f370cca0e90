"""Who holds a card of NVIDIA's driver: processes with its nodes open, the persistence daemon, nvidia-drm itself.

The fault `card-users` names programs that use cards, as a list of objects:

    pid        the process id, unique
    comm       the program's name
    container  the container that it runs in: it holds the card while that runs
    unit       the host's service that it is of: it holds the card while that is active; without either it is the host's, and stays
    card       the PCI address of the card; without it every card that the driver has
    opens      what it has open of: card (/dev/nvidiaN), ctl, uvm, modeset, dri; without it card, ctl and, if it is loaded, uvm
    mapped     it has closed its descriptors and keeps a mapping: seen in /proc/PID/maps alone
    hidden     a reference inside the kernel: no process shows it

They are seen where a host has them (fact 33 of ../shared/facts/handover.md): /proc/PID/comm, /proc/PID/cgroup and /proc/PID/fd, whose links
`stat -L -c '%t:%T %F'` tells the numbers of; a container's name a node of its own, below /proc/PID/root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import proc
from .nodes import Node, write_node
from .state import HostState
from .versions import holds

_NVIDIA_MAJOR, _CONTROL, _MODESET, _DRM_MAJOR = 195, 255, 254, 226
_DAEMON, _DAEMON_PID = "nvidia-persistenced.service", 812
#: From these versions of the driver on: nvidia-drm lets go in remove(); modeset is on unless it is switched off; a wait never ends.
_DRM_DETACHES, _MODESET_DEFAULT, _NEVER_ENDS = "580.105.08", "595", "595"
#: What pins which module (fact 32: file operations own their module).
_PINS = {"card": "nvidia", "ctl": "nvidia", "uvm": "nvidia_uvm", "modeset": "nvidia_modeset", "dri": "nvidia_drm"}


def update(host: HostState, data: dict[str, Any] | None = None) -> None:
    """Have the programs that are there open what they can, those that ended close it, and /proc show it.

    Args:
        data: kernel.json's content where the caller saves it; else it is changed here.
    """
    if data is None:
        with host.changing_running() as running:
            update(host, running)
        return
    running = data
    if not running:
        return
    before: dict[str, Any] = running.get("card_users", {})
    wanted = {str(user["pid"]): user for user in [*_declared(host, running), *_daemon(running)]}
    now = {}
    for pid, user in wanted.items():
        had = before.get(pid, {}).get("cards", {})
        now[pid] = {**user, "cards": _opened(running, user, had)}
    for pid in before.keys() - now.keys():
        proc.remove(host, int(pid))
    for pid, user in now.items():
        if before.get(pid) != user:
            _show(host, running, user)
    if before != now:
        running["card_users"] = now


def _declared(host: HostState, running: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for user in host.fault("card-users") or []:
        if "container" in user:
            alive = bool(host.machine["guests"].get(str(user["container"]), {}).get("running"))
        else:
            alive = "unit" not in user or running.get("units", {}).get(user["unit"]) == "active"
        opens = user.get("opens") or ["card", "ctl", *(["uvm"] if "nvidia_uvm" in running.get("loaded", {}) else [])]
        if alive:
            found.append({**user, "opens": opens})
    return found


def _daemon(running: dict[str, Any]) -> list[dict[str, Any]]:
    """nvidia-persistenced: it holds the cards whose persistence mode is on (fact 35)."""
    if running.get("units", {}).get(_DAEMON) != "active":
        return []
    cards = persistent(running)
    return [{"pid": _DAEMON_PID, "comm": "nvidia-persiste", "unit": _DAEMON, "of": cards, "opens": ["card", "ctl"]}]


def _opened(running: dict[str, Any], user: dict[str, Any], had: dict[str, int]) -> dict[str, int]:
    """The cards that a program has open, each with the minor number that it opened."""
    minors: dict[str, int] = running.get("nvidia_minors", {})
    asked = user["of"] if "of" in user else [user["card"]] if "card" in user else list(minors)
    shut = {*running.get("nvidia_draining", []), *running.get("removing", {})}
    return {
        address: had.get(address, minors[address])
        for address in asked
        if address in minors and (address in had or address not in shut)
    }


def _show(host: HostState, running: dict[str, Any], user: dict[str, Any]) -> None:
    """A program's entry in /proc."""
    pid = int(user["pid"])
    if user.get("hidden"):
        return
    inside = user.get("container")
    group = (
        f"/lxc/{inside}/ns/system.slice/{user['comm']}.service"
        if inside
        else f"/system.slice/{user.get('unit', user['comm'] + '.service')}"
    )
    proc.put(host, pid, str(user["comm"]), f"/usr/bin/{user['comm']}", group)
    maps, number = [], 3
    for name, node in _nodes(host, running, user):
        if user.get("mapped"):
            maps.append(f"7f0000000000-7f0000010000 rw-s 00000000 00:05 {100 + number} /dev/{name}\n")
            continue
        # A container has nodes of its own, and paths that aren't the host's.
        place = host.rooted(f"/proc/{pid}/root/dev/{name}") if inside else host.rooted(f"/dev/{name}")
        if inside or not place.exists():
            write_node(place, node)
        target = f"../root/dev/{name}" if inside else f"../../../dev/{name}"
        Path(host.root, f"proc/{pid}/fd/{number}").symlink_to(target)
        number += 1
    host.write(f"/proc/{pid}/maps", "".join(maps))


def _nodes(host: HostState, running: dict[str, Any], user: dict[str, Any]) -> list[tuple[str, Node]]:
    found: list[tuple[str, Node]] = []
    opens = user["opens"]
    for address, minor in user["cards"].items():
        if "card" in opens:
            found.append((f"nvidia{minor}", Node("c", _NVIDIA_MAJOR, minor)))
        number = running.get("drm_cards", {}).get(address)
        if "dri" in opens and number is not None:
            found += [
                (f"dri/card{number}", Node("c", _DRM_MAJOR, number, 0o660, 0, 44)),
                (f"dri/renderD{128 + number}", Node("c", _DRM_MAJOR, 128 + number, 0o660, 0, 104)),
            ]
    if "ctl" in opens:
        found.append(("nvidiactl", Node("c", _NVIDIA_MAJOR, _CONTROL)))
    if "modeset" in opens:
        found.append(("nvidia-modeset", Node("c", _NVIDIA_MAJOR, _MODESET)))
    if "uvm" in opens:
        found.append(("nvidia-uvm", Node("c", int(running.get("majors", {}).get("nvidia-uvm", 0)), 0)))
    return found


# -- what it means ------------------------------------------------------------------------------------------------
def persistent(running: dict[str, Any]) -> list[str]:
    """The cards whose persistence mode is on."""
    return list(running.get("nvidia_persistence", []))


def of_card(running: dict[str, Any], address: str) -> list[dict[str, Any]]:
    """The programs that hold a card; who has only nvidiactl open holds none (fact 59)."""
    users = running.get("card_users", {}).values()
    return [user for user in users if address in user["cards"] and set(user["opens"]) - {"ctl"}]


def pins(running: dict[str, Any], module: str) -> int:
    """How many open files pin one of NVIDIA's modules; what the kernel holds itself doesn't count (fact 32)."""
    shown = [user for user in running.get("card_users", {}).values() if not user.get("hidden")]
    return sum(1 for user in shown for kind in user["opens"] if _PINS.get(kind) == module and _has(user, kind))


def _has(user: dict[str, Any], kind: str) -> bool:
    return bool(user["cards"]) or kind in ("ctl", "modeset", "uvm")


def modeset(running: dict[str, Any]) -> bool:
    """Whether nvidia-drm's modeset is on: as it was given, or as this version has it (fact 31)."""
    words = running.get("loaded", {}).get("nvidia_drm", "").split()
    words += [
        word.replace("nvidia-drm.", "").replace("nvidia_drm.", "")
        for word in running.get("cmdline", "").split()
        if word.startswith(("nvidia-drm.", "nvidia_drm."))
    ]
    given = [word.partition("=")[2] for word in words if word.startswith("modeset=")]
    if given:
        return given[-1] in ("1", "y", "Y")
    return holds(_version(running), ">=", _MODESET_DEFAULT)


def _version(running: dict[str, Any]) -> str:
    return str((running.get("nvidia_build") or {}).get("version", "0"))


def drm_holds(running: dict[str, Any]) -> bool:
    """Whether nvidia-drm keeps the cards open until it is unloaded: with modeset, before 580.105.08 (fact 30)."""
    loaded = "nvidia_drm" in running.get("loaded", {})
    return loaded and modeset(running) and not holds(_version(running), ">=", _DRM_DETACHES)


def never_ends(running: dict[str, Any], address: str) -> bool:
    """Whether a removal that begins now waits for ever: from 595 on, with references that are held inside the kernel (fact 29)."""
    inside = [u for u in of_card(running, address) if u.get("hidden") or {"uvm", "modeset", "dri"} & set(u["opens"])]
    return bool(inside) and holds(_version(running), ">=", _NEVER_ENDS)
