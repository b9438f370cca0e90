"""What a reading of the host and the agent's diagnosis saw, as types; parsing of the texts that they pass on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from homelab.host.facts import HostFacts
from remote_scripts.layers import diagnose
from remote_scripts.shared.container_conf import ContainerConf
from remote_scripts.shared.container_conf import parse as parse_conf

OK = "ok"
_LIBRARY_VERSION = re.compile(r"\.so\.(\d+\.\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Node:
    """A character device: its numbers, its permission bits, the ids of its owner."""

    path: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int

    @property
    def numbers(self) -> str:
        """`195:0`."""
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True)
class Seen:
    """A node inside a container; `root` and `user`: `ok`, or why it can't be opened."""

    node: Node
    root: str
    user: str


class ContainerReading(diagnose.Container):
    """A container that was looked into, with what follows from its configuration and from what is inside."""

    @cached_property
    def parsed(self) -> ContainerConf:
        return parse_conf(self.conf)

    @property
    def name(self) -> str:
        return self.parsed.options.get("hostname", f"CT{self.id}")

    @property
    def was_seen(self) -> bool:
        """Is it known what is inside?"""
        return bool(self.running) and not self.problem

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """Path -> the node inside."""
        answers: dict[tuple[str, str], str] = {}
        nodes: list[Node] = []
        for line in self.inside.splitlines():
            word, _, rest = line.partition(" ")
            path, _, answer = rest.partition(" ")
            if word == "node":
                nodes += _nodes(rest)
            elif word in ("root", "user"):
                answers[word, path] = answer
        return {
            node.path: Seen(node, answers.get(("root", node.path), ""), answers.get(("user", node.path), ""))
            for node in nodes
        }

    @cached_property
    def libraries(self) -> dict[str, str]:
        """Where the loader finds a library of NVIDIA's -> its version (empty: its file doesn't say)."""
        versions = {}
        for line in self.inside.splitlines():
            if line.startswith("library "):
                _, path, target = [*line.split(" "), ""][:3]
                version = _LIBRARY_VERSION.search(target)
                versions[path] = version[1] if version else ""
        return versions

    @property
    def library_versions(self) -> list[str]:
        return sorted(set(filter(None, self.libraries.values())))


@dataclass(frozen=True)
class Extra(diagnose.Answer):
    """The answer of the agent's layer diagnose."""

    containers: tuple[ContainerReading, ...]


@dataclass(frozen=True)
class Reading:
    """All that a diagnosis is made of."""

    facts: HostFacts
    extra: Extra

    @property
    def node(self) -> str:
        return self.facts.cluster.node

    @property
    def driver(self) -> str:
        """The version of NVIDIA's driver that is loaded on the host; empty: none is."""
        return self.facts.nvidia.version

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Path -> node on the host."""
        return {node.path: node for node in _nodes(self.extra.nodes)}

    @cached_property
    def majors(self) -> dict[str, int]:
        """Name -> major number of the kernel's character devices, from /proc/devices."""
        text = self.extra.char_devices.partition("Block devices:")[0]
        rows = (line.split() for line in text.splitlines())
        return {words[1]: int(words[0]) for words in rows if len(words) == 2 and words[0].isdigit()}

    @property
    def cards(self) -> dict[int, str]:
        """N of /dev/nvidiaN -> PCI address, of the cards that NVIDIA's driver has."""
        return {minor: address for address, minor in sorted(self.facts.nvidia_minors.items(), key=lambda pair: pair[1])}

    def container(self, ctid: int) -> ContainerReading | None:
        """The container, if it was looked into."""
        return next((container for container in self.extra.containers if container.id == ctid), None)


def _nodes(text: str) -> list[Node]:
    """Lines of `path type-major type-minor mode uid gid kind`; numbers as stat(1) prints them. What isn't a character
    device is left out.
    """
    nodes = []
    for line in text.splitlines():
        path, *words = line.split(" ", 6)
        if len(words) == 6 and words[5] == "character special file":
            major, minor = (int(word, 16) for word in words[:2])
            nodes.append(Node(path, major, minor, int(words[2], 8), int(words[3]), int(words[4])))
    return nodes
