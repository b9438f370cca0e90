"""The case of a container: the cards that it is to have, and each device that it needs or is given, from the host's
node to who may open it inside. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from homelab.doctor import host, logs
from homelab.doctor.reading import OK, ContainerReading, Reading, Seen
from homelab.findings import Finding, Judged
from homelab.host import handover
from homelab.judged.tree import Tree
from homelab.properties import slot_of
from remote_scripts.containers.card_nodes import nodes_of
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve.container_conf import ContainerConf, Entry, Rule
from remote_scripts.tools.device import Device

_CARD = re.compile(r"/dev/nvidia(\d+)")
# What CUDA takes besides the cards' own nodes. nvidia-smi is content without nvidia-uvm; CUDA isn't.
NEEDED = ["/dev/nvidiactl", "/dev/nvidia-uvm"]


def is_gpu(path: str) -> bool:
    """Whether it is a device node of NVIDIA's driver, or of the kernel's for graphics and computing."""
    return path.startswith(("/dev/nvidia", "/dev/dri/")) or path == "/dev/kfd"


def is_for_everybody(path: str) -> bool:
    """Is it a node that ordinary users open? Capabilities are for who manages them, dri nodes for the groups video and
    render.
    """
    return path.startswith("/dev/nvidia") and not path.startswith("/dev/nvidia-caps")


def card_number(path: str) -> int | None:
    """N of `/dev/nvidiaN`."""
    match = _CARD.fullmatch(path)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class WantedCards:
    """The cards that a container is to have. `numbers`: N of their /dev/nvidiaN; `by`: what names them, such as an
    option; `guessed`: nothing does. `others`: cards of other makers, as the agent has them. `away`: its shared cards
    that aren't with the host, each in words; `sunk`: those of them that don't come back by themselves. `judged`: of a
    container of the settings, or that homelab has given cards; `system`: of what the settings install in it;
    `is_set`: the settings have it.
    """

    numbers: list[int]
    by: str
    guessed: bool = False
    others: tuple[str, ...] = ()
    away: list[str] = field(default_factory=list)
    sunk: list[str] = field(default_factory=list)
    judged: Judged = Judged(title="", why="")
    system: Judged = Judged(title="", why="")
    is_set: bool = False


def of_settings(tree: Tree, ctid: int) -> WantedCards | None:
    """The cards that the settings give a container, and what is judged of it; None: they don't have it."""
    if (found := tree.of_container(ctid)) is None:
        return None
    (name, wish, judged), facts, host = found, tree.facts, tree.wanted.host
    container = tree.wanted.containers[name]
    with_driver = {slot_of(address) for address in facts.nvidia_minors}
    away = {
        gpu: f"gpus.{gpu} is {text}"
        for gpu in host.hands_over
        if (text := handover.state_text(facts, gpu))
        and (gpu not in tree.want.gpus or tree.want.gpus[gpu]["slot"] not in with_driver)
        and (container.gpus is None or gpu in container.gpus)
    }
    return WantedCards(
        [*wish.cards.minors],
        f"homelab:containers.{name}.{'gpuAssignment' if container.gpus is None else 'gpus'}",
        others=wish.cards.cards,
        away=[*away.values()],
        sunk=[text for gpu, text in away.items() if handover.has_sunk(facts, gpu)],
        judged=judged,
        system=tree.told(tree.systems.get(f"containers.{name}", WantedCards.system)),
        is_set=True,
    )


