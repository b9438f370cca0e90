"""Which lines of a container's configuration are to come and to go, so that it has its cards. Nothing is changed
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from remote_scripts.shared import card_nodes, nvidia
from remote_scripts.shared.card_nodes import Node
from remote_scripts.shared.container_conf import ContainerConf
from remote_scripts.shared.container_note import Cards, RecordedNode, mount_lines
from remote_scripts.tools.files import Device
from remote_scripts.tools.system import System

_DEVICE = "dev "


@dataclass(frozen=True)
class Ours:
    """`lines`: the lines that we added and that are there, by their options (guest_note.Options): `dev VALUE`, or an
    lxc.* line as its key is; `others`: what the configuration says without them.
    """

    lines: dict[str, str]
    others: ContainerConf


@dataclass(frozen=True)
class Lines:
    """`want`: homelab's lines that are to be there; `nodes`: what is noted of their nodes; `provided`: path -> how the
    container gets that node, `dev VALUE` or `mount`.
    """

    want: tuple[str, ...]
    nodes: tuple[RecordedNode, ...]
    provided: dict[str, str]


@dataclass(frozen=True)
class Change:
    """`want`: homelab's lines that are to be there; `nodes`: what is noted of the nodes by then; `absent`: nodes of
    cards that aren't there, in words; `add`: lines that are to come; `drop`: options that are to go.
    """

    want: tuple[str, ...]
    nodes: tuple[RecordedNode, ...]
    absent: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @property
    def is_any(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self.add or self.drop)


def lines_for(system: System, others: ContainerConf, cards: Cards, groups: Mapping[str, int]) -> Lines:
    """Homelab's lines by which a container has its cards, by the nodes that are there now.

    :param others: what the configuration says without homelab's lines.
    :param groups: render, video -> the group's number inside; one that isn't there has none.
    """
    nodes = card_nodes.nodes_of(system, cards).nodes
    numbers = {node.path: device for node in nodes if (device := system.files.device(node.path))}
    is_complete = all(provider(others, node.path) for node in nodes if node.is_needed and not node.group)
    rules: list[str] = []
    want: list[str] = []
    noted: list[RecordedNode] = []
    provided: dict[str, str] = {}
    for node in nodes:
        device = numbers.get(node.path)
        if device is None:
            continue
        given_by = provider(others, node.path)
        # The user has given it what it needs: that is left as it is, and nothing that goes along is added.
        if is_complete and not given_by and not node.group:
            continue
        if given_by and _is_allowed(others, given_by, device):
            provided[node.path] = given_by
            continue
        if given_by or cards.method == "mount-entry":
            provided[node.path] = given = "mount"
            rule, mount = mount_lines(node.path, device.numbers)
            rules += [] if _is_allowed(others, given_by, device) else [rule]
            want += [] if given_by else [mount]
        else:
            given = _options(node, device, groups)
            provided[node.path] = f"dev {node.path},{given}"
            want.append(provided[node.path])
        noted.append(RecordedNode(node.path, device.numbers, node.address, node.kind if node.address else "", given))
    return Lines((*rules, *want), tuple(noted), provided)


def provider(others: ContainerConf, path: str) -> str:
    """How others give the container a node: `dev VALUE`, `mount`, or nothing."""
    entry = others.entry_for(path)
    if entry is None or entry.source_of(path) != path:
        return ""
    return f"dev {entry.line.partition(':')[2].strip()}" if entry.method == "device" else "mount"


def _is_allowed(others: ContainerConf, given_by: str, device: Device) -> bool:
    return given_by.startswith(_DEVICE) or others.rule_for(device.major, device.minor, "rw") is not None


def _options(node: Node, device: Device, groups: Mapping[str, int]) -> str:
    """Of a dev[n] option: for the group's members; without that group, a node for computing is for all, as udev
    makes it where a distribution doesn't say otherwise, and one that sets the screen is root's. NVIDIA's nodes but for
    MIG's are for all in there, whatever the driver's options say of the host's users.
    """
    if not node.group:
        return f"mode=0{device.mode if node.path.startswith('/dev/nvidia-caps/') else 0o666:o}"
    if node.group in groups:
        return f"gid={groups[node.group]},mode=0660"
    return "mode=0660" if node.group == "video" else "mode=0666"


def _compared(own: Ours, want: Iterable[str], nodes: Iterable[RecordedNode], absent: Iterable[str]) -> Change:
    """What is to come and to go.

    :param want: homelab's lines that are to be there.
    """
    want = tuple(want)
    there = own.lines.values()
    return Change(
        want,
        tuple(nodes),
        tuple(absent),
        tuple(line for line in dict.fromkeys(want) if line not in there),
        tuple(key for key, line in own.lines.items() if line not in want),
    )


def follow(system: System, own: Ours, noted_nodes: Iterable[RecordedNode]) -> Change:
    """What is to come and to go so that each of homelab's lines stays about the device that it was given for,
    whatever name and numbers the kernel has for that now. Nothing else is decided: the way in which it is given stays,
    and what a user has taken out stays out.

    :param noted_nodes: that these lines give, as they are noted.
    """
    there = {*own.lines.values()}
    if not there:  # it was restored, or another container has the number now
        return Change((), ())
    # A node may be noted twice, as it was and as it is to be, by a run that was cut short.
    entries: dict[str, list[RecordedNode]] = {}
    for node in noted_nodes:
        entries.setdefault(node.key, []).append(node)
    recorded = {line for nodes in entries.values() for node in nodes for line in node.lines}
    want = [line for line in sorted(there) if line not in recorded]
    rules: list[str] = []
    noted: list[RecordedNode] = []
    absent: list[str] = []
    for nodes in entries.values():
        node = next((node for node in reversed(nodes) if there & {*node.lines}), nodes[0])
        present = list(dict.fromkeys(line for node in nodes for line in node.lines if line in there))
        # One that a user has taken out stays out.
        if not present and all(node.path for node in nodes):
            noted.append(node)
            continue
        now, without_line = _current_path(system, node), replace(node, path="", numbers="")
        device = system.files.device(now) if now else None
        if device is None:
            if node.address:
                absent.append(f"{node.kind} of {node.address}")
            if not node.path or _is_of_another(system, node):
                node = without_line
            else:
                want += present
        elif node.path == now and (node.numbers == device.numbers or node.given != "mount"):
            want += present
        else:
            given_by = provider(own.others, now)
            node = replace(node, path=now, numbers=device.numbers)
            if node.given == "mount":
                rule, mount = node.lines
                rules += [] if _is_allowed(own.others, given_by, device) else [rule]
                want += [] if given_by else [mount]
            elif given_by:
                # The user gives it that; homelab's comes back when the name is another one again.
                node = without_line
            else:
                want += node.lines
        noted.append(node)
    return _compared(own, [*rules, *want], noted, absent)


def _current_path(system: System, node: RecordedNode) -> str:
    """What the node is called now; empty: it isn't there."""
    path = node.path
    if node.kind in ("card", "renderD"):
        path = card_nodes.drm_node(system, node.address, node.kind)
    elif node.kind == "nvidia":
        minor = nvidia.minor_of(system, node.address)
        path = "" if minor is None else f"/dev/nvidia{minor}"
    return path if path and system.files.exists(path) else ""


def _is_of_another(system: System, node: RecordedNode) -> bool:
    """Whether another card has the name of a node that isn't there. What is in /dev/dri, the kernel has made."""
    if node.kind in ("card", "renderD"):
        return system.files.exists(node.path)
    minor = node.path.removeprefix("/dev/nvidia")
    return node.kind == "nvidia" and minor.isdigit() and nvidia.address_of(system, int(minor)) not in ("", node.address)


def are_there(system: System, nodes: Iterable[RecordedNode]) -> bool:
    """Whether the drivers have made every node that a container was given of a card."""
    return all(_current_path(system, node) for node in nodes if node.address)
