"""A guest's starts and shutdowns by Proxmox VE's tasks: what became of a VM's card at its last start (one of HA's is another user's task, which a token
doesn't see), and whether a guest that this program has shut down is to run again (shared/guest_tasks.py).
"""

from __future__ import annotations

import time
from typing import cast

import pytest

from remote_scripts.layers import vm_owed, vm_starts
from remote_scripts.shared import guest_tasks
from tests.agent.kit import Host, Refused

UPID = "UPID:pve1:00001A2B:0094C3F1:{:08X}:{}:{}:root@pam:"
START, SINCE = 0x6B010CC4, 0x6B010CC0
FAILED = "failed to reset PCI device '0000:01:00.0', but trying to continue as not all devices need a reset"
STUCK = "kvm: vfio: Unable to power on device, stuck in D3"
INDEX = "/var/log/pve/tasks/index"
STARTS = vm_starts.Wanted(vmid=103, since=SINCE)

NOW, PULUMI = 1_800_000_000, "homelab@pve!pulumi"


def task(kind: str, after: int, user: str = PULUMI, guest: int = 103, status: str = "OK") -> str:
    """A line of the index."""
    upid = f"UPID:pve1:00001A2B:0094C3F1:{NOW + after:08X}:{kind}:{guest}:{user}:"
    return f"{upid} {NOW + after + 1:08X} {status}\n"


def says(host: Host) -> tuple[str, str]:
    answer = host.ask("read", "vm_starts", STARTS)
    return answer["task"], answer["log"]


@pytest.mark.parametrize(
    ("start", "kind", "vmid", "counts"),
    [
        (START, "qmstart", 103, True),
        (SINCE - 1, "qmstart", 103, False),
        (START, "qmshutdown", 103, False),
        (START, "qmstart", 1030, False),
    ],
    ids=["it", "an earlier one", "another task", "another VM"],
)
def test_the_last_start_says_what_became_of_its_card(
    host: Host, start: int, kind: str, vmid: int, counts: bool
) -> None:
    upid = UPID.format(start, kind, vmid)
    host.write(INDEX, f"garbage\n{upid} 6B010CD0 OK\n{UPID.format(START, 'vzdump', 103)} 6B010CD1 OK\n")
    host.write(
        f"/var/log/pve/tasks/{start:08X}"[:-8] + f"{start:X}"[-1] + f"/{upid}", f"a line\n{FAILED}\n{STUCK}\nTASK OK\n"
    )
    assert says(host) == ((upid, f"{FAILED}\n{STUCK}") if counts else ("", ""))


def test_a_host_without_tasks_has_no_start(host: Host) -> None:
    assert says(host) == ("", "")


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
    host.write("/proc/sys/kernel/random/boot_id", "b1\n")
    for name in ("index", "index.1"):
        host.write(INDEX, "")
        text = "".join(f"{UPID.format(start, 'qmstart', 103)} 6B010CD0 {status}\n" for start, status in lines)
        host.write(f"/var/log/pve/tasks/{name}", text)
        answer = host.ask("read", "vm_starts", STARTS)
        assert (answer["started"], answer["boot"]) == (well, "b1") and answer["now"] > 1_700_000_000


@pytest.mark.parametrize(
    ("tasks", "who"),
    [
        ("", ""),
        (task("qmstart", 1), ""),
        (task("qmstart", 1) + task("qmstop", 9, "anna@pam"), "anna@pam"),
        (task("qmstart", 1) + task("qmshutdown", 2, "anna@pam"), "anna@pam"),
        (task("qmstart", 1) + task("qmstop", 9, "anna@pam").split()[0], "anna@pam"),
        (task("qmstart", 1) + task("qmstop", 1, "anna@pam"), ""),
        (task("qmstop", 3, "anna@pam") + task("qmstart", 5), ""),
        (task("qmstart", 1) + task("qmshutdown", 9, "anna@pam", status="got timeout"), ""),
        (task("qmstart", 1) + task("qmshutdown", 9, status="got timeout") + task("qmstop", 11, "anna@pam"), "anna@pam"),
        (task("qmstart", 1) + task("hastop", 5, "anna@pam") + task("qmshutdown", 15, "root@pam"), "anna@pam"),
        (task("qmstart", 1) + task("qmreboot", 9, "anna@pam"), "anna@pam"),
        (task("qmstart", 1) + task("qmreboot", 9, "anna@pam") + task("qmstart", 12), "anna@pam"),
        (task("qmstart", 1) + task("qmreboot", 9, "anna@pam") + task("qmstart", 12, status="it failed"), ""),
        (task("qmstart", 1) + task("qmstop", 9, "anna@pam", guest=1030), ""),
    ],
)
def test_who_has_switched_a_vm_off_or_restarts_it_since_its_start(host: Host, tasks: str, who: str) -> None:
    host.write(INDEX, tasks)
    assert host.ask("read", "vm_starts", vm_starts.Wanted(vmid=103, since=NOW))["stopped_by"] == who


