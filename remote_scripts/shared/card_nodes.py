"""The device nodes of cards that a container is to have.

Those of Intel's and AMD's cards (cardN and renderDN in /dev/dri, AMD's /dev/kfd) get their numbers anew at each boot,
in the order in which the drivers come; a card is known by its PCI address, and its nodes by what the kernel says of it
now. Links such as /dev/dri/by-path/... are of no use: a container would get a node of that name, and programs look for
renderDN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from remote_scripts.shared import nvidia
from remote_scripts.shared.container_note import Cards
from remote_scripts.shared.pci import DEVICES
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_DRM_NAME = re.compile(r"(card|renderD)[0-9]{1,4}")
_CAPS = "/dev/nvidia-caps"


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


def drm_node(system: System, address: str, prefix: str) -> str:
    """The path of a card's node in /dev/dri; empty: it has none.

    :param prefix: card or renderD.
    """
    for name in system.files.names(f"{DEVICES}/{address}/drm"):
        if name.startswith(prefix) and _DRM_NAME.fullmatch(name):
            return f"/dev/dri/{name}"
    return ""


def renumbered(system: System, cards: Cards) -> Cards:
    """The cards by the numbers that NVIDIA's driver gives them now, without those that it doesn't have."""
    if not cards.functions:
        return cards
    minors = [nvidia.minor_of(system, address) for address in cards.functions]
    return replace(cards, minors=tuple(sorted(minor for minor in minors if minor is not None)))


def nodes_of(system: System, cards: Cards) -> Nodes:
    """The nodes of these cards."""
    nodes = [Node(f"/dev/nvidia{minor}") for minor in cards.minors]
    has_nvidias = bool(cards.minors or cards.functions)
    if has_nvidias:
        nodes += [Node("/dev/nvidiactl"), Node(nvidia.UVM)]
    others, unknown = _of_other_makers(system, cards.cards)
    nodes += others
    if has_nvidias:
        along = [f"{nvidia.UVM}-tools", "/dev/nvidia-modeset"]
        along += [f"{_CAPS}/{name}" for name in system.files.names(_CAPS) if name.startswith("nvidia-cap")]
        nodes += [Node(path, is_needed=False) for path in along if system.files.exists(path)]
        for function in cards.functions:
            paths = (drm_node(system, function, kind) for kind in ("card", "renderD"))
            nodes += [Node(path, is_needed=False) for path in paths if path]
    return Nodes(tuple(nodes), unknown)


def _of_other_makers(system: System, cards: tuple[str, ...]) -> tuple[list[Node], tuple[str, ...]]:
    nodes: dict[str, Node] = {}
    unknown = []
    for word in cards:
        address, _, kinds = word.partition("=")
        for kind in kinds.split(","):
            if kind not in ("render", "card"):
                nodes.setdefault("/dev/kfd", Node("/dev/kfd", group="render"))
                continue
            path = drm_node(system, address, "renderD" if kind == "render" else "card")
            if not path:
                unknown.append(f"the {kind} node of {address}")
            elif path not in nodes:
                nodes[path] = Node(path, group="render" if kind == "render" else "video")
    return list(nodes.values()), tuple(unknown)


def missing(system: System, nodes: Nodes) -> list[str]:
    """Which of the nodes that a container can't do without aren't there, in words."""
    gone = [node.path for node in nodes.nodes if node.is_needed and system.files.device(node.path) is None]
    return [*nodes.unknown, *gone]


def need(system: System, ctid: int, nodes: Nodes) -> None:
    """:raises Failure: one that the container can't do without isn't there, and why."""
    lacking = missing(system, nodes)
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
