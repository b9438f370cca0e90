"""Hosts on which every layer is stopped (test_stops.py): each is a folder, with what stands for programs of the host on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from remote_scripts.notes import owed
from remote_scripts.tools.run import Stand
from tests.agent import api_kit, boot_kit, card_kit, cluster_kit, disk_kit, guest_kit, handover_kit
from tests.agent import test_owed as guests
from tests.agent.disk_kit import Tree
from tests.agent.kit import Cut, Host, left_by

# What a rule of udev's sets: of which function, and each attribute.
_FUNCTION, _SETS = re.compile(r'KERNEL=="([^"]+)"'), re.compile(r'ATTR\{([^}]+)\}="([^"]*)"')


class Machine:
    """A host of files, whose programs always say the same.

    :param place: a folder of its own, not there yet.
    :param example: of stops.yaml.
    """

    kind_of_host: type[Host] = Host
    #: Folders that `go_on` makes anew.
    anew: tuple[str, ...] = ()
    #: Whether other nodes keep /etc/pve meanwhile.
    in_cluster = False

    def __init__(self, place: Path, example: Mapping[str, Any]) -> None:
        self.example = example
        self.host = self.kind_of_host(place)
        (self.host.root / "dev").mkdir()
        self.begin()
        self.add()
        #: What the kernel has in /sys when it boots.
        self.booted = self.host.tree("sys")

    def begin(self) -> None:
        """What such a host has, on an empty folder."""

    def add(self) -> None:
        """What the example has besides."""
        for path, text in self.example.get("files", {}).items():
            self.host.write(path, text)
        for path in self.example.get("folders", ()):
            (self.host.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.host.programs |= {name: _saying(answer) for name, answer in self.example.get("programs", {}).items()}

    def after(self, cut: Cut, place: Path) -> Machine:
        """The host that a cut has left: killed, and running on; or booted again, where it was the power's. What isn't on a disk is as it was at the act's end."""
        left, is_booted = object.__new__(type(self)), cut.how.startswith("power")
        left.example, left.booted = self.example, self.booted
        left.host = left_by(replace(cut, kernel=self.booted) if is_booted else cut, self.host, place)
        left_out = {*disk_kit.LASTING, "sys", *self.anew, *(["run"] if is_booted else [])}
        for path in [path for path in self.host.root.iterdir() if path.name not in left_out]:
            if path.is_dir():
                shutil.copytree(path, left.host.root / path.name, symlinks=True, dirs_exist_ok=True)
            else:  # what a stand-in keeps by itself
                shutil.copy2(path, left.host.root)
        if is_booted:
            _udev(left.host)
        left.go_on(self, is_booted)
        return left

    def go_on(self, before: Any, is_booted: bool) -> None:
        """What the programs know by themselves, on what a cut has left.

        :param before: the machine that was cut.
        """

    def starts_what_stays_off(self) -> bool:
        """As its owner, a guest that a run that was killed has left off, as nobody can tell any more who has switched it off. False: there is none."""
        return False

    def lasting(self) -> Tree:
        """What is compared: the disk, and what the kernel was told."""
        kernel = self.host.tree("sys")
        values = {
            path: (mode, text.strip() if isinstance(text, bytes) else text) for path, (mode, text) in kernel.items()
        }
        return {**first_lines(self.host.lasting()), **values}

    def remove(self) -> None:
        """Its folder isn't needed any more."""
        shutil.rmtree(self.host.root.parent)


def first_lines(tree: Tree) -> dict[str, tuple[int, bytes | str | None]]:
    """Of a file of homelab's the record's first line: the others are of what it may have been."""
    return {
        path: (mode, content.partition(b"\n")[0])
        if path.startswith("var/lib/homelab/files/") and isinstance(content, bytes)
        else (mode, content)
        for path, (mode, content) in tree.items()
    }


def _udev(host: Host) -> None:
    """What the rules set when the kernel finds the cards."""
    for rules in (host.root / "etc/udev/rules.d").glob("*.rules"):
        for line in rules.read_text().splitlines():
            for name, value in _SETS.findall(line):
                (host.root / "sys/bus/pci/devices" / _FUNCTION.findall(line)[0] / name).write_text(f"{value}\n")


def _saying(answer: str | int) -> Stand:
    return lambda _arguments, _stdin: answer


class Boot(Machine):
    """A host with two kernels and a boot loader (boot_kit.py)."""

    anew = ("dev",)

    def begin(self) -> None:
        boot_kit.stock(self.host, self.example.get("loader", "grub"))
        api_kit.runs(self.host, {}, {})

    def go_on(self, before: Any, is_booted: bool) -> None:
        boot_kit.run(self.host)

    def lasting(self) -> Tree:
        tree = first_lines(boot_kit.lasting(self.host))
        armed = boot_kit.TRIAL.lstrip("/")
        if armed in tree:  # until when an `up` waits is of the clock
            tree[armed] = (tree[armed][0], re.sub(rb"until \d+", b"until", cast(bytes, tree[armed][1])))
        return tree


