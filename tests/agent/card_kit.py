"""A folder that is a host with cards, and container 300 on it, as the layers of containers find them: with pvedaemon, tasks, and Perl."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lab.api.guest_config import GuestConfig
from remote_scripts.both import container_cards
from remote_scripts.both.terms import Terms
from remote_scripts.cards import container_follow
from remote_scripts.containers import container_groups
from remote_scripts.guests import change, container, guest, requests
from remote_scripts.layers import card_nodes as boot_layer
from remote_scripts.notes import guest_notes
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import api, guests
from remote_scripts.pve.container_conf import Method, options_of
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.properties import differing
from remote_scripts.tools import disk, state
from remote_scripts.tools.done import Done
from remote_scripts.tools.system import System
from tests.agent import api_kit, disk_kit, guest_kit
from tests.agent.kit import Host, with_files_as_devices

CTID = 300
CONF = f"/etc/pve/lxc/{CTID}.conf"
STATE = f"/var/lib/lxc/{CTID}/state"
BASE = "arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n"
PRIVILEGED = BASE.replace("unprivileged: 1\n", "")
ALLOW = "lxc.cgroup2.devices.allow: c "
BIND = "lxc.mount.entry: /dev/{0} dev/{0} none bind,optional,create=file\n"
NVIDIA, SECOND, AMD = "0000:01:00.0", "0000:02:00.0", "0000:0c:00.0"
BOOT = "c0ffee"
NOTE = f"/etc/pve/homelab/lxc-{CTID}"


class Cards300:
    """The host of a test, and its container. `refusals`: what its shutdown, or its start, ends with; `is_rewritten`:
    Proxmox VE writes its configuration when it goes off; `after`: called after one of these, or Perl; `inside`: the file of groups inside.
    """

    is_rewritten = True
    #: Of its configuration, by no link.
    conf_path = f"/etc/pve/nodes/pve/lxc/{CTID}.conf"

    def __init__(self, host: Host) -> None:
        self.host, self.root = host, host.root
        for path in (
            *("etc/pve/nodes/pve/lxc", "run/lock/lxc", "dev/dri", "etc/systemd/system/multi-user.target.wants"),
            *("usr/local/sbin", "var/log/pve/tasks"),
        ):
            (host.root / path).mkdir(parents=True)
        (host.root / "etc/pve/local").symlink_to("nodes/pve")
        (host.root / "etc/pve/lxc").symlink_to("local/lxc")
        for path in disk_kit.DATABASE:
            host.write(path, "")
        #: What has changed something, or switched it.
        self.calls: list[list[str]] = []
        self.after: dict[str, Callable[[], None]] = {}
        self.refusals: dict[str, str] = {}
        self.ha: dict[str, Any] = {"managed": 0}
        self.inside = "root:x:0:\nvideo:x:44:\nrender:x:104:\n"
        host.programs |= {
            "pct": self.pct,
            "inside": lambda *_: self.inside,
            "systemctl": lambda arguments, _stdin: "inactive\n" if arguments[0] == "is-active" else "no\n",
            "modinfo": lambda _arguments, _stdin: 0,
        }
        host.write("/proc/sys/kernel/random/boot_id", f"{BOOT}\n")
        self.state, self.conf = "stopped", BASE
        self.node("kfd", 235, 0, 0o660)
        self.serve()

    # The host.

    def node(self, name: str, major: int, minor: int, mode: int = 0o666) -> None:
        self.host.write(f"/dev/{name}", f"device c {major}:{minor} owner 0:0\n", mode)

    def gone(self, *names: str) -> None:
        for name in names:
            (self.root / "dev" / name).unlink()

    def drm(self, address: str, number: int | None, *, made: bool = True) -> None:
        """The number of a card's node for computing since this boot; None: its driver hasn't come."""
        folder = self.root / f"sys/bus/pci/devices/{address}/drm"
        for one in folder.iterdir() if folder.exists() else ():
            (self.root / "dev/dri" / one.name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        for name, minor in ((f"renderD{number}", number), (f"card{number - 128}", number - 128)) if number else ():
            (folder / name).mkdir(parents=True)
            if made:
                self.node(f"dri/{name}", 226, minor, 0o660)

    def nvidia(self, *addresses: str, uvm: int = 480) -> None:
        """NVIDIA's driver, with these cards in their order, and its nodes."""
        shutil.rmtree(self.root / "proc/driver", ignore_errors=True)
        self.host.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01\n")
        for number, address in enumerate(addresses):
            self.host.write(f"/proc/driver/nvidia/gpus/{address}/information", f"Device Minor: \t {number}\n")
            self.node(f"nvidia{number}", 195, number)
        self.host.write("/proc/devices", f"Character devices:\n195 nvidia\n{uvm} nvidia-uvm\n\nBlock devices:\n")
        self.node("nvidiactl", 195, 255)
        self.node("nvidia-uvm", uvm, 0)

    # The container.

    @property
    def conf(self) -> str:
        return (self.root / CONF[1:]).read_bytes().decode()

    @conf.setter
    def conf(self, text: str) -> None:
        self.host.write(CONF, text, 0o640)

    @property
    def state(self) -> str:
        return self.host.read(STATE)

    @state.setter
    def state(self, state: str) -> None:
        self.host.write(STATE, state)

    def pct(self, arguments: Sequence[str], _stdin: bytes) -> Done | int | str:
        if arguments[0] != "status":
            self.calls.append([*arguments])
            return 255
        return f"status: {self.state}\n"

    def serve(self) -> None:
        api_kit.serve(self.host, self.answer)
        self.mint, self.host.programs["perl"] = self.host.programs["perl"], self.perl

    def perl(self, arguments: Sequence[str], stdin: bytes) -> Any:
        if [*arguments] == [*api.MINT[1:]]:
            return self.mint(arguments, stdin)
        self.calls.append(["perl"])
        done = api_kit.perl(self.root, arguments, stdin)
        self.after.get("perl", lambda: None)()
        return done

    def answer(self, method: str, path: str, parameters: dict[str, str]) -> Any:
        if method == "POST":
            return self.switched(path.rpartition("/")[2])
        if path.endswith("/status/current"):
            return {"status": self.state, "ha": self.ha}
        return guest_kit.answer(self.host, method, path, parameters)

    def switched(self, verb: str) -> str:
        """A task of Proxmox VE's, which has ended when it is answered."""
        self.calls.append([verb])
        said = self.refusals.get(verb, "")
        if not said:
            if verb != "start" and self.state == "running" and self.is_rewritten:
                config = GuestConfig.parse("lxc", self.conf)
                config.apply_pending()
                self.conf = config.text()
            self.state = "running" if verb == "start" else "stopped"
        upid = guest_kit.task(self.host, f"vz{verb}", CTID, int(time.time()), status=said or "OK")
        for place in (f"{guest_kit.TASKS}/index", guest_kit.TASKS):  # a power cut leaves it what it has
            disk.WATCH[-1]("flush", f"{self.root}{place}")
        self.after.get(verb, lambda: None)()
        return upid

    # What is asked of the layers.

    def boot(self, *arguments: str) -> str:
        """What the program says that runs at a boot."""
        said: list[str] = []
        system = self.host.system()
        system.log.say = said.append  # type: ignore[assignment, method-assign]
        boot_layer.program(system, arguments)
        return "\n".join(said)

    def left(self) -> list[str]:
        """What lies beside configurations."""
        return [path.name for path in (self.root / "etc/pve/lxc").iterdir() if not path.name.endswith(".conf")]

    def noted(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads(self.host.read(NOTE)) if self.host.exists(NOTE) else {}
        return {part: value for part, value in noted.items() if value not in (None, "", 0, False)}

    def note(self, **changes: Any) -> None:
        """Notes something else of it."""
        system = self.host.system()
        guest_notes.write(system, CONTAINER, CTID, replace(guest_notes.of_container(system, CTID), **changes))

    def ask(self, verb: str, **more: Any) -> Any:
        of_terms = {name: more.pop(name) for name in ("power", "otherwise") if name in more}
        terms = Terms(owner=f"p/s/{more.pop('guest', '')}", shutdown=more.pop("timeout", 5), **of_terms)
        of_cards = {name: more.pop(name) for name in ("method", "minors", "functions", "cards") if name in more}
        wanted = container_cards.Wanted(
            ctid=CTID, cards=Cards(**of_cards), terms=terms, goes_away=more.pop("goes_away", False)
        )
        assert not more
        return self.host.ask(verb, "container_cards", wanted)

    def apply(self, method: Method = "device", *cards: str, minors: tuple[int, ...] = ()) -> str:
        self.ask("apply", method=method, cards=cards, minors=minors)
        return self.conf

    def revert(self) -> str:
        self.ask("revert")
        assert self.noted() == {} and not self.left()
        return self.conf

    def drift(self) -> dict[str, str | None]:
        conf, _, decided = container_follow._decided(self.host.system(), CTID)
        return dict(differing(decided.target, options_of(conf)))


def on(box: Cards300, host: Host) -> Cards300:
    """The same container on a copy of its host."""
    copied = copy.copy(box)
    copied.host, copied.root, copied.calls = host, host.root, []
    host.programs |= {**box.host.programs, "pct": copied.pct}
    copied.serve()
    return copied


def _enter(host: System, ctid: int) -> System:
    """The container as a system, whose only program says its groups."""
    assert ctid == CTID
    return System(host.root, programs={"sh": lambda *_: host.run.ask("inside")})


def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it a real container that is entered."""
    monkeypatch.setattr(container_groups, "need_running", _enter)
    monkeypatch.setattr(state, "_TRY_SECONDS", 0.0)
    monkeypatch.setattr(guests, "_LOOK_SECONDS", 0.0)
    for name in ("CARD_SECONDS", "QUORUM_SECONDS"):
        monkeypatch.setattr(container_follow, name, 0.0)


@pytest.fixture
def box(host: Host, monkeypatch: pytest.MonkeyPatch) -> Cards300:
    with_files_as_devices(monkeypatch, host.root.parent)
    without_waits(monkeypatch)
    monkeypatch.setattr(change, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(guest, "_SWITCH_SECONDS", 0.0)
    monkeypatch.setattr(requests, "SILENT_SECONDS", 0.0)
    for module in (container, requests):
        monkeypatch.setattr(module, "LOCK_SECONDS", 0.0)
    return Cards300(host)
