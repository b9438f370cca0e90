"""pve1, the first of three nodes of a cluster, in a folder. `pvecm`, `ceph` and `ha-manager` answer as recorded of a real cluster (../shared/pve_api);
what Ceph and HA have lies in files of /etc/pve, which every node has.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remote_scripts.shared import cluster
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System
from tests.agent.kit import Host

TURN = cluster.TURN
LOCK = "/etc/pve/priv/lock/homelab-reboot"
HOME = "/var/lib/homelab"
BOOT = "/proc/sys/kernel/random/boot_id"
STATE = "/etc/pve/state"
NODES = "1 1 pve1 (local)\n2 1 pve2\n3 1 pve3"
_STATUS = (Path(__file__).parent / "pvecm_status.txt").read_text()
_DUMP = (Path(__file__).parent / "ceph_osd_dump.txt").read_text()


class Clock:
    """Time goes by with each wait alone. `meanwhile`: called in each."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        self.meanwhile: Callable[[], object] = lambda: None
        monotonic, boottime = time.monotonic, time.clock_gettime
        patch.setattr(time, "sleep", self.sleep)
        patch.setattr(time, "monotonic", lambda: monotonic() + self.passed)
        patch.setattr(time, "clock_gettime", lambda which: boottime(which) + self.passed)

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.meanwhile()


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


#: What `pvecm status` says, and why the node may not restart then; empty: it may.
VOTES = pytest.mark.parametrize(
    ("text", "why"),
    [
        (status(1, 1, 1, expected=3), ""),
        (status(1, 1, expected=3), "without this node the cluster has 1 of 3 votes, and 2 are needed"),
        (status(1, 1, expected=2), "without this node the cluster has 1 of 2 votes, and 2 are needed"),
        (status(1, 1, expected=3, device=True), ""),
        (status(3, 1, 1, expected=5), "without this node the cluster has 2 of 5 votes, and 3 are needed"),
        (status(0, 1, 1, expected=2), ""),
        (status(1, 0, expected=1), "without this node the cluster has 0 of 1 votes, and 1 are needed"),
        (status(1, expected=1), ""),
        (status(1, expected=3), "the cluster has no quorum: 1 of 3 votes, and 2 are needed"),
        ("Cannot initialize CMAP service\n", "`pvecm status` doesn't say which votes the cluster has: Cannot initialize CMAP service"),
        ("", "`pvecm status` doesn't say which votes the cluster has: no answer within 20 s"),
    ],
    ids=[
        "three", "two of three", "two", "two and an arbiter", "one with most votes", "one without a vote", "the other without a vote", "a cluster of one", "alone",
        "corosync doesn't run", "no answer",
    ],
)  # fmt: skip


def node_of_three(host: Host) -> Host:
    """All nodes are well."""
    host.write("/etc/pve/corosync.conf", "totem {}\n")
    for folder in ("nodes/pve1", "priv/lock"):
        (host.root / "etc/pve" / folder).mkdir(parents=True, exist_ok=True)
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    host.write(BOOT, "7d4f0d3c-0000-4000-8000-000000000001\n")
    members(host, status(1, 1, 1, expected=3))
    run(host)
    return host


def run(host: Host) -> None:
    """Its programs; `said` has what was asked of systemd and HA since."""
    host.programs |= {
        "systemctl": lambda arguments, _stdin: noted(host, "systemctl", arguments),
        "ceph": lambda arguments, _stdin: _ceph(host, arguments),
        "ha-manager": lambda arguments, _stdin: _ha_manager(host, arguments),
    }


def noted(host: Host, program: str, arguments: Sequence[str]) -> Done:
    host.write("/run/said", "\n".join([*said(host), f"{program} {' '.join(arguments)}\n"]))
    return Done(0, b"")


def said(host: Host) -> list[str]:
    return host.read("/run/said").splitlines() if host.exists("/run/said") else []


def members(host: Host, text: str, names: str = NODES) -> None:
    """What `pvecm` says from now on."""
    rows = f"\nMembership information\n----------------------\n    Nodeid      Votes Name\n{names}\n"

    def pvecm(arguments: Sequence[str], _stdin: bytes) -> Done:
        if arguments == ("nodes",):
            return Done(0, rows.encode())
        if arguments != ("status",):
            return Done(255, b"", b"ERROR: unknown command")
        return Done(2 if "Quorate:          No" in text else 0, text.encode())

    host.programs["pvecm"] = pvecm


# Ceph.
def with_disks(host: Host) -> Host:
    """Disks 0 and 3 are the node's, 1 is another's."""
    for disk in (0, 3):
        host.write(f"/var/lib/ceph/osd/ceph-{disk}/whoami", f"{disk}\n")
    osd_dump(host)
    return host


def osd_dump(host: Host, flags: str = "", kept: tuple[int, ...] = ()) -> str:
    osd = _DUMP.splitlines()[-1]
    rows = (osd.format(id=one, states="exists,up,noout" if one in kept else "exists,up") for one in (0, 1, 3))
    text = _DUMP.removesuffix(f"{osd}\n").format(flags=flags) + "".join(f"{row}\n" for row in rows)
    host.write(f"{STATE}/dump", text)
    return text


