"""Which lines of a container's configuration are to come and to go, so that it has its cards. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from remote_scripts.containers import card_nodes
from remote_scripts.containers.card_nodes import HostNodes, Node
from remote_scripts.notes.container_note import Cards, mount_lines
from remote_scripts.pve.container_conf import ContainerConf
from remote_scripts.tools.device import Device

_DEVICE = "dev "


@dataclass(frozen=True)
class Lines:
    """`want`: homelab's lines that are to be there; `nodes`: what they depend on, the nodes that are there, with their
    numbers where a line has these; `provided`: path -> how the container gets that node, `dev VALUE` or `mount`.
    """

    want: tuple[str, ...]
    nodes: tuple[str, ...]
    provided: dict[str, str]


def lines_for(
    host: HostNodes, conf: ContainerConf, others: ContainerConf, cards: Cards, groups: Mapping[str, int]
) -> Lines:
    """Homelab's lines by which a container has its cards, by the nodes that are there now.

    :param conf: what the configuration says.
    :param others: the same without homelab's lines.
    :param groups: render, video -> the group's number inside; one that isn't there has none.
    """
    nodes = card_nodes.nodes_of(host, cards).nodes
    numbers = {node.path: host.devices[node.path] for node in nodes if node.path in host.devices}
    is_complete = all(provider(others, node.path) for node in nodes if node.is_needed and not node.group)
    rules: list[str] = []
    want: list[str] = []
    provided: dict[str, str] = {}
    for node in nodes:
        device = numbers.get(node.path)
        if device is None:
            continue
        given_by = provider(others, node.path)
        # The user has given it what it needs: that is left as it is, and nothing that goes along is added.
        if is_complete and not provider(conf, node.path) and not node.group:
            continue
        if given_by and _is_allowed(others, given_by, device):
            provided[node.path] = given_by
            continue
        if given_by or cards.method == "mount-entry":
            provided[node.path] = "mount"
            rule, mount = mount_lines(node.path, device.numbers)
            rules += [] if _is_allowed(others, given_by, device) else [rule]
            want += [] if given_by else [mount]
        else:
            provided[node.path] = f"dev {node.path},{_options(node, device, groups)}"
            want.append(provided[node.path])
    has_numbers = cards.method == "mount-entry"
    there = (f"{path} {device.numbers}" if has_numbers else path for path, device in numbers.items())
    return Lines((*rules, *want), tuple(there), provided)


def provider(others: ContainerConf, path: str) -> str:
    """How others give the container a node: `dev VALUE`, `mount`, or nothing."""
    entry = others.entry_for(path)
    if entry is None or entry.source_of(path) != path:
        return ""
    return f"dev {entry.line.partition(':')[2].strip()}" if entry.method == "device" else "mount"


def _is_allowed(others: ContainerConf, given_by: str, device: Device) -> bool:
    return given_by.startswith(_DEVICE) or others.rule_for(device.major, device.minor, "rw") is not None


def _options(node: Node, device: Device, groups: Mapping[str, int]) -> str:
    """Mode and group of a dev[n] option. A node of a group is for the group's members. If the container lacks that
    group, a node for computing is for everybody, which is also udev's default, and one that controls a screen is
    root's. NVIDIA's nodes, except MIG's, are for everybody in there, whatever the driver's options say of the host's
    users.
    """
    if not node.group:
        return f"mode=0{device.mode if node.path.startswith('/dev/nvidia-caps/') else 0o666:o}"
    if node.group in groups:
        return f"gid={groups[node.group]},mode=0660"
    return "mode=0660" if node.group == "video" else "mode=0666"
