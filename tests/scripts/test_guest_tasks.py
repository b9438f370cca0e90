"""Whether a guest that was shut down to run again is still to, by Proxmox VE's tasks: what scripts in bash ask (lib/guest_tasks.sh)."""

from __future__ import annotations

import pytest

from tests.scripts.conftest import Folder

# -- is a guest that was shut down to run again still to run? ------------------------------------------------------
NOW, PULUMI = 1_800_000_000, "homelab@pve!pulumi"


def task(kind: str, after: int, user: str = PULUMI, guest: int = 103, status: str = "OK") -> str:
    """A line of the index."""
    upid = f"UPID:pve1:00001A2B:0094C3F1:{NOW + after:08X}:{kind}:{guest}:{user}:"
    return f"{upid} {NOW + after + 1:08X} {status}\n"


ASKED = f"qm 103 {NOW} b1 {PULUMI} no"
OF_A_CONTAINER = f"vz 103 {NOW} b1 root@pam no"
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
        (ASKED.replace("b1", "''"), SHUT, 60, "the node has restarted"),
        (ASKED, SHUT + task("qmstart", 5, "root@pam"), 60, "started since"),
        (ASKED, SHUT + task("qmstart", 5, status="QEMU exited with code 1"), 60, ""),
        (ASKED, task("qmstart", 0) + SHUT, 60, ""),
        (ASKED, "", 60, "by itself, or from within"),
        (ASKED, task("qmshutdown", -1), 60, "by itself, or from within"),
        (ASKED, task("qmshutdown", 1, guest=1030), 60, "by itself, or from within"),
        (ASKED, task("qmshutdown", 900, "root@pam"), 960, "someone else has switched it off since (root@pam)"),
        (ASKED, SHUT + task("qmstop", 900, "root@pam"), 960, "someone else"),
        (ASKED, task("qmstop", 900, "homelab@pve!other"), 960, "someone else"),
        (ASKED, task("hastop", 1) + task("qmshutdown", 15, "root@pam"), 60, ""),
        (ASKED, task("qmshutdown", 15, "root@pam") + task("hastop", 20), 60, "someone else"),
        (ASKED.replace(" no", " yes"), "", 60, ""),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam"), 60, ""),
        (OF_A_CONTAINER, task("vzshutdown", 300, "root@pam"), 360, "someone else has switched it off since (root@pam)"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam") + task("vzstop", 300, "root@pam"), 360, "someone else"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "anna@pve"), 60, "someone else has switched it off since (anna@pve)"),
        (OF_A_CONTAINER, task("hastop", 2, "root@pam") + task("vzshutdown", 90, "root@pam"), 120, ""),
        (OF_A_CONTAINER, task("qmshutdown", 2, "root@pam"), 60, "by itself, or from within"),
        (ASKED, task("qmshutdown", 1, status="WARNINGS: 1"), 60, ""),
        (ASKED, task("qmshutdown", 1, status=TIMED_OUT), 1800, "by itself, or from within"),
        (ASKED, task("qmshutdown", 1, status=TIMED_OUT) + task("qmshutdown", 61), 1800, ""),
        (ASKED, task("hastop", 1, status="command failed") + task("qmshutdown", 90, "root@pam"), 120, "someone else"),
        (ASKED, task("qmshutdown", 1, "root@pam", status=TIMED_OUT) + task("qmshutdown", 2), 60, "someone else"),
        (OF_A_CONTAINER, task("vzshutdown", 2, "root@pam", status="command 'lxc-stop' failed: exit code 1"), 1800, "by itself, or from within"),
        (OF_ROOT, task("qmshutdown", -60, "root@pam", status=TIMED_OUT) + task("qmshutdown", 1, "root@pam"), 30, ""),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam"), 60, ""),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam", status=TIMED_OUT), 1800, "by itself, or from within"),
        (OF_ANNA, task("qmshutdown", 1, "anna@pam", status=TIMED_OUT) + task("qmstop", 1500, "anna@pam"), 1800, "someone else has switched it off since (anna@pam)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["index", "active"])
def test_a_guest_is_to_run_again_only_where_this_program_has_shut_it_down_and_nobody_else_has(
    folder: Folder, asked: str, tasks: str, passed: int, why: str, file: str
) -> None:
    folder.write("proc/sys/kernel/random/boot_id", "b1\n")
    folder.command("date", f"echo {NOW + passed}")
    starts = "".join(line for line in tasks.splitlines(keepends=True) if "start:" in line)
    shutdowns = "".join(line for line in tasks.splitlines(keepends=True) if "start:" not in line)
    if file == "active":  # a line of it says first whether its task has been put into the index
        shutdowns = "".join(
            f"{upid} 0 {ended}\n" for upid, _, ended in (line.partition(" ") for line in shutdowns.splitlines())
        )
    folder.write("var/log/pve/tasks/index", starts)
    path = folder.root / f"var/log/pve/tasks/{file}"
    path.write_text((path.read_text() if path.exists() else "") + shutdowns)
    done = folder.bash(f'find_why_off {asked}; printf "%s" "$WHY"', parts=("guest_tasks",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert why in done.stdout and (why == "") is (done.stdout == "")


@pytest.mark.parametrize(
    ("index", "active", "why"),
    [
        ("", f"{SHUT.split()[0]} 0\n", ""),
        (task("qmshutdown", 1, status=TIMED_OUT), f"{SHUT.split()[0]} 0\n", "by itself, or from within"),
        (SHUT, f"{SHUT.split()[0]} 0\n", ""),
    ],
    ids=["it runs still", "it failed, and is still listed as running", "it ended well, and is still listed as running"],
)
def test_a_shutdown_that_runs_still_counts_as_one_that_ended_well(
    folder: Folder, index: str, active: str, why: str
) -> None:
    folder.write("proc/sys/kernel/random/boot_id", "b1\n")
    folder.command("date", f"echo {NOW + 60}")
    folder.write("var/log/pve/tasks/index", index)
    folder.write("var/log/pve/tasks/active", active)
    done = folder.bash(f'find_why_off {ASKED}; printf "%s" "$WHY"', parts=("guest_tasks",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert why in done.stdout and (why == "") is (done.stdout == "")