def kept_disks(host: Host) -> list[str]:
    return [line.split()[0] for line in host.read(f"{STATE}/dump").splitlines() if ",noout " in line]


def _ceph(host: Host, arguments: Sequence[str]) -> Done:
    noted(host, "ceph", arguments)
    text = host.read(f"{STATE}/dump") if host.exists(f"{STATE}/dump") else ""
    if arguments == ("osd", "dump"):
        return Done(0, text.encode())
    if arguments[1] == "ok-to-stop" and arguments[0] in ("mon", "osd"):
        return Done(0, b"")
    if arguments[0] != "osd" or arguments[1] not in ("add-noout", "rm-noout"):
        return Done(22, b"", b"no valid command found")
    for disk in arguments[2:]:
        text = re.sub(rf"^(osd\.{disk} .*exists,up)(?:,noout)?", r"\1", text, flags=re.MULTILINE)
        if arguments[1] == "add-noout":
            text = re.sub(rf"^(osd\.{disk} .*exists,up)", r"\1,noout", text, flags=re.MULTILINE)
    host.write(f"{STATE}/dump", text)
    return Done(0, b"")


def refuse(host: Host, program: str, *words: str, said: str = "", status: int = 1) -> None:
    """A question or a command that begins with these words fails from now on."""
    real = host.programs[program]

    def other(arguments: Sequence[str], stdin: bytes) -> Done | int | str | None:
        if tuple(arguments[: len(words)]) == words:
            return Done(status, b"", said.encode())
        return real(arguments, stdin)

    host.programs[program] = other


# HA. `ha` has a line for each service: its id, its node, the node it came from (-: none), its state; `mode` is there while the mode is on. Each
# question lets HA do one thing more, as the manager does one round after another.
HA_STOCK = "vm:200 pve1 - started\nct:901 pve1 - started\nvm:201 pve1 - stopped\nvm:202 pve2 - started\n"


def with_ha(host: Host) -> Host:
    resources = "vm: 200\n\tstate started\n\nct: 901\n\nvm: 201\n\tstate stopped\n\nvm: 202\n"
    host.write("/etc/pve/ha/resources.cfg", resources)
    host.write("/etc/pve/qemu-server/200.conf", "memory: 4096\n\n[before]\nhostpci0: mapping=gpu\n")
    host.write("/etc/pve/lxc/901.conf", "arch: amd64\n")
    host.write(f"{STATE}/ha", HA_STOCK)
    return host


def _ha_manager(host: Host, arguments: Sequence[str]) -> Done:
    mode = host.root / STATE[1:] / "mode"
    if arguments[0] == "crm-command":
        noted(host, "ha-manager", arguments)
        if arguments[2:] == ("enable", "pve1"):
            mode.touch()
        else:
            mode.unlink(missing_ok=True)
        return Done(0, b"")
    now = "maintenance mode" if mode.exists() else "active"
    lines = [
        "quorum OK",
        "master pve2 (active, Sat Nov 21 03:29:24 2026)",
        "fencing armed (CRM watchdog active)",
        f"lrm pve1 ({now}, watchdog standby, Sat Nov 21 03:29:23 2026)",
        "lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)",
    ]
    services = [line.split(None, 3) for line in host.read(f"{STATE}/ha").splitlines()]
    lines += [f"service {one} ({at}, {state})" for one, at, _, state in services]
    host.write(f"{STATE}/ha", "".join(f"{' '.join(_next(host, *one))}\n" for one in services))
    return Done(0, ("\n".join(lines) + "\n").encode())


def _next(host: Host, one: str, at: str, came: str, state: str) -> tuple[str, str, str, str]:
    mode, stuck = host.exists(f"{STATE}/mode"), host.exists(f"{STATE}/stuck")
    if mode and at == "pve1" and state == "started" and not stuck:
        return one, "pve2", "pve1", state
    return (one, "pve1", "-", state) if not mode and came == "pve1" else (one, at, came, state)


# The node's turn.
def turn_of(host: Host, name: str, length: float = 2400, *, noout: str = "", by_its_clock: float | None = None) -> str:
    """Another node has noted that it restarts, by a clock of its own."""
    now = time.time() if by_its_clock is None else by_its_clock
    text = f"node {name}\nsince 2026-11-22 06:00:00 UTC\nuntil {int(now + length)}\n" + (
        f"noout {noout}\n" * bool(noout)
    )
    os.utime(host.write(TURN, text), (now, now))
    return text


def policy(*, keep_quorum: bool = True, maintenance: bool = False) -> cluster.Policy:
    return cluster.Policy(keep_quorum=keep_quorum, maintenance=maintenance, away_seconds=600)


def system_of(host: Host) -> System:
    """With the folder that whoever has the lock has made."""
    (host.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    return host.system()
