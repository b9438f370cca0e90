"""The nodes that the kernel has for graphics cards."""

from __future__ import annotations

from remote_scripts.cards import host_nodes
from remote_scripts.containers.card_nodes import DrmNodes
from remote_scripts.reading.cards import CARDS
from remote_scripts.reading.source import Source
from remote_scripts.tools.pci import DEVICES

_RENDER_MINOR = r"drm_render_minor[ \t]+(.*)$"
_TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes"


def drm(source: Source) -> dict[str, DrmNodes]:
    """Of every card with a driver that serves it, by its address."""
    nodes = source.names(_TOPOLOGY)
    minors = {source.first(f"{_TOPOLOGY}/{node}/properties", _RENDER_MINOR) for node in nodes} - {""}
    by_address = {}
    for address in source.functions():
        folder, code = f"{DEVICES}/{address}", source.class_of(address)
        if not code or not (code.startswith(CARDS) or source.files.is_folder(f"{folder}/drm")):
            continue
        card, render = host_nodes.drm(source.system, address)
        if card or render:
            has_kfd = bool(render) and source.files.exists("/dev/kfd") and render.removeprefix("renderD") in minors
            by_address[address] = DrmNodes(card, render, has_kfd)
    return by_address