@pytest.mark.parametrize(
    "path", [INDEX, f"/var/log/pve/tasks/4/{UPID.format(START, 'qmstart', 103)}"], ids=["tasks", "log"]
)
def test_what_is_there_and_cant_be_read_is_said_and_is_no_nothing(host: Host, path: str) -> None:
    host.write(INDEX, f"{UPID.format(START, 'qmstart', 103)} 6B010CD0 OK\n")
    where = host.root / path.lstrip("/")
    where.unlink(missing_ok=True)
    where.mkdir(parents=True)
    with pytest.raises(Refused, match=f"{path.rpartition('/')[2]} can't be read"):
        says(host)
    if path == INDEX:
        owed = vm_owed.Wanted(vmid=103, at=START, boot="b1", user="root@pam", off=False)
        assert "isn't known" in host.ask("read", "vm_owed", owed)["why"]


def owed(kind: guest_tasks.Kind, host: Host, at: int, boot: str, user: str, *, off: bool) -> str:
    if kind == "vz":
        return guest_tasks.why_stays_off(host.system(), kind, 103, at, boot, user, off=off)
    return str(host.ask("read", "vm_owed", vm_owed.Wanted(vmid=103, at=at, boot=boot, user=user, off=off))["why"])


# -- is a guest that was shut down to run again still to run? ------------------------------------------------------
ASKED = f"qm b1 {PULUMI} no"
OF_A_CONTAINER = "vz b1 root@pam no"
SHUT = task("qmshutdown", 1)
TIMED_OUT = "VM quit/powerdown failed - got timeout"
OF_ROOT, OF_ANNA = ASKED.replace(PULUMI, "root@pam"), ASKED.replace(PULUMI, "anna@pam")


@pytest.mark.parametrize(
    ("asked", "tasks", "passed", "why"),
    [
        (ASKED, SHUT, 60, ""),
        (ASKED, SHUT + task("qmshutdown", 61) + task("qmstop", 70), 80, ""),
        (ASKED, SHUT, 3600, "more than an hour"),
        (ASKED, SHUT, -3600, "more than an hour"),
        (ASKED.replace("b1", "b0"), SHUT, 60, "the node has restarted"),
        (ASKED.replace("b1", "-"), SHUT, 60, "the node has restarted"),
        (ASKED, SHUT + task("qmstart", 5, "root@pam"), 60, "started since"),
        (ASKED, SHUT + task("qmstart", 5, status="QEMU exited with code 1"), 60, ""),
        (ASKED, task("qmstart", 0) + SHUT, 60, ""),
        (ASKED, "", 60, "was shut down from inside"),
        (ASKED, task("qmshutdown", -1), 60, "was shut down from inside"),
        (ASKED, task("qmshutdown", 1, guest=1030), 60, "was shut down from inside"),
        (ASKED, task("qmshutdown", 900, "root@pam"), 960, "someone else has switched it off since (root@pam)"),
        (ASKED, SHUT + task("qmstop", 900, "root@pam"), 960, "someone else"),
        (ASKED, task("qmstop", 900, "homelab@pve!other"), 960, "someone else"),
        (ASKED, task("hastop", 1) + task("qmshutdown", 15, "root@pam"), 60, ""),
        (ASKED, task("qmshutdown", 15, "root@pam") + task("hastop", 20), 60, "someone else"),
        (ASKED.replace(" no", " yes"), "", 60, ""),
        (ASKED, SHUT + task("qmstop", 900, "root@pam").split()[0] + " 6B01", 960, "someone else"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam"), 60, ""),
        (OF_A_CONTAINER, task("vzshutdown", 300, "root@pam"), 360, "someone else has switched it off since (root@pam)"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam") + task("vzstop", 300, "root@pam"), 360, "someone else"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "anna@pve"), 60, "someone else has switched it off since (anna@pve)"),
        (OF_A_CONTAINER, task("hastop", 2, "root@pam") + task("vzshutdown", 90, "root@pam"), 120, ""),
        (OF_A_CONTAINER, task("qmshutdown", 2, "root@pam"), 60, "was shut down from inside"),
        (ASKED, task("qmshutdown", 1, status="WARNINGS: 1"), 60, ""),
        (ASKED, task("qmshutdown", 1, status=TIMED_OUT), 1800, "was shut down from inside"),
        (ASKED, task("qmshutdown", 1, status=TIMED_OUT) + task("qmshutdown", 61), 1800, ""),
        (ASKED, task("hastop", 1, status="command failed") + task("qmshutdown", 90, "root@pam"), 120, "someone else"),
        (ASKED, task("qmshutdown", 1, "root@pam", status=TIMED_OUT) + task("qmshutdown", 2), 60, "someone else"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam", status="command 'lxc-stop' failed: exit code 1"), 1800, "was shut down from inside"),
        (OF_ROOT, task("qmshutdown", -60, "root@pam", status=TIMED_OUT) + task("qmshutdown", 1, "root@pam"), 30, ""),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam"), 60, ""),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam", status=TIMED_OUT), 1800, "was shut down from inside"),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam", status=TIMED_OUT) + task("qmstop", 1500, "anna@pam"), 1800, "someone else has switched it off since (anna@pam)"),
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
    kind, boot, user, off = asked.split()
    found = owed(cast(guest_tasks.Kind, kind), host, NOW, boot.strip("-"), user, off=off == "yes")
    assert why in found and (why == "") is (found == "")


@pytest.mark.parametrize(
    ("index", "active", "why"),
    [
        ("", f"{SHUT.split()[0]} 0\n", ""),
        (task("qmshutdown", 1, status=TIMED_OUT), f"{SHUT.split()[0]} 0\n", "was shut down from inside"),
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
    found = owed("qm", host, NOW, "b1", PULUMI, off=False)
    assert why in found and (why == "") is (found == "")