@dataclass(frozen=True)
class Row:
    """One device. `host`: the node that is behind it there; `entry`: what in the configuration gives it; `seen`: the
    node inside; `conf`: the configuration.
    """

    path: str
    needed: bool
    host: Device | None
    entry: Entry | None
    seen: Seen | None
    conf: ContainerConf

    @property
    def access(self) -> str:
        """What it must be open for: capabilities are taken by reading."""
        reading = self.path.startswith("/dev/nvidia-caps/") or (self.entry is not None and self.entry.deny_write)
        return "r" if reading else "rw"

    @property
    def source(self) -> str:
        """The path of the host's node."""
        return self.entry.source_of(self.path) if self.entry else self.path

    @property
    def mode(self) -> int:
        """Of the node inside, as far as the configuration says it."""
        if self.entry is not None and self.entry.mode is not None:
            return self.entry.mode
        return self.host.mode if self.host else 0

    @property
    def rule(self) -> str:
        """The device rule for the host's numbers of now, as text; empty: there is nothing to match."""
        if self.host is None or self.entry is None:
            return ""
        if self.entry.method == "device":
            # Made at each start, of the numbers that the node has then.
            return "its own"
        rule = self.conf.rule_for(self.host.major, self.host.minor, self.access)
        return allowed_by(rule) if rule else "none"

    @property
    def allowed(self) -> bool | None:
        """Does a rule match the numbers of now? None: there is nothing to match."""
        return self.rule != "none" if self.rule else None

    @property
    def is_barred(self) -> bool:
        """Whether no rule allows it. What is open inside, is allowed: by lxc's own configuration of unprivileged
        containers, or by a rule that this program can't see.
        """
        return self.allowed is False and not (self.seen and self.seen.root == OK)

    @property
    def data(self) -> dict[str, Any]:
        """For the report's JSON."""
        host, entry, seen = self.host, self.entry, self.seen
        return {
            "path": self.path,
            "needed": self.needed,
            "host": host and {"path": self.source, **_numbers(host)},
            "conf": entry and {"method": entry.method, "line": entry.line, "pending": entry.pending},
            "rule": self.rule or None,
            "allowed": self.allowed,
            "inside": seen and {**_numbers(seen.node), "root": seen.root, "user": seen.user},
        }

    def cells(self, was_seen: bool) -> list[str]:
        """For the report's table.

        :param was_seen: is it known what is inside?
        """
        seen = self.seen
        inside = f"{seen.node.numbers} {seen.node.mode:04o}" if seen else "no" if was_seen else ""
        return [
            f"{self.path}{'' if self.needed else ' (optional)'}",
            f"{self.host.numbers} {self.host.mode:04o}" if self.host else "no",
            f"{self.entry.method}{', pending' if self.entry.pending else ''}" if self.entry else "no",
            self.rule,
            "" if self.allowed is None else "yes" if self.allowed else "no",
            inside,
            seen.root if seen else "",
            seen.user if seen else "",
        ]


COLUMNS = ["device", "on the host", "in the conf", "cgroup rule", "allowed", "inside", "root opens", "user opens"]


def _numbers(node: Device) -> dict[str, Any]:
    return {"major": node.major, "minor": node.minor, "mode": f"{node.mode:04o}"}


def allowed_by(rule: Rule) -> str:
    """What a raw rule allows, such as `c 195:* rwm`."""
    return rule.line.partition("allow")[2].lstrip(" :=")


def cards_in(conf: ContainerConf) -> list[int]:
    """The cards that a configuration gives."""
    numbers = (card_number(entry.path) for entry in conf.entries)
    return sorted({number for number in numbers if number is not None})


def names(rows: Iterable[Row]) -> str:
    """Their paths, for a person."""
    return ", ".join(row.path for row in rows)