_WORDS = "homelab.vfio=0000:01:00.0=10de:2882"


class Booted(Boot):
    """The same in the boot on trial with what was configured, which waits for its confirmation."""

    def begin(self) -> None:
        super().begin()
        boot_kit.configure(self.host, _WORDS)

    def go_on(self, before: Any, is_booted: bool) -> None:
        super().go_on(before, is_booted)
        boot_kit.booted(self.host, f"quiet {_WORDS} homelab.trial")


class Container(Machine):
    """A host with container 300, whose nodes of cards are there (card_kit.py)."""

    def begin(self) -> None:
        self.box = card_kit.Cards300(self.host)
        self.box.nvidia(card_kit.NVIDIA, card_kit.SECOND)
        self.box.drm(card_kit.AMD, 128)
        self.box.state = self.example.get("container", "stopped")

    def go_on(self, before: Any, is_booted: bool) -> None:
        self.box = card_kit.on(before.box, self.host)
        if is_booted:
            self.box.state = self.example.get("booted", "stopped")
            self.host.write("/proc/sys/kernel/random/boot_id", "the next\n")

    def starts_what_stays_off(self) -> bool:
        if not self.example.get("starts_what_stays_off") or self.box.state == "running":
            return False
        self.box.switched("start")
        return True

    def lasting(self) -> Tree:
        """But for whether the container runs, and its tasks. As long as it has something of homelab's: its lines in any order, with any number, and no notes,
        which also tell how it came to that."""
        left_out = [card_kit.STATE, "/var/log/pve/"]
        system = self.host.working_system()
        if not owed.noted(system):  # of a list that has nobody the host's own timer takes away what a cut has left
            system.changing(lambda: owed.drop(system))
        tree = {**self.host.lasting()}
        if self.box.noted():
            left_out.append(card_kit.NOTE)
            conf = self.box.conf_path.lstrip("/")
            lines = sorted(re.sub(r"^dev\d+", "dev", line) for line in self.box.conf.splitlines())
            tree[conf] = (tree[conf][0], "\n".join(lines))
        return {path: about for path, about in tree.items() if not f"/{path}".startswith(tuple(left_out))}


class InTurn(Machine):
    """A host with a card that container 950 and VM 103 have in turn (handover_kit.py)."""

    kind_of_host = handover_kit.Host
    host: handover_kit.Host

    def begin(self) -> None:
        handover_kit.fill(self.host)

    def go_on(self, before: Any, is_booted: bool) -> None:
        self.host.programs |= handover_kit.programs(self.host)


class Node(Machine):
    """The first of three nodes of a cluster, with disks of Ceph's and guests under HA (cluster_kit.py)."""

    kind_of_host = cluster_kit.Host
    host: cluster_kit.Host
    in_cluster = True

    def begin(self) -> None:
        self.host.node_of_three()
        self.host.with_ha().with_disks()
        self.host.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
        self.host.write("/boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
        self.host.write("/proc/cmdline", "quiet\n")
        self.host.programs |= {"bash": lambda _arguments, _stdin: " quiet\n"}

    def go_on(self, before: Any, is_booted: bool) -> None:
        self.host.run()
        if is_booted:
            self.host.write(cluster_kit.BOOT, "the next one\n")


class Returned(Node):
    """The same in the boot that it had its turn for."""

    def begin(self) -> None:
        super().begin()
        self.host.programs["systemd-run"] = _saying("")
        api_kit.runs(self.host, {}, {})
        boot = {"words": ["iommu=pt"]}
        wanted = {"policy": "auto", "boot": boot, "rollback_after": 600, "awaited": 1800}
        self.host.ask("apply", "reboot", wanted)
        shutil.rmtree(self.host.root / "run")
        (self.host.root / "run").mkdir()
        self.host.write(cluster_kit.BOOT, "the next one\n")


class WithGuestsToStart(Machine):
    """A host after its restart: guests that ran before are noted (test_owed.py)."""

    def begin(self) -> None:
        guests.fill(self.host)

    def go_on(self, before: Any, is_booted: bool) -> None:
        guest_kit.programs(self.host)

    def lasting(self) -> Tree:
        """But for the log of tasks, which has times."""
        return {path: about for path, about in self.host.lasting().items() if not path.startswith("var/log/pve/")}


MACHINES: dict[str, Callable[[Path, Mapping[str, Any]], Machine]] = {
    "folder": Machine,
    "boot": Boot,
    "booted": Booted,
    "container": Container,
    "in turn": InTurn,
    "node": Node,
    "node that is back": Returned,
    "guests to start": WithGuestsToStart,
}
