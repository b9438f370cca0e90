"""A start of HA's is another user's task, which a token doesn't see: its host is asked whether a card was not reset."""

from __future__ import annotations

import json

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder

UPID = "UPID:pve1:00001A2B:0094C3F1:{:08X}:{}:{}:root@pam:"
START, SINCE = 0x6B010CC4, 0x6B010CC0
FAILED = "failed to reset PCI device '0000:01:00.0', but trying to continue as not all devices need a reset"


def says(folder: Folder) -> tuple[str, str]:
    done = folder.run("started", scripts.start_log(103, SINCE))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
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
def test_the_last_start_says_which_card_was_not_reset(
    folder: Folder, start: int, kind: str, vmid: int, counts: bool
) -> None:
    upid = UPID.format(start, kind, vmid)
    folder.write(
        "var/log/pve/tasks/index", f"garbage\n{upid} 6B010CD0 OK\n{UPID.format(START, 'vzdump', 103)} 6B010CD1 OK\n"
    )
    folder.write(f"var/log/pve/tasks/{start:08X}"[:-8] + f"{start:X}"[-1] + f"/{upid}", f"a line\n{FAILED}\nTASK OK\n")
    assert says(folder) == ((upid, FAILED) if counts else ("", ""))


def test_a_host_without_tasks_has_no_start(folder: Folder) -> None:
    assert says(folder) == ("", "")


@pytest.mark.parametrize(
    ("lines", "well"),
    [
        ([(START, "OK")], "yes"),
        ([(START, "WARNINGS: 1")], "yes"),
        ([(START, "start failed: QEMU exited with code 1")], "no"),
        ([(START, "OK"), (START + 5, "start failed: QEMU exited with code 1")], "yes"),
        ([(SINCE - 1, "OK")], "no"),
    ],
    ids=["it did", "with warnings", "it failed", "an earlier one did", "before"],
)
def test_whether_a_start_has_ended_well_since_also_in_the_older_part_of_the_list(
    folder: Folder, lines: list[tuple[int, str]], well: str
) -> None:
    folder.write("proc/sys/kernel/random/boot_id", "b1\n")
    for name in ("index", "index.1"):
        folder.write("var/log/pve/tasks/index", "")
        text = "".join(f"{UPID.format(start, 'qmstart', 103)} 6B010CD0 {status}\n" for start, status in lines)
        folder.write(f"var/log/pve/tasks/{name}", text)
        done = folder.run("started", scripts.start_log(103, SINCE))
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout)
        assert (answer["started"], answer["boot"]) == (well, "b1") and answer["now"] > 1_700_000_000
