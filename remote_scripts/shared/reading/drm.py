"""The nodes that the kernel has for graphics cards."""

from __future__ import annotations

import re

from remote_scripts.shared import card_nodes
from remote_scripts.shared.pci import DEVICES
from remote_scripts.shared.reading.answer import DrmNodes
from remote_scripts.shared.reading.cards import CARDS
from remote_scripts.shared.reading.source import Source, head_and_tail

_LINES = 4
_RENDER_MINOR = r"drm_render_minor[ \t]+(.*)$"
_TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes"
_DRIVERS = {"0x8086": "i915|xe", "0x1002": "amdgpu|radeon"}
# A word about firmware alone is no failure: drivers say it when all is well, too.
_FAILURE = re.compile(r"fatal|fail|error|not found|[ (]-2([^0-9.]|$)", re.IGNORECASE)


def drm(source: Source) -> dict[str, DrmNodes]:
    """Of every card with a driver that serves it, by its address."""
    nodes = source.names(_TOPOLOGY)
    minors = {source.first(f"{_TOPOLOGY}/{node}/properties", _RENDER_MINOR) for node in nodes} - {""}
    by_address = {}
    for address in source.functions():
        folder, code = f"{DEVICES}/{address}", source.class_of(address)
        if not code or not (code.startswith(CARDS) or source.is_folder(f"{folder}/drm")):
            continue
        nodes_of = (card_nodes.drm_node(source.system, address, kind) for kind in ("card", "renderD"))
        card, render = (node.rpartition("/")[2] for node in nodes_of)
        trouble = ""
        may_lack = code.startswith("0x03") and not render and not source.exists(f"{folder}/physfn")
        drivers = _DRIVERS.get(source.word(f"{folder}/vendor") or "", "") if may_lack else ""
        driver = source.linked(f"{folder}/driver")
        if drivers and driver != "vfio-pci":
            trouble = _without_render(source, address, driver or drivers)
        if card or render or trouble:
            has_kfd = bool(render) and source.exists("/dev/kfd") and render.removeprefix("renderD") in minors
            by_address[address] = DrmNodes(card, render, has_kfd, trouble)
    return by_address


def _without_render(source: Source, address: str, drivers: str) -> str:
    """What modprobe.d and the kernel say about these drivers (a|b), or about the one that has the card."""
    kept_off = re.compile(rf"\s*(?:blacklist|install)\s+(?:{drivers})(?:\s|$)")
    lines = [
        f"{path}:{line}" for path in source.modprobe_files() for line in source.lines(path) if kept_off.match(line)
    ][:_LINES]
    pattern = re.compile(rf"(?:{drivers}) .*{re.escape(address)}|firmware.*(?:{drivers})/", re.IGNORECASE)
    messages = [line for line in source.kernel_says if pattern.search(line) and _FAILURE.search(line)]
    return "\n".join([*lines, head_and_tail(messages, _LINES)]).rstrip("\n")
