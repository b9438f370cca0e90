"""A guest's starts and shutdowns by Proxmox VE's tasks, and whether a guest that this program has shut down is to run again (shared/guest_tasks.py)."""

from __future__ import annotations

import time

import pytest

from remote_scripts.shared import container_notes, guest_tasks
from remote_scripts.tools.errors import Failure
from tests.agent.kit import Host

UPID = "UPID:pve1:00001A2B:0094C3F1:{:08X}:{}:{}:root@pam:"
START, SINCE = 0x6B010CC4, 0x6B010CC0
INDEX = "/var/log/pve/tasks/index"

NOW = 1_800_000_000
# The process of this program's tasks, and of anybody else's: all are root@pam's.
OURS, OTHERS = "00001A2B", "0000FFFF"


def task(
    kind: str, after: int, user: str = "root@pam", guest: int = 103, status: str = "OK", process: str = OTHERS
) -> str:
    """A line of the index."""
    upid = f"UPID:pve1:{process}:0094C3F1:{NOW + after:08X}:{kind}:{guest}:{user}:"
    return f"{upid} {NOW + after + 1:08X} {status}\n"


def ours(kind: str, after: int, status: str = "OK") -> str:
    return task(kind, after, status=status, process=OURS)


@pytest.mark.parametrize(
    ("lines", "well"),
    [
        ([(START, "OK")], True),
        ([(START, "WARNINGS: 1")], True),
        ([(START, "start failed: QEMU exited with code 1")], False),
        ([(START, "OK"), (START + 5, "start failed: QEMU exited with code 1")], True),
        ([(SINCE - 1, "OK")], False),
    ],
    ids=["it did", "with warnings", "it failed", "an earlier one did", "before"],
)
def test_whether_a_start_has_ended_well_since_also_in_the_older_part_of_the_list(
    host: Host, lines: list[tuple[int, str]], well: bool
) -> None:
    for name in ("index", "index.1"):
        host.write(INDEX, "")
        text = "".join(f"{UPID.format(start, 'qmstart', 103)} 6B010CD0 {status}\n" for start, status in lines)
        host.write(f"/var/log/pve/tasks/{name}", text)
        assert guest_tasks.was_started(host.system(), "qm", 103, SINCE) is well


def test_what_is_there_and_cant_be_read_is_said_and_is_no_nothing(host: Host) -> None:
    (host.root / INDEX.lstrip("/")).mkdir(parents=True)
    with pytest.raises(Failure, match="index can't be read"):
        guest_tasks.was_started(host.system(), "vz", 103, SINCE)
    assert "isn't known" in owed("vz", host, START, "b1", "", off=False)


def owed(kind: str, host: Host, at: int, boot: str, tasks: str, *, off: bool) -> str:
    """:param tasks: of these, our own are noted for a VM."""
    if kind == "vz":
        ran = container_notes.Ran(at, boot, off, "")
        return container_notes.why_not_owed(host.system(), 103, ran)
    noted = tuple(line.split()[0] for line in tasks.splitlines() if f":{OURS}:" in line)
    return guest_tasks.why_stays_off(host.system(), "qm", 103, at, boot, lambda task: task.upid in noted, off=off)


# -- is a guest that was shut down to run again still to run? ------------------------------------------------------
ASKED = "qm b1 no"
OF_A_CONTAINER = "vz b1 no"
SHUT = ours("qmshutdown", 1)
TIMED_OUT = "VM quit/powerdown failed - got timeout"


