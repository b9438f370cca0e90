"""A host that is a folder, with a card of two functions that container 950 and VM 103 have in turn: the kernel acts when sysfs is written, and programs are
functions. What they say is in files: `persistence`, `drain`; `active` has the units that are at work. Its guests: guest_kit.py.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers import handover as layer
from remote_scripts.layers import start_guests
from remote_scripts.notes import handover as shared_handover
from remote_scripts.notes import owed
from remote_scripts.notes.card import Card
from remote_scripts.notes.guest_note import identity
from remote_scripts.nvidia import nvidia
from remote_scripts.pve.vm_conf import options
from remote_scripts.tools import disk
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.run import Stand
from remote_scripts.tools.system import System
from tests.agent import api_kit, guest_kit, kit

GPU, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
BIG = Card(name="big", functions={GPU: "10de:2b85", AUDIO: "10de:22e8"}, vms=(103,))
STATE, STORY = "/var/lib/homelab/handover/big.state", "/var/lib/homelab/handover/log"
DEVICES = "/sys/bus/pci/devices"
VM, CONTAINER = "/etc/pve/qemu-server/103.conf", "/etc/pve/lxc/950.conf"
VM103, CT950 = "/state/qm/103", "/state/pct/950"
START, STOP, SERVICE = ("hook", "103", "pre-start"), ("hook", "103", "post-stop"), ("reconcile",)
_OWN = {GPU: "nvidia", OTHER: "nvidia", AUDIO: "snd_hda_intel"}


class Host(kit.Host):
    """The host, and what is asked of it."""

    def bind(self, address: str, driver: str) -> None:
        link = self.root / DEVICES[1:] / address / "driver"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../../../bus/pci/drivers/{driver}")

    def unbind(self, address: str) -> None:
        (self.root / DEVICES[1:] / address / "driver").unlink(missing_ok=True)

    def driver(self, address: str) -> str:
        link = self.root / DEVICES[1:] / address / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def drivers(self) -> list[str]:
        return [self.driver(one) for one in (GPU, AUDIO, OTHER)]

    def override(self, address: str) -> str:
        return self.read(f"{DEVICES}/{address}/driver_override").strip()

    def cards(self, *cards: Card) -> None:
        """What is handed over, as the layer has installed it."""
        self.write(shared_handover.CARDS, json.dumps(to_plain(cards)))

    def asked(self) -> str:
        """The programs that were started, a line each."""
        return self.read("/asked") if self.exists("/asked") else ""

    def fails(self, *calls: str) -> None:
        """From now on, calls of a program with a text among its words: `PROGRAM TEXT`. What pvedaemon is asked for is one, too."""
        self.write("/failing", "".join(f"{call}\n" for call in calls))

    def starts_fail(self, *ctids: int) -> None:
        """From now on, those of these containers, as tasks that fail."""
        shutil.rmtree(self.root / "fails", ignore_errors=True)
        for ctid in ctids:
            self.write(f"/fails/{ctid}", "")

    def started(self) -> list[str]:
        """The containers that were started, or were to be."""
        return self.read("/started").split() if self.exists("/started") else []

    def call(self, *words: str) -> str:
        """What is refused, as a person reads it; empty: nothing."""
        system = self.system()
        try:
            layer.program(system, words)
        except Failure as failure:
            return f"{failure.wanted}\n{failure.found}\n{failure.why}\n{failure.next}"
        finally:
            system.work.release()
        return ""

    def run(self, *words: str) -> None:
        assert self.call(*words) == ""

    def alone(self) -> None:
        """What the host's own timer runs for guests that are owed a start."""
        start_guests.program(self.working_system())

    def go_on(self) -> None:
        """What the host does by itself, until no start that has failed is too fresh."""
        self.run(*SERVICE)
        for _ in range(4):
            self.alone()

    def owed(self) -> dict[int, str]:
        """The containers that are owed a start -> why they weren't started when that was last tried."""
        return {debt.guest: debt.waits for debt in owed.noted(self.working_system())}

    def tasks(self) -> list[str]:
        """The kinds of those that are noted."""
        return [task["type"] for task in reversed(api_kit.noted_tasks(self))]

    def is_unknown(self) -> bool:
        """Whether the shutdown of a container that is owed a start was begun, and isn't noted."""
        debts = owed.noted(self.system())
        return self.read(CT950) == "stopped" and any(not debt.ours for debt in debts)

    def owe(self, *ctids: int, is_noted: bool = True) -> None:
        """They were shut down for the card.

        :param is_noted: their shutdowns themselves are.
        """
        for ctid in ctids:
            conf = self.read(f"/etc/pve/lxc/{ctid}.conf")
            shutdown = guest_kit.task(self, "vzshutdown", ctid, now())
            name, about = f"container {ctid} (media)", identity(dict(options(conf.splitlines())))
            debt = owed.Debt(
                program="pct", guest=ctid, name=name, identity=about, why="handover", boot="boot", known=()
            )
            owed.put(self.working_system(), replace(debt, card="big", ours=(shutdown,) if is_noted else ()))

    def state(self) -> str:
        return json.loads(self.read(STATE))["state"] if self.exists(STATE) else ""

    def story(self) -> str:
        return self.read(STORY) if self.exists(STORY) else ""

    def at_home(self, *, only: bool = False) -> bool:
        """The card, its containers, the driver's settings as at first; and its modules."""
        return (
            self.drivers() == ["nvidia", "snd_hda_intel", "" if only else "nvidia"]
            and {self.override(one) for one in (GPU, AUDIO)} == {""}
            and (self.read(CT950), self.read("/persistence"), self.read("/drain")) == ("running", "Enabled\n", "0\n")
            and self.exists("/proc/driver/nvidia/version")
        )

    def with_the_vm(self) -> bool:
        return self.drivers()[:2] == ["vfio-pci"] * 2 and (self.state(), self.read(CT950)) == ("VM", "stopped")

    def two_users(self) -> bool:
        """Does a container run with a card that isn't its driver's?"""
        return self.driver(GPU) != "nvidia" and self.read(CT950) == "running"

    def rewrite(self, **changes: object) -> None:
        """What is noted of the card, with these changes."""
        self.write(STATE, json.dumps(json.loads(self.read(STATE)) | changes))

    @contextmanager
    def vm_locked(self, vmid: str = "103") -> Iterator[None]:
        """As `qm start`, `qm stop` and, on Proxmox VE 9, `qm cleanup` have it while they call the hookscript."""
        with (self.root / f"run/lock/qemu-server/lock-{vmid}.conf").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def everything(self) -> dict[str, object]:
        """All but what a run and a task say, and when they were."""
        found: dict[str, object] = {}
        places = ("sys", "etc", "var", "proc", "dev", "kept", "state", "persistence", "drain")
        for name, about in self.tree(*places).items():
            if not name.endswith("handover/log") and not name.startswith("var/log/pve"):
                content = about[1]
                found[name] = re.sub(rb'"since": \d+', b"", content) if isinstance(content, bytes) else about
        return found

    def copied(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.root, place, symlinks=True)

    def back(self, place: Path) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(place, self.root, symlinks=True)


