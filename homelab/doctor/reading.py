"""What a reading of the host and the agent's diagnosis saw, as types; parsing of the texts that they pass on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from remote_scripts.both import diagnose
from remote_scripts.pve.container_conf import ContainerConf
from remote_scripts.pve.container_conf import parse as parse_conf
from remote_scripts.pve.guest_kinds import CONTAINER, Kind
from remote_scripts.tools.device import Device

OK = "ok"
_LIBRARY_VERSION = re.compile(r"\.so\.(\d+\.\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Seen:
    """A node inside a container; `root` and `user`: `ok`, or why it can't be opened."""

    node: Device
    root: str
    user: str


class ContainerReading(diagnose.ContainerInside):
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
        nodes: dict[str, Device] = {}
        for line in self.inside.splitlines():
            word, _, rest = line.partition(" ")
            path, _, answer = rest.partition(" ")
            if word == "node":
                major, minor, mode, *kind = answer.split(" ", 5)  # as stat(1) prints them
                if kind[2:] == ["character special file"]:
                    nodes[path] = Device(int(major, 16), int(minor, 16), int(mode, 8))
            elif word in ("root", "user"):
                answers[word, path] = answer
        return {
            path: Seen(node, answers.get(("root", path), ""), answers.get(("user", path), ""))
            for path, node in nodes.items()
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


def not_here(facts: HostFacts, kind: Kind, guest: int | str) -> HomelabError:
    """The error for a guest that isn't on this host, or isn't of this kind.

    :param guest: its id; a text: no guest has that name.
    """
    here = facts.guests.listed(kind)
    others, node = facts.cluster.guests.get(guest, ("", "")) if isinstance(guest, int) else ("", "")
    found, step = "no guest of the cluster has this id or name", f"name a {kind.label}; there are: {here}"
    step = f"there is no {kind.label} on this node yet" if here == "none" else step
    if others and (others == "lxc") is (kind is CONTAINER):
        found, step = f"it is on the node {node}", f"give that host with --host ({kind.label}s here: {here})"
    elif others:
        other, word = ("virtual machine", "vm") if others == "vm" else ("container", "container")
        found, step = f"it is a {other}", f"`homelab doctor {word} {guest}`, or {step}"
    wanted = f"{kind.label} {guest} on {facts.cluster.node}"
    return HomelabError(wanted=wanted, found=found, why="there is nothing to look into", next=step)
