"""The device nodes of cards that a container is to have. Pure.

Intel's and AMD's nodes (cardN and renderDN in /dev/dri, AMD's /dev/kfd) get new numbers at each boot, in the order in
which the drivers are loaded. So a card is known by its PCI address, and the kernel is asked for its nodes. Links such
as /dev/dri/by-path/... are of no use: a container would get a node of that name, and programs look for renderDN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from remote_scripts.notes.container_note import Cards
from remote_scripts.tools.device import Device

UVM = "/dev/nvidia-uvm"
_CAPS = "/dev/nvidia-caps/nvidia-cap"


@dataclass(frozen=True)
class DrmNodes:
    """The device nodes of a graphics card in /dev/dri: names such as `card0` and `renderD128`, empty: it has none.
    `kfd`: whether /dev/kfd serves it, too."""

    card: str = ""
    render: str = ""
    kfd: bool = False


@dataclass(frozen=True)
class HostNodes:
    """What a host has now. `devices`: the device nodes of graphics by their paths; `drm`: address -> names in /dev/dri;
    `minors`: address of a card that NVIDIA's driver has -> N of its /dev/nvidiaN.
    """

    devices: Mapping[str, Device]
    drm: Mapping[str, DrmNodes]
    minors: Mapping[str, int]


@dataclass(frozen=True)
class Node:
    """A node of the host. `is_needed`: the container can't do without it; `group`: whom a node of another maker's card
    is for, render or video.
    """

    path: str
    is_needed: bool = True
    group: str = ""


@dataclass(frozen=True)
class Nodes:
    """What a container is to have, those that it can't do without first. `unknown`: what the kernel doesn't show, in
    words.
    """

    nodes: tuple[Node, ...]
    unknown: tuple[str, ...]


def renumbered(host: HostNodes, cards: Cards) -> Cards:
    """The cards by the numbers that NVIDIA's driver gives them now, without those that it doesn't have."""
    if not cards.functions:
        return cards
    minors = (host.minors[address] for address in cards.functions if address in host.minors)
    return replace(cards, minors=tuple(sorted(minors)))


def nodes_of(host: HostNodes, cards: Cards) -> Nodes:
    """The nodes of these cards."""
    nodes = [Node(f"/dev/nvidia{minor}") for minor in cards.minors]
    has_nvidias = bool(cards.minors or cards.functions)
    if has_nvidias:
        nodes += [Node("/dev/nvidiactl"), Node(UVM)]
    others, unknown = _of_other_makers(host, cards.cards)
    nodes += others
    if has_nvidias:
        along = [f"{UVM}-tools", "/dev/nvidia-modeset", *(path for path in host.devices if path.startswith(_CAPS))]
        nodes += [Node(path, is_needed=False) for path in along if path in host.devices]
        for function in cards.functions:
            drm = host.drm.get(function, DrmNodes())
            nodes += [Node(f"/dev/dri/{name}", is_needed=False) for name in (drm.card, drm.render) if name]
    return Nodes(tuple(nodes), unknown)


def _of_other_makers(host: HostNodes, cards: tuple[str, ...]) -> tuple[list[Node], tuple[str, ...]]:
    nodes: dict[str, Node] = {}
    unknown = []
    for word in cards:
        address, _, kinds = word.partition("=")
        drm = host.drm.get(address, DrmNodes())
        for kind in kinds.split(","):
            if kind not in ("render", "card"):
                nodes.setdefault("/dev/kfd", Node("/dev/kfd", group="render"))
            elif name := drm.render if kind == "render" else drm.card:
                path = f"/dev/dri/{name}"
                nodes.setdefault(path, Node(path, group="render" if kind == "render" else "video"))
            else:
                unknown.append(f"the {kind} node of {address}")
    return list(nodes.values()), tuple(unknown)


def missing(host: HostNodes, nodes: Nodes) -> list[str]:
    """Which of the nodes that a container can't do without aren't there, in words."""
    return [*nodes.unknown, *(node.path for node in nodes.nodes if node.is_needed and node.path not in host.devices)]