@pytest.fixture
def only() -> bool:
    """Whether the card is its driver's only one; others by a parameter of this name."""
    return False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: bool) -> Host:
    return made(Host(tmp_path), monkeypatch, only=only)


@pytest.fixture
def lent(host: Host) -> Host:
    """The same, with the card lent to the VM."""
    host.run(*START)
    assert host.with_the_vm()
    return host


def made(host: Host, monkeypatch: pytest.MonkeyPatch, *, only: bool = False) -> Host:
    """Its driver has another card, too, unless `only`."""
    fill(host)
    if only:
        host.unbind(OTHER)
    host.cards(BIG)
    monkeypatch.setattr(Files, "set_attribute", lambda files, path, value: _take(host, path, value.strip()))
    # Files in the place of devices, which can be copied (a state of the host).
    monkeypatch.setattr("remote_scripts.nvidia.nvidia.make_nodes", lambda system: _make_nodes(host, system))
    monkeypatch.setattr("remote_scripts.pve.guests._LOOK_SECONDS", 0)
    moments = Moments()
    for module in ("pve.guests", "guests.starts", "layers.start_guests"):
        monkeypatch.setattr(f"remote_scripts.{module}.time", moments)
    return host


def _make_nodes(host: Host, system: System) -> None:
    for minor in nvidia.minors(system).values():
        host.write(f"/dev/nvidia{minor}", "")