@dataclass(frozen=True)
class Case:
    """All that is judged: a container on a host, and the cards that it is to have. `tree`: of the same reading."""

    reading: Reading
    container: ContainerReading
    cards: WantedCards
    tree: Tree | None = None

    @property
    def name(self) -> str:
        return f"container {self.container.id}"

    @property
    def conf(self) -> ContainerConf:
        return self.container.parsed

    @cached_property
    def rows(self) -> list[Row]:
        """The table, needed devices first."""
        there, numbers = self.reading.cards, self.cards.numbers
        functions = tuple(there[number] for number in numbers if number in there)
        wanted = Cards(minors=tuple(numbers), functions=functions, cards=self.cards.others)
        nodes = nodes_of(self.reading.facts.card_nodes, wanted).nodes
        needed = [node.path for node in nodes if node.is_needed] or (NEEDED if self.cards.guessed else [])
        given = [path for entry in self.conf.entries for path in self._paths(entry)]
        graphics = [path for path in (*given, *self.container.seen) if is_gpu(path)]
        paths = dict.fromkeys([*needed, *(node.path for node in nodes), *graphics])
        return [self._row(path, path in needed) for path in paths]

    def _paths(self, entry: Entry) -> list[str]:
        """The nodes that a line of the configuration gives: of a folder all that the host has below it."""
        if not entry.folder:
            return [entry.path]
        below = (path for path in self.reading.facts.nodes if path.startswith(f"{entry.source}/"))
        return [entry.path + path[len(entry.source) :] for path in below]

    def _row(self, path: str, needed: bool) -> Row:
        entry = self.conf.entry_for(path)
        host = self.reading.facts.nodes.get(entry.source_of(path) if entry else path)
        return Row(path, needed, host, entry, self.container.seen.get(path), self.conf)

    @property
    def needed(self) -> list[Row]:
        return [row for row in self.rows if row.needed]

    @property
    def of_nvidia(self) -> list[Row]:
        """What it needs of NVIDIA's driver."""
        return [row for row in self.needed if row.path.startswith("/dev/nvidia")]

    @property
    def given(self) -> list[tuple[Row, Entry]]:
        """The devices that its configuration gives, each with the line that does."""
        return [(row, row.entry) for row in self.rows if row.entry is not None]

    @property
    def unknown(self) -> set[int]:
        """Cards that it is to have and the driver hasn't got; none of them while there is no driver at all."""
        return set(self.cards.numbers).difference(self.reading.cards) if self.reading.driver else set()

    @property
    def expected(self) -> list[Row]:
        """What it needs and can have."""
        return [row for row in self.needed if card_number(row.path) not in self.unknown]

    @cached_property
    def libraries(self) -> dict[str, str]:
        """Where its loader finds a library of NVIDIA's -> its version; what is mounted from the host is the host's."""
        config = self.reading.facts.guests.config(self.container.id)
        mounts, driver = tuple(config.nvidia_mounts if config else ()), self.reading.driver
        found = self.container.libraries
        return {path: version or (driver if path.startswith(mounts) else "") for path, version in found.items()}

    @property
    def library_versions(self) -> list[str]:
        return sorted(set(filter(None, self.libraries.values())))

    @property
    def equal(self) -> bool | None:
        """Are driver and libraries of one version? None: it isn't known what is inside."""
        if not self.container.was_seen:
            return None
        return bool(self.reading.driver) and self.library_versions == [self.reading.driver]

    @cached_property
    def of_driver(self) -> list[Finding]:
        """What is wrong with NVIDIA's driver as it is installed on the host, where the libraries inside aren't those of
        the loaded one."""
        return host.installed(self.reading, self.tree) if self.of_nvidia and self.equal is False else []

    @cached_property
    def log(self) -> tuple[list[Finding], list[str]]:
        """What the host's log has of its cards: findings, and remarks. A number that no card has now may be that of any
        card of NVIDIA's without one.
        """
        facts, numbers = self.reading.facts, self.reading.facts.nvidia_minors
        missing = set(self.cards.numbers).difference(numbers.values())
        paths = {row.path for row in self.rows if row.needed or row.entry}
        slots = {
            device.slot: device.slot
            for device in facts.display_devices
            if not paths.isdisjoint([f"/dev/nvidia{numbers.get(device.address)}", *facts.drm_nodes(device.address)])
            or (missing and device.is_nvidia and device.address not in numbers)
        }
        return logs.of_kernel(self.reading, slots, for_vms=False)
