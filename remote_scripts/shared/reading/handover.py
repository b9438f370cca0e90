"""The handover of cards from containers to VMs."""

from __future__ import annotations

import re

from remote_scripts.shared import handover
from remote_scripts.shared.reading.answer import HandedOver
from remote_scripts.shared.reading.source import Source
from remote_scripts.tools.files import HOME

_HOOKED = f"{HOME}/handover-hooks"
_HOOK = "homelab-handover.sh"
_UNITS = "/etc/systemd/system"
_ENABLED = (
    f"{_UNITS}/multi-user.target.wants/homelab-handover.service",
    f"{_UNITS}/timers.target.wants/homelab-handover.timer",
)
_NODES, _VMS = "/etc/pve/nodes", "/etc/pve/qemu-server"
_OUR_HOOK = re.compile(rf"hookscript: *([^ ]*):snippets/{re.escape(_HOOK)}")


def handed_over(source: Source) -> HandedOver:
    """Reads all of it."""
    lost, moved = [], []
    for vmid in (name for name in source.names(_HOOKED) if name[:1] in "123456789"):
        path = f"{_VMS}/{vmid}.conf"
        if not source.exists(path):
            moved += [f"{vmid} on {node}" for node in _nodes_with_hook(source, vmid)[:1]]
        elif (text := source.needed(path)) is not None and not _has_hook(source, text):
            lost.append(vmid)
    states = [name for name in source.names(handover.FOLDER) if name.endswith(".state")]
    cards = {name.removesuffix(".state"): source.passed_on(f"{handover.FOLDER}/{name}") for name in states}
    away = ""
    if not any(f"{handover.FOLDER}/{name}" in source.unreadable for name in states):
        away = source.noting(handover.FOLDER, lambda: handover.away(source.system), "")
    return HandedOver(all(map(source.is_link, _ENABLED)), away, lost, moved, cards)


def _has_hook(source: Source, text: str) -> bool:
    """Whether a VM's configuration names our hookscript, by a storage that has it: a VM whose hookscript isn't found
    doesn't start.
    """
    above = text.partition("\n[")[0]
    hooks = [found[1] for found in map(_OUR_HOOK.fullmatch, above.split("\n")) if found]
    folder = _storages(source).get(hooks[-1], "") if hooks else ""
    return bool(folder) and source.is_executable(f"{folder}/snippets/{_HOOK}")


def _nodes_with_hook(source: Source, vmid: str) -> list[str]:
    """The other nodes on which a VM of this id names our hookscript."""
    return [
        node
        for node in source.names(_NODES)
        if any(map(_OUR_HOOK.fullmatch, source.lines(f"{_NODES}/{node}/qemu-server/{vmid}.conf")))
    ]


def _storages(source: Source) -> dict[str, str]:
    """Storages that are a folder of this host's alone and take hookscripts: name -> folder. One that is for other nodes
    of the cluster has no volume here, wherever its folder lies.
    """
    here = source.linked("/etc/pve/local")
    found: dict[str, str] = {}
    kind, name = "", ""
    options: dict[str, str] = {}
    # A section begins at the line's beginning (PVE::SectionConfig); the last one ends with the file.
    for line in [*source.lines("/etc/pve/storage.cfg"), "end: of them"]:
        key, _, value = line.strip().partition(" ")
        if not re.match(r"[a-z]+:", line):
            options[key] = value.strip()
            continue
        nodes = re.split(r"[\s;,]+", options.get("nodes", here))
        is_ours = options.get("shared", "0") == "0" and options.get("disable", "0") == "0" and here in nodes
        if kind == "dir:" and is_ours and "snippets" in options.get("content", "").split(","):
            found |= {name: options["path"].rstrip("/")} if options.get("path") else {}
        kind, name, options = key, value.strip(), {}
    return found