def fill(host: Host) -> None:
    """What such a host has before anything of homelab's is on it."""
    for driver in ("nvidia", "vfio-pci", "snd_hda_intel", "amdgpu"):
        host.write(f"/sys/bus/pci/drivers/{driver}/bind", "")
    for address, ids in ((GPU, "10de:2b85"), (AUDIO, "10de:22e8"), (OTHER, "10de:2684")):
        vendor, device = ids.split(":")
        host.write(f"{DEVICES}/{address}/vendor", f"0x{vendor}\n")
        host.write(f"{DEVICES}/{address}/device", f"0x{device}\n")
        host.write(f"{DEVICES}/{address}/driver_override", "\n")
        host.write(f"{DEVICES}/{address}/config", bytes.fromhex(vendor)[::-1] + bytes.fromhex(device)[::-1] + bytes(60))
        host.bind(address, _OWN[address])
    for name in ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"):
        (host.root / "sys/module" / name).mkdir(parents=True)
    host.write(f"/proc/driver/nvidia/gpus/{GPU}/information", "Device Minor: \t 0\n")
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  x\n"
    host.write("/proc/driver/nvidia/version", version)
    host.write("/proc/devices", "Character devices:\n195 nvidia\n508 nvidia-uvm\n\nBlock devices:\n")
    host.write("/proc/sys/kernel/random/boot_id", "boot\n")
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"):
        host.write(f"/dev/{name}", "")
    guest_kit.folders(host)
    host.write(f"{guest_kit.TASKS}/index", "")
    own = "net0: name=eth0,hwaddr=AA:BB:CC:00:00:01\nrootfs: local-lvm:vm-950-disk-0\n"
    host.write(CONTAINER, f"hostname: media\ndev0: /dev/nvidia0\n{own}")
    host.write(VM, "name: gaming\nhostpci0: mapping=big,driver=keep,pcie=1\n")
    host.write("/etc/pve/mapping/pci.cfg", "big\n\tmap id=10de:2b85,node=pve,path=0000:01:00\n")
    host.write(CT950, "running")
    host.write(VM103, "stopped")
    host.write("/state/pve-guests.service", "active\n")
    host.write("/state/system", "running\n")
    host.write("/persistence", "Enabled\n")
    host.write("/drain", "0\n")
    host.write("/kept/.keep", "")
    host.write("/run/lock/qemu-server/lock-103.conf", "")
    host.programs |= programs(host)


class Moments:
    """The time, of which a question that isn't answered takes as long as it may, and a wait none."""

    def __init__(self) -> None:
        self.now = self.passed = 0.0

    def monotonic(self) -> float:
        self.now += 30
        return self.now

    def sleep(self, seconds: float) -> None:
        self.passed += seconds

    def time(self) -> float:
        return time.time() + self.passed


# -- the kernel ----------------------------------------------------------------------------------------------------


