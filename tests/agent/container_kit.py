"""A folder that is a host with cards, and container 300 on it: what of Proxmox VE the layers of containers use, as functions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

import pytest

from remote_scripts.guests import container_follow
from remote_scripts.layers import card_nodes as boot_layer
from remote_scripts.pve import guests
from remote_scripts.tools import disk, state
from remote_scripts.tools.done import Done
from tests.agent.kit import Host

CTID = 300
CONF = f"/etc/pve/lxc/{CTID}.conf"
STATE = f"/var/lib/lxc/{CTID}/state"
BASE = "arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n"
PRIVILEGED = BASE.replace("unprivileged: 1\n", "")
NET = "net0: name=eth0,hwaddr=AA:00:00:00:00:01,ip=dhcp\n"
ALLOW = "lxc.cgroup2.devices.allow: c "
BIND = "lxc.mount.entry: /dev/{0} dev/{0} none bind,optional,create=file\n"
NVIDIA, SECOND, AMD = "0000:01:00.0", "0000:02:00.0", "0000:0c:00.0"
BOOT = "c0ffee"


class Containers:
    """The host of a test, and its container. `conf_path`: of its configuration, by no link."""

    conf_path = CONF

    def __init__(self, host: Host) -> None:
        self.host = host
        self.root = host.root
        #: How pct was called, but for its questions.
        self.calls: list[list[str]] = []
        self.is_deaf = self.starts_not = False
        #: Called after a verb of pct.
        self.after: dict[str, Callable[[], None]] = {}
        host.programs |= {
            "pct": self.pct,
            "systemctl": lambda arguments, _stdin: "inactive\n" if arguments[0] == "is-active" else "no\n",
            "modinfo": lambda _arguments, _stdin: 0,
        }
        for path in ("dev/dri", "etc/systemd/system/multi-user.target.wants", "usr/local/sbin", "var/log/pve/tasks"):
            (host.root / path).mkdir(parents=True)
        host.write("/proc/sys/kernel/random/boot_id", f"{BOOT}\n")
        host.write(STATE, "stopped")
        self.node("kfd", 235, 0, 0o660)
        self.conf = BASE
        #: The file of groups inside.
        self.inside = "root:x:0:\nvideo:x:44:\nrender:x:104:\n"

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
        verb = arguments[0]
        if verb == "status":
            return f"status: {self.state}\n"
        if verb == "exec":
            return f"{self.inside}#\n"
        self.calls.append([*arguments])
        disk.WATCH[-1]("pct", str(self.root / "pct"))
        answer = getattr(self, f"_{verb}")([*arguments[2:]])
        self.after.get(verb, lambda: None)()
        disk.WATCH[-1]("pct", str(self.root / "pct"))
        assert isinstance(answer, Done | int)
        return answer

    def _shutdown(self, _arguments: list[str]) -> Done | int:
        if "lock: " in self.conf:
            self._task("shutdown", "CT is locked (backup)")
            return Done(255, b"CT is locked (backup)\n")
        if self.is_deaf:
            self._task("shutdown", "unable to shut down")
            return Done(255, b"timeout\n")
        return self._to("stopped", "shutdown")

    def _stop(self, _arguments: list[str]) -> int:
        return self._to("stopped", "stop")

    def _start(self, _arguments: list[str]) -> Done | int:
        return Done(255, b"no such mount\n") if self.starts_not else self._to("running", "start")

    def _to(self, state: str, task: str) -> int:
        self.state = state
        self._task(task, "OK")
        return 0

    def _task(self, kind: str, status: str) -> None:
        at = f"{int(time.time()):08X}"
        with (self.root / "var/log/pve/tasks/index").open("a") as file:
            file.write(f"UPID:pve:00001234:0000ABCD:{at}:vz{kind}:{CTID}:root@pam: {at} {status}\n")

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


def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in {
        state: ("_TRY_SECONDS",),
        container_follow: ("CARD_SECONDS", "QUORUM_SECONDS"),
        guests: ("_LOOK_SECONDS",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, 0.0)