@pytest.mark.parametrize(
    ("asked", "tasks", "passed", "why"),
    [
        (ASKED, SHUT, 60, ""),
        (ASKED, SHUT + ours("qmshutdown", 61), 80, ""),
        (ASKED, SHUT, 3601, "more than an hour"),
        (ASKED, SHUT + ours("qmshutdown", 3000), 4000, ""),
        (ASKED, SHUT, -3600, "more than an hour"),
        (ASKED.replace("b1", "b0"), SHUT, 60, "the node has restarted"),
        (ASKED.replace("b1", "-"), SHUT, 60, "the node has restarted"),
        (ASKED, SHUT + task("qmstart", 5), 60, "started since"),
        (ASKED, SHUT + task("qmstart", 5, status="QEMU exited with code 1"), 60, ""),
        (ASKED, task("qmstart", 0) + SHUT, 60, ""),
        (ASKED, "", 60, "this program hasn't switched it off"),
        (ASKED, task("qmshutdown", -1), 60, "this program hasn't switched it off"),
        (ASKED, task("qmshutdown", 1, guest=1030), 60, "this program hasn't switched it off"),
        (ASKED, task("qmshutdown", 900), 960, "root@pam has switched it off since"),
        (ASKED, task("qmshutdown", 1), 960, "root@pam has switched it off since"),
        (ASKED, SHUT + task("qmshutdown", 1), 960, "root@pam has switched it off since"),
        (ASKED, SHUT + task("qmstop", 900), 960, "root@pam has switched it off since"),
        (ASKED, task("qmstop", 900, "anna@pve"), 960, "anna@pve has switched it off since"),
        (ASKED, ours("hastop", 1) + task("qmshutdown", 15), 60, ""),
        (ASKED, ours("hastop", 1) + task("hastop", 1) + task("qmshutdown", 15), 60, "root@pam has switched it off since"),
        (ASKED, task("qmshutdown", 15) + ours("hastop", 20), 60, "root@pam has switched it off since"),
        (ASKED.replace(" no", " yes"), "", 60, ""),
        (ASKED, SHUT + task("qmstop", 900).split()[0] + " 6B01", 960, "root@pam has switched it off since"),
        (ASKED, ours("qmshutdown", 1, "WARNINGS: 1"), 60, ""),
        (ASKED, ours("qmshutdown", 1, TIMED_OUT), 1800, "this program hasn't switched it off"),
        (ASKED, ours("qmshutdown", 1, TIMED_OUT) + ours("qmshutdown", 61), 1800, ""),
        (ASKED, ours("hastop", 1, "command failed") + task("qmshutdown", 90), 120, "root@pam has switched it off since"),
        (ASKED, task("qmshutdown", 1, status=TIMED_OUT) + ours("qmshutdown", 2), 60, "root@pam has switched it off since"),
        (OF_A_CONTAINER, task("vzshutdown", 2), 60, ""),
        (OF_A_CONTAINER, task("vzshutdown", 300), 360, "root@pam has switched it off since"),
        (OF_A_CONTAINER, task("vzshutdown", 2) + task("vzstop", 300), 360, "root@pam has switched it off since"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "anna@pve"), 60, "anna@pve has switched it off since"),
        (OF_A_CONTAINER, task("hastop", 2) + task("vzshutdown", 90), 120, ""),
        (OF_A_CONTAINER, task("qmshutdown", 2), 60, "this program hasn't switched it off"),
        (OF_A_CONTAINER, task("vzshutdown", 2, status="command 'lxc-stop' failed: exit code 1"), 1800, "this program hasn't switched it off"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["index", "active"])
def test_a_guest_is_to_run_again_only_where_this_program_has_shut_it_down_and_nobody_else_has(
    host: Host, monkeypatch: pytest.MonkeyPatch, asked: str, tasks: str, passed: int, why: str, file: str
) -> None:
    host.write("/proc/sys/kernel/random/boot_id", "b1\n")
    monkeypatch.setattr(time, "time", lambda: NOW + passed)
    starts = "".join(line for line in tasks.splitlines(keepends=True) if "start:" in line)
    shutdowns = "".join(line for line in tasks.splitlines(keepends=True) if "start:" not in line)
    if file == "active":  # a line of it says first whether its task has been put into the index
        shutdowns = "".join(
            f"{upid} 0 {ended}\n" for upid, _, ended in (line.partition(" ") for line in shutdowns.splitlines())
        )
    host.write(INDEX, starts)
    path = host.root / f"var/log/pve/tasks/{file}"
    path.write_text((path.read_text() if path.exists() else "") + shutdowns)
    kind, boot, off = asked.split()
    found = owed(kind, host, NOW, boot.strip("-"), tasks, off=off == "yes")
    assert why in found and (why == "") is (found == "")


@pytest.mark.parametrize(
    ("index", "active", "why"),
    [
        ("", f"{SHUT.split()[0]} 0\n", ""),
        (ours("qmshutdown", 1, TIMED_OUT), f"{SHUT.split()[0]} 0\n", "this program hasn't switched it off"),
        (SHUT, f"{SHUT.split()[0]} 0\n", ""),
    ],
    ids=["it runs still", "it failed, and is still listed as running", "it ended well, and is still listed as running"],
)
def test_a_shutdown_that_runs_still_counts_as_one_that_ended_well(
    host: Host, monkeypatch: pytest.MonkeyPatch, index: str, active: str, why: str
) -> None:
    host.write("/proc/sys/kernel/random/boot_id", "b1\n")
    monkeypatch.setattr(time, "time", lambda: NOW + 60)
    host.write(INDEX, index)
    host.write("/var/log/pve/tasks/active", active)
    found = owed("qm", host, NOW, "b1", SHUT, off=False)
    assert why in found and (why == "") is (found == "")