def _take(host: Host, path: str, value: str) -> None:
    """A value that is written into sysfs. The file `refuses` has a part of the path for which the kernel refuses it."""
    disk.WATCH[-1]("write", str(host.root / path[1:]))
    if host.exists("/refuses") and host.read("/refuses").strip() in path:
        raise OSError(22, "Invalid argument")
    name = path.rpartition("/")[2]
    gpus, kept = host.root / "proc/driver/nvidia/gpus", host.root / "kept"
    if name == "unbind":
        was = host.driver(value)
        host.unbind(value)
        if was == "nvidia" and (gpus / value).exists():
            (gpus / value).rename(kept / value)
        if value == GPU and was == "nvidia":
            host.write("/persistence", "Disabled\n")  # the mode is the driver's own, which knows the card no more
    elif name in ("bind", "drivers_probe"):
        wanted = path.split("/")[-2] if name == "bind" else host.override(value) or _OWN[value]
        is_loaded = host.exists("/proc/driver/nvidia/version") or wanted != "nvidia"
        if host.driver(value) or not is_loaded or host.override(value) not in ("", wanted):
            raise OSError(19, "No such device")
        if wanted == "vfio-pci" and host.override(value) != "vfio-pci":
            raise OSError(19, "No such device")
        host.bind(value, wanted)
        if wanted == "nvidia" and (kept / value).exists():
            (kept / value).rename(gpus / value)
    else:
        (host.root / path[1:]).write_text(f"{value}\n")


