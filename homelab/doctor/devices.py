"""The rows of a container's table: each device that it needs or is given, from the host's node to who may open it
inside. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from homelab.doctor.reading import OK, ContainerReading, Reading, Seen
from homelab.findings import Judged
from homelab.host import handover
from homelab.judged.tree import Tree
from homelab.properties import slot_of
from remote_scripts.containers.card_nodes import nodes_of
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve.container_conf import ContainerConf, Entry
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
    `is_set`: the settings have it; `driver_comes`: they install its host's driver.
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
    driver_comes: bool = False


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
        system=tree.systems.get(f"containers.{name}", WantedCards.system),
        is_set=True,
        driver_comes=host.nvidia is not None,
    )


@dataclass(frozen=True)
class Row:
    """One device. `host`: the node that is behind it there; `entry`: what in the configuration gives it; `rule`: the
    device rule for it, as text; `allowed`: does a rule match the numbers of now? (None: nothing to match); `seen`: the
    node inside.
    """

    path: str
    needed: bool
    host: Device | None
    entry: Entry | None
    rule: str
    allowed: bool | None
    seen: Seen | None

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
            "host": host
            and {"path": self.source, "major": host.major, "minor": host.minor, "mode": f"{host.mode:04o}"},
            "conf": entry and {"method": entry.method, "line": entry.line, "pending": entry.pending},
            "rule": self.rule or None,
            "allowed": self.allowed,
            "inside": seen
            and {
                "major": seen.node.major,
                "minor": seen.node.minor,
                "mode": f"{seen.node.mode:04o}",
                "root": seen.root,
                "user": seen.user,
            },
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


def cards_in(conf: ContainerConf) -> list[int]:
    """The cards that a configuration gives."""
    numbers = (card_number(entry.path) for entry in conf.entries)
    return sorted({number for number in numbers if number is not None})


def cards_of(
    reading: Reading, container: ContainerReading, like: ContainerReading | None, given: WantedCards | None
) -> WantedCards:
    """The cards of a container: the given ones, else those of its configuration, else those of the other container,
    else all.
    """
    if given is not None:
        return given
    if numbers := cards_in(container.parsed):
        return WantedCards(numbers, "its configuration")
    if like is not None and (numbers := cards_in(like.parsed)):
        return WantedCards(numbers, f"container {like.id}")
    return WantedCards(list(reading.cards), "no configuration: all of the host's are shown", guessed=True)


def rows_of(reading: Reading, container: ContainerReading, cards: WantedCards) -> list[Row]:
    """The table, needed devices first."""
    functions = tuple(reading.cards[number] for number in cards.numbers if number in reading.cards)
    wanted = Cards(minors=tuple(cards.numbers), functions=functions, cards=cards.others)
    nodes = nodes_of(reading.facts.card_nodes, wanted).nodes
    needed = [node.path for node in nodes if node.is_needed] or (NEEDED if cards.guessed else [])
    paths = [*needed, *(node.path for node in nodes), *_given(reading, container.parsed)]
    paths += [path for path in container.seen if is_gpu(path)]
    return [_row(reading, container, path, path in needed) for path in dict.fromkeys(paths)]


def _given(reading: Reading, conf: ContainerConf) -> list[str]:
    """Every graphics node that the configuration gives, folders taken apart."""
    paths: list[str] = []
    for entry in conf.entries:
        if entry.folder:
            below = (path for path in reading.facts.nodes if path.startswith(f"{entry.source}/"))
            paths += [entry.path + path[len(entry.source) :] for path in below]
        else:
            paths.append(entry.path)
    return [path for path in paths if is_gpu(path)]


def _row(reading: Reading, container: ContainerReading, path: str, needed: bool) -> Row:
    conf = container.parsed
    entry = conf.entry_for(path)
    host = reading.facts.nodes.get(entry.source_of(path) if entry else path)
    bare = Row(path, needed, host, entry, "", None, container.seen.get(path))
    if entry is None:
        return bare
    rule, allowed = _rule(conf, bare)
    return Row(path, needed, host, entry, rule, allowed, bare.seen)


def _rule(conf: ContainerConf, row: Row) -> tuple[str, bool | None]:
    """The rule for a device that is given, and whether it allows the host's numbers of now."""
    host, entry = row.host, row.entry
    if host is None or entry is None:
        return "", None
    if entry.method == "device":
        # Made at each start, of the numbers that the node has then.
        return "its own", True
    rule = conf.rule_for(host.major, host.minor, row.access)
    return (rule.line.partition("allow")[2].lstrip(" :=") if rule else "none"), rule is not None


def names(rows: Sequence[Row]) -> str:
    """Their paths, for a person."""
    return ", ".join(row.path for row in rows)
