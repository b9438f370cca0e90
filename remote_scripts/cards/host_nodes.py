"""The device nodes of cards that this host has."""

from __future__ import annotations

import re

from remote_scripts.containers.card_nodes import DrmNodes, HostNodes, Nodes, missing
from remote_scripts.notes.container_note import Cards
from remote_scripts.nvidia import nvidia
from remote_scripts.tools.device import Device
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.pci import DEVICES
from remote_scripts.tools.system import System

_DRM_NAME = re.compile(r"(card|renderD)[0-9]{1,4}")
# Folders, and how the names of cards' nodes in them begin.
_FOLDERS = (("/dev", "nvidia"), ("/dev/nvidia-caps", ""), ("/dev/dri", ""), ("/dev", "kfd"))


def devices(system: System) -> dict[str, Device]:
    """Those of graphics and computing, by their paths."""
    found = [
        f"{folder}/{name}"
        for folder, begin in _FOLDERS
        for name in system.files.names(folder)
        if name.startswith(begin)
    ]
    return {path: device for path in found if (device := system.files.device(path))}


def drm(system: System, address: str) -> tuple[str, str]:
    """The names of a card's nodes in /dev/dri, cardN and renderDN; empty: it has none."""
    names = [name for name in system.files.names(f"{DEVICES}/{address}/drm") if _DRM_NAME.fullmatch(name)]
    card, render = (next((name for name in names if name.startswith(kind)), "") for kind in ("card", "renderD"))
    return card, render


def of(system: System, cards: Cards) -> HostNodes:
    """What is there of these cards, and all other nodes."""
    addresses = [*cards.functions, *(word.partition("=")[0] for word in cards.cards)]
    return HostNodes(
        devices(system),
        {address: DrmNodes(*drm(system, address)) for address in addresses},
        nvidia.minors(system),
    )


def need(system: System, ctid: int, host: HostNodes, nodes: Nodes) -> None:
    """:raises Failure: one that the container can't do without isn't there, and why."""
    lacking = missing(host, nodes)
    if not lacking:
        return
    found = f"not on the host: {' '.join(lacking)}"
    following = "see `lspci -nnk` and `dmesg | grep -iE 'drm|i915|amdgpu'` on the host, then run `pulumi up --refresh`"
    if lacking[0].startswith("/dev/nvidia"):
        following = (
            "see `nvidia-smi -L` on the host: correct gpuAssignment if the driver hasn't such a card, else run "
            "/usr/local/sbin/homelab-nvidia-nodes, which makes the nodes; then `pulumi up --refresh`"
        )
        if trouble := nvidia.trouble(system):
            found, following = f"{found}; {trouble.found}", trouble.next
    raise Failure(
        f"container {ctid} given the nodes of its cards",
        found,
        "the cards' drivers make them; its configuration is unchanged",
        following,
    )