# -- programs ------------------------------------------------------------------------------------------------------
def programs(host: Host) -> dict[str, Stand]:
    guest_kit.programs(host)
    theirs = {**host.programs, **kit.of_machine("grep", "od", "stat")}
    own: dict[str, Callable[[Host, list[str]], Done | int | str | None]] = {
        "systemd-run": _systemd_run,
        "systemctl": lambda host, words: _is_active(host, words) if "-q" in words else theirs["systemctl"](words, b""),
        "nvidia-smi": _nvidia_smi,
        "qm": lambda host, words: _qm_set(host, words) if words[0] == "set" else theirs["qm"](words, b""),
        "modprobe": _modprobe,
        "rmmod": lambda host, words: _rmmod(host, words[0]),
    }

    def stand(name: str) -> Stand:
        def called(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
            if _fails(host, name, " ".join(words)):
                return Done(9, b"", b"it fails\n" if name == "stat" else b"")
            return own[name](host, [*words]) if name in own else theirs[name](words, stdin)

        return called

    def answer(method: str, path: str, parameters: dict[str, str]) -> Any:
        if _fails(host, "pvedaemon", " ".join([method, path, *map("=".join, sorted(parameters.items()))])):
            raise api_kit.RefusedError("it fails")
        return guest_kit.answer(host, method, path, parameters)

    api_kit.serve(host, answer)
    return {name: stand(name) for name in (*own, "pct", "grep", "od", "stat")}


def _fails(host: Host, name: str, words: str) -> bool:
    """Notes a call, before which a test may look, or kill. Whether it is to fail."""
    disk.WATCH[-1]("program", f"{name} {words}")
    with (host.root / "asked").open("a") as asked:
        asked.write(f"{name} {words}\n")
    failing = host.read("/failing").splitlines() if host.exists("/failing") else []
    return any(who == name and what in words for who, _, what in (line.partition(" ") for line in failing))


def _systemd_run(host: Host, words: list[str]) -> Done | int | str | None:
    unit = next((word.partition("=")[2] for word in words if word.startswith("--unit=")), "")
    while words[0].startswith("-"):
        del words[: 2 if words[0] == "-p" else 1]
    words = words[words.index("/usr/local/sbin/homelab-handover") + 1 :]
    if words == ["reconcile"]:
        return 0
    if host.exists("/hangs") and host.read("/hangs").strip() == words[0]:
        host.write("/active", f"{unit}.service\n")
        return TIMED_OUT
    if host.exists("/late") and words[0] == "step_claim":
        (host.root / "late").rename(host.root / "proc/43")
    try:
        layer.program(host.system(), words)
    except SystemExit as refused:
        return Done(1, f"{refused.code}\n".encode())
    return 0


def _rmmod(host: Host, module: str) -> Done | int:
    if host.exists("/in-use") and host.read("/in-use").strip() == module:
        return Done(1, f"rmmod: ERROR: Module {module} is in use\n".encode())
    shutil.rmtree(host.root / "sys/module" / module)
    name = module.replace("_", "-")
    devices = host.read("/proc/devices")
    host.write("/proc/devices", re.sub(rf"(?m)^\d+ {name}\n", "", devices))
    if module == "nvidia":
        host.unbind(GPU)
        host.write("/persistence", "Disabled\n")
        (host.root / "proc/driver/nvidia").rename(host.root / "kept/nvidia")
    return 0


def _modprobe(host: Host, words: list[str]) -> None:
    """A module that brings devices gets the highest major that is free (fs/char_dev.c)."""
    module = words[0].replace("-", "_")
    (host.root / "sys/module" / module).mkdir(parents=True, exist_ok=True)
    devices = host.read("/proc/devices")
    name = {"nvidia_uvm": "nvidia-uvm", "vfio_pci": "vfio"}.get(module, "")
    if name and f" {name}\n" not in devices:
        free = next(number for number in range(508, 0, -1) if f"\n{number} " not in devices)
        devices = devices.replace("devices:\n", f"devices:\n{free} {name}\n", 1)
    if module == "nvidia" and (host.root / "kept/nvidia").exists():
        (host.root / "kept/nvidia").rename(host.root / "proc/driver/nvidia")
        devices = devices if "195 nvidia\n" in devices else devices.replace("devices:\n", "devices:\n195 nvidia\n", 1)
        if not host.driver(GPU) and host.override(GPU) != "vfio-pci":
            host.bind(GPU, "nvidia")
    host.write("/proc/devices", devices)


def _is_active(host: Host, words: list[str]) -> int:
    active = host.read("/active").split() if host.exists("/active") else []
    return 0 if {*words[2:]} & {*active} else 3


def _nvidia_smi(host: Host, words: list[str]) -> Done | int | str | None:
    if host.driver(GPU) != "nvidia":
        return 6
    text = " ".join(words)
    if "persistence_mode" in text:
        return f"{host.read('/persistence').strip()}, {host.read('/mig') if host.exists('/mig') else '[N/A]'}\n"
    if "-pm" in words:
        host.write("/persistence", "Enabled\n" if words[-1] == "1" else "Disabled\n")
    elif "pci.bus_id" in text and host.exists("/ails"):
        return 9
    elif words[:2] == ["drain", "-q"]:
        return "draining.\n" if host.read("/drain").strip() == "1" else "not draining.\n"
    elif words[0] == "drain":
        host.write("/drain", f"{words[-1]}\n")
    return "there\n"


def _qm_set(host: Host, words: list[str]) -> None:
    conf = f"/etc/pve/qemu-server/{words[1]}.conf"
    lines = [line for line in host.read(conf).splitlines() if not line.startswith("hookscript:")]
    added = [f"hookscript: {words[3]}"] if words[2] == "--hookscript" else []
    host.write(conf, "".join(f"{line}\n" for line in [*lines, *added]))


def thread(
    host: Host, pid: int, number: int, maps: str = "", group: str = "/lxc/950/ns/system.slice/ollama.service"
) -> None:
    """Of a process, which is one of a container's by default."""
    host.write(f"/proc/{pid}/comm", "ollama\n")
    host.write(f"/proc/{pid}/cgroup", f"0::{group}\n")
    host.write(f"/proc/{pid}/task/{number}/maps", maps)
    (host.root / f"proc/{pid}/task/{number}/fd").mkdir()


# -- what is asked -------------------------------------------------------------------------------------------------


def noted(state: str, **record: object) -> str:
    """What is noted of a card that VM 103 has, or has had."""
    return json.dumps({"state": state, "vm": "103", "boot": "boot", "since": 1, **record})


def now() -> int:
    return int(time.time())
