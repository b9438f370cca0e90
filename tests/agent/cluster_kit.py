"""pve1, the first of three nodes of a cluster, in a folder. `pvecm`, `ceph` and `ha-manager` answer as recorded of a real cluster (../shared/pve_api);
what HA has lies in a file of /etc/pve, which every node has.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remote_scripts.cluster import turn
from remote_scripts.pve.guest_kinds import KINDS
from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from tests.agent import disk_kit, kit

TURN = turn.TURN
HOME = "/var/lib/homelab"
BOOT = "/proc/sys/kernel/random/boot_id"
STATE = "/etc/pve/state"
NODES = "1 1 pve1 (local)\n2 1 pve2\n3 1 pve3"
OWED = f"{HOME}/owed"
_STATUS = (Path(__file__).parent / "pvecm_status.txt").read_text()


class Clock:
    """Time goes by with each wait alone. `meanwhile`: called in each that is longer than that between two looks at a file of /etc/pve."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passed, self.patch = 0.0, patch
        self.meanwhile: Callable[[], object] = lambda: None
        monotonic, boottime = time.monotonic, time.clock_gettime
        patch.setattr(time, "sleep", self.sleep)
        patch.setattr(time, "monotonic", lambda: monotonic() + self.passed)
        patch.setattr(time, "clock_gettime", lambda which: boottime(which) + self.passed)

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        if seconds >= 0.1:
            self.meanwhile()


def note_ran(host: kit.Host, *guests: tuple[str, int, str], known: Sequence[str] = (), identity: str = "") -> None:
    """Notes guests that ran before a restart (notes/owed.py): programs, ids and boots."""
    about = {"identity": identity, "why": "restart", "known": [*known]}
    noted = [
        about | {"program": program, "guest": vmid, "name": f"{KINDS[program].label} {vmid} (g{vmid})", "boot": boot}
        for program, vmid, boot in guests
    ]
    host.write(OWED, json.dumps({"debts": noted}), 0o600)


def who_ran(host: kit.Host) -> list[tuple[str, int, str]]:
    """Those that are noted."""
    return [(one["program"], one["guest"], one["boot"]) for one in json.loads(host.read(OWED))["debts"]]


def elsewhere(act: Callable[[], object]) -> None:
    """Somebody else does it, such as another node, and no layer of this one."""
    with ThreadPoolExecutor(1) as other:
        other.submit(act).result()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def status(*votes: int, expected: int, device: bool = False) -> str:
    """As `pvecm status` says it on the first of nodes with so many votes."""
    total = sum(votes) + device
    quorum = expected // 2 + 1
    flags = "    A,V,NMW" if device else ""
    rows = [f"    Nodeid      Votes{'    Qdevice' * device} Name"]
    rows += [
        f"0x{number:08x} {vote:10}{flags} 10.219.77.{number + 1}{' (local)' * (number == 1)}"
        for number, vote in enumerate(votes, 1)
    ]
    rows += ["0x00000000          1            Qdevice"] * device
    return _STATUS.format(
        nodes=len(votes), expected=expected, total=total, quorum=quorum, rows="\n".join(rows),
        quorate="Yes" if total >= quorum else "No", blocked="" if total >= quorum else "Activity blocked",
        flags="Quorate Qdevice" if device else "Quorate" * (total >= quorum),
    )  # fmt: skip


# `ha` has a line for each service: its id, its node, its state.
HA_STOCK = "vm:200 pve1 started\nct:901 pve1 started\nvm:201 pve1 stopped\nvm:202 pve2 started\n"


class Host(kit.Host):
    """The node, and what the others do."""

    def node_of_three(self) -> Host:
        """All nodes are well."""
        self.write("/etc/pve/corosync.conf", "totem {}\n")
        for folder in ("nodes/pve1", "nodes/pve2", "nodes/pve3"):
            (self.root / "etc/pve" / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/pve/local").symlink_to("nodes/pve1")
        for path in disk_kit.DATABASE:
            self.write(path, "")
        self.write(BOOT, "7d4f0d3c-0000-4000-8000-000000000001\n")
        self.members(status(1, 1, 1, expected=3))
        self.run()
        return self

    def run(self) -> None:
        """Its programs; `said` has what was asked of systemd since."""
        self.programs |= {
            "systemctl": lambda arguments, _stdin: self.noted("systemctl", arguments),
            "systemd-run": lambda _arguments, _stdin: 0,
            "ceph": lambda arguments, _stdin: Done(0 if arguments[1] == "ok-to-stop" else 22, b""),
            "ha-manager": lambda arguments, _stdin: self._ha_manager(arguments),
        }

    def _ha_manager(self, arguments: Sequence[str]) -> Done:
        if arguments != ("status",):
            return Done(255, b"", b"ERROR: unknown command")
        lines = [
            "quorum OK",
            "master pve2 (active, Sat Nov 21 03:29:24 2026)",
            "fencing armed (CRM watchdog active)",
            "lrm pve1 (active, watchdog active, Sat Nov 21 03:29:23 2026)",
            "lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)",
        ]
        services = [line.split(None, 2) for line in self.read(f"{STATE}/ha").splitlines()]
        lines += [f"service {service} ({node}, {state})" for service, node, state in services]
        return Done(0, ("\n".join(lines) + "\n").encode())

    def without_quorum(self, patch: pytest.MonkeyPatch) -> None:
        """/etc/pve can only be read from now on."""
        others = disk.WATCH[-1]

        def watch(call: str, path: str) -> None:
            if path.startswith(f"{self.root}/etc/pve/"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            others(call, path)

        patch.setattr(disk, "WATCH", [watch])

    def noted(self, program: str, arguments: Sequence[str]) -> Done:
        self.write("/run/said", "\n".join([*self.said(), f"{program} {' '.join(arguments)}\n"]))
        return Done(0, b"")

    def said(self) -> list[str]:
        return self.read("/run/said").splitlines() if self.exists("/run/said") else []

    def members(self, text: str, names: str = NODES) -> None:
        """What `pvecm` says from now on."""
        rows = f"\nMembership information\n----------------------\n    Nodeid      Votes Name\n{names}\n"

        def pvecm(arguments: Sequence[str], _stdin: bytes) -> Done:
            if arguments == ("nodes",):
                return Done(0, rows.encode())
            if arguments != ("status",):
                return Done(255, b"", b"ERROR: unknown command")
            return Done(2 if "Quorate:          No" in text else 0, text.encode())

        self.programs["pvecm"] = pvecm

    def with_disks(self) -> Host:
        """Disks 0 and 3 of Ceph are the node's."""
        for number in (0, 3):
            self.write(f"/var/lib/ceph/osd/ceph-{number}/whoami", f"{number}\n")
        return self

    def with_ha(self) -> Host:
        resources = "vm: 200\n\tstate started\n\nct: 901\n\nvm: 201\n\tstate stopped\n\nvm: 202\n"
        self.write("/etc/pve/ha/resources.cfg", resources)
        self.write("/etc/pve/qemu-server/200.conf", "memory: 4096\n\n[before]\nhostpci0: mapping=gpu\n")
        self.write("/etc/pve/lxc/901.conf", "arch: amd64\n")
        self.write(f"{STATE}/ha", HA_STOCK)
        return self

    def turn_of(self, name: str, length: float = 2400, *, ahead: float = 0) -> str:
        """Another node has noted that it restarts, by a clock of its own."""
        text = f"node {name}\nsince 2026-11-22 06:00:00 UTC\nuntil {int(time.time() + ahead + length)}\n"
        self.write(TURN, text)
        return text

    def is_heard(self, name: str, passed: float = 0, *, ahead: float = 0) -> None:
        """Another node's agent of HA writes its status, by the clock of that node."""
        now = time.time() + ahead + passed
        os.utime(self.write(f"/etc/pve/nodes/{name}/lrm_status", "{}"), (now, now))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)
