"""Guests that homelab has switched off run again, each started once or by nobody (notes/owed.py, guests/starts.py, layers/start_guests.py). `stopall` and
the shutdowns that it begins are as pve-guests.service has them (PVE::API2::Nodes).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from remote_scripts.both.start_guests import Wanted
from remote_scripts.cluster import turn
from remote_scripts.layers import start_guests
from remote_scripts.notes import guest_notes, owed
from remote_scripts.notes.container_note import ContainerNote
from remote_scripts.notes.guest_note import Note
from remote_scripts.pve import guest_tasks, guests
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import KINDS
from remote_scripts.reading import own_files
from remote_scripts.reading.answer import OwedStart
from remote_scripts.reading.source import Source
from remote_scripts.tools.errors import Failure
from tests.agent import api_kit, guest_kit
from tests.agent.cluster_kit import Clock, elsewhere, note_ran, who_ran
from tests.agent.guest_kit import CT, TASKS, VM, guest, programs, task
from tests.agent.kit import Cut, Host, Killed, Refused, cuts, failing, left_by

A, B = "7d4f0d3c-0000-4000-8000-00000000000a", "7d4f0d3c-0000-4000-8000-00000000000b"
NOTED, DOWN, BOOTED = 1_700_000_000, 1_700_000_020, 1_700_000_100
HOME = "/var/lib/homelab"
#: What the host tells the next `up`.
SAID = "/run/homelab/started"


@pytest.fixture(autouse=True)
def booted(host: Host, clock: Clock) -> None:
    fill(host)


def fill(host: Host) -> None:
    """In boot B, after a restart from boot A in which all of four guests ran: none of them does."""
    programs(host)
    host.write("/state/pve-guests.service", "active\n")
    host.write("/state/system", "running\n")
    host.write("/proc/sys/kernel/random/boot_id", f"{B}\n")
    host.write(f"{TASKS}/index", "")
    (host.root / "etc/systemd/system/timers.target.wants").mkdir(parents=True)
    guest_kit.folders(host)
    for kind, vmid, startup in ((VM, 103, ""), (VM, 90, ""), (VM, 105, "order=1,down=9"), (CT, 901, "2")):
        guest(host, kind, vmid, f"startup: {startup}\n" if startup else "")
    noted(host, "qm 103", "qm 90", "qm 105", "pct 901")


def under_ha(host: Host, state: str) -> None:
    host.write("/etc/pve/ha/resources.cfg", f"vm: 103\n\tstate {state}\n")


def noted(host: Host, *guests: str, known: Sequence[str] = (), identity: str = "") -> None:
    words = (one.split() for one in guests)
    note_ran(host, *((program, int(vmid), A) for program, vmid in words), known=known, identity=identity)
    host.write(f"{HOME}/owed-program", "…\n")
    host.write("/etc/systemd/system/homelab-owed.timer", "…\n")


def waits(host: Host) -> dict[int, str]:
    """Why those in the list weren't started when that was last tried."""
    return {debt.guest: debt.waits for debt in owed.noted(host.working_system())}


def run(host: Host, *, later: tuple[int, ...] = (), unwanted: tuple[int, ...] = ()) -> dict[str, Any]:
    return dict(host.ask("apply", "start_guests", Wanted(later=later, unwanted=unwanted)))


def alone(host: Host) -> None:
    """What the host's own timer runs."""
    start_guests.program(host.working_system())


def started(host: Host) -> list[int]:
    return [int(one) for one in host.read("/started").split()] if host.exists("/started") else []


def switched(host: Host, vmid: int) -> list[str]:
    """By which tasks a VM was switched, the latest first."""
    return [task["type"] for task in guest_tasks.switching(NodeApi(host.working_system()), KINDS["qm"], vmid)]


def is_over(host: Host) -> bool:
    return not [*host.root.rglob("homelab-owed*"), *(host.root / HOME[1:]).glob("owed*")]


def test_what_ran_is_started_once_in_proxmox_ves_order(host: Host) -> None:
    said = run(host)
    assert started(host) == [105, 901, 90, 103]
    assert said["started"] == ["VM 105 (g105)", "container 901 (g901)", "VM 90 (g90)", "VM 103 (g103)"]
    assert (said["off"], is_over(host)) == ([], True)
    assert run(host) == {"started": [], "off": []}


def shut_down_by_host(host: Host) -> str:
    return task(host, "qmshutdown", 103, DOWN + 5)


def becomes_another(host: Host) -> None:
    noted(host, "qm 103", identity="11111111-2222-3333-4444-555555555555")
    guest(host, VM, 103, "smbios1: uuid=99999999-2222-3333-4444-555555555555\n")
    shut_down_by_host(host)


def gone(host: Host) -> None:
    for path in ("etc/pve/qemu-server/103.conf", "state/qm/103"):
        (host.root / path).unlink()


@pytest.mark.parametrize(
    ("what", "starts"),
    [
        (lambda host: None, True),
        (lambda host: guest(host, VM, 103, power="running"), False),
        (lambda host: guest(host, VM, 103, power="paused"), False),
        (gone, False),
        (lambda host: under_ha(host, "stopped"), False),
        (lambda host: under_ha(host, "started"), False),
        (lambda host: under_ha(host, "ignored"), True),
        # By somebody: after the boot; before it; while the host goes down.
        (lambda host: task(host, "qmstart", 103, BOOTED + 60, "bob@pve"), False),
        (lambda host: task(host, "qmshutdown", 103, DOWN + 5, "bob@pve"), False),
        (lambda host: task(host, "qmshutdown", 103, DOWN - 5), False),
        # In a boot between, by root.
        (lambda host: task(host, "qmstop", 103, BOOTED - 30), False),
        (lambda host: (task(host, "qmstart", 103, BOOTED + 60), task(host, "qmshutdown", 103, BOOTED + 70)), False),
        # What leaves it off, or puts another in its place, beside the host's own shutdown.
        *(
            (lambda host, kind=kind: (shut_down_by_host(host), task(host, kind, 103, BOOTED + 60)), False)
            for kind in ("qmrollback", "qmrestore", "qmsuspend", "qmigrate", "hastop")
        ),
        # Of another guest; before it was noted, whatever the clock said; a console; a job's, of a guest that is off, too.
        (lambda host: noted(host, "qm 103", known=[task(host, "qmstop", 103, BOOTED + 99)]), True),
        *(
            (lambda host, kind=kind, vmid=vmid: task(host, kind, vmid, BOOTED + 60), True)
            for kind, vmid in (("qmstart", 1030), ("vncproxy", 103), ("vzdump", 103), ("qmsnapshot", 103))
        ),
        # Its id was given to another guest.
        (becomes_another, False),
        # Its start at the boot failed.
        (lambda host: task(host, "qmstart", 103, BOOTED + 5, status="start failed: no such bridge"), True),
        (lambda host: task(host, "qmstart", 103, BOOTED + 5, status="WARNINGS: 1"), False),
    ],
)
def test_a_guest_that_somebody_has_seen_to_is_left_alone(
    host: Host, what: Callable[[Host], object], starts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN)
    what(host)
    if starts:
        shut_down_by_host(host)
    said = run(host)
    assert started(host) == ([103] if starts else [])
    assert is_over(host) and said["off"] == []
    assert ("VM 103 (g103): no start is owed to it any more: " in capsys.readouterr().err) is not starts


@pytest.mark.parametrize("later", ["", "vzcreate", "vzrestore", "vzdestroy"])
def test_a_container_without_a_network_card_is_known_after_its_disk_was_moved(host: Host, later: str) -> None:
    """A later one of its id is told by the log (`later`)."""
    disk, moved = (f"{storage}-901-disk-0" for storage in ("local-lvm:vm", "local-zfs:subvol"))
    noted(host, "pct 901", identity=disk)
    task(host, "stopall", "", DOWN)
    task(host, "vzshutdown", 901, DOWN + 5)
    if later:
        task(host, later, 901, BOOTED + 30)
    guest(host, CT, 901, f"rootfs: {moved},size=8G\n")
    run(host)
    assert started(host) == ([] if later else [901]) and is_over(host)


@pytest.mark.parametrize("kind", ["qmstart", "qmstop"])
def test_a_start_or_a_stop_ends_what_is_owed_also_where_nothing_tells_of_homelabs_shutdown(kind: str) -> None:
    """A kill came between its shutdown and the note of that, and its owner has started and ended the guest since, or has stopped it, which was off."""
    debt = owed.Debt(program="qm", guest=103, name="", identity="", why="change", boot=A, known=("a",))
    of_owner = {"upid": "b", "type": kind, "user": "root@pam"}
    assert [owed.verdict(debt, A, since, ()) for since in ([], [of_owner])] == ["unknown", "over"]
    stop = {"upid": "c", "type": "qmstop", "user": "root@pam"}
    assert owed.verdict(replace(debt, ours=("c",)), A, [stop], ()) == "due", "homelab ends what QEMU has halted"


def test_who_was_switched_off_after_a_run_that_was_killed_before_its_restart_stays_off(host: Host) -> None:
    """Days later its host is restarted by hand."""
    noted(host, "qm 103", "qm 90")
    task(host, "qmshutdown", 103, NOTED + 86400)
    task(host, "stopall", "", NOTED + 2 * 86400)
    task(host, "qmshutdown", 90, NOTED + 2 * 86400 + 1)
    run(host)
    assert started(host) == [90] and is_over(host)


@pytest.mark.parametrize("seconds", [-1, -3600, 3600])
def test_a_clock_that_is_set_while_the_host_goes_down_leaves_none_off(host: Host, seconds: int) -> None:
    """As chrony does, or the next boot has its RTC in local time."""
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN, ticks=500_000)
    task(host, "qmshutdown", 103, DOWN + seconds, ticks=500_001)
    task(host, "startall", "", DOWN - 7200, ticks=2_000)
    run(host)
    assert started(host) == [103] and is_over(host)


def test_of_two_tasks_of_a_boot_the_kernels_clock_tells_the_latest(host: Host) -> None:
    """Its owner stops a guest, and starts it once the clock was set back: he isn't taken for one who wants it off."""
    task(host, "qmstop", 103, BOOTED, "anna@pam", ticks=3_000)
    task(host, "qmstart", 103, BOOTED - 3600, "anna@pam", ticks=3_500)
    assert switched(host, 103) == ["qmstart", "qmstop"]


@pytest.mark.parametrize("is_by_host", [False, True])
def test_whom_their_owner_shuts_down_together_stay_off(host: Host, is_by_host: bool) -> None:
    """By Bulk Shutdown, whose task is of the type and the user of the host's own. The host goes down after that, and by
    then has shut down who ran still (`is_by_host`); then it starts and goes down once more, before anybody has looked.
    """
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN, ticks=30_000)
    if not is_by_host:
        task(host, "qmshutdown", 103, DOWN + 1, ticks=30_001)
    task(host, "stopall", "", DOWN + 400, ticks=70_000)
    if is_by_host:
        task(host, "qmshutdown", 103, DOWN + 401, ticks=70_001)
    task(host, "startall", "", BOOTED + 400, ticks=2_000)
    task(host, "stopall", "", BOOTED + 1400, ticks=102_000)
    task(host, "startall", "", BOOTED + 1500, ticks=2_000)
    run(host)
    assert started(host) == ([103] if is_by_host else []) and is_over(host)


def test_a_boot_that_ended_without_a_shutdown_has_left_them_off(host: Host) -> None:
    """By a power cut. If the host has shut all its guests down, one that it hadn't to was off by then."""
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN)
    (said,) = run(host)["off"]
    assert said == f"VM 103 (g103) was switched off by homelab, and isn't started yet: {owed.UNKNOWN}"
    assert not started(host) and waits(host) == {103: owed.UNKNOWN}
    host.write(f"{TASKS}/index", "")
    task(host, "stopall", "", DOWN, status="unexpected status")
    run(host)
    assert started(host) == [103] and is_over(host)


def test_a_start_that_is_under_way_is_waited_for(host: Host, clock: Clock) -> None:
    """Of a run that was killed, or of somebody."""
    noted(host, "qm 103")
    task(host, "qmstart", 103, BOOTED + 60, file="active")

    def meanwhile() -> None:
        host.write(f"{TASKS}/active", "")
        task(host, "qmstart", 103, BOOTED + 60)
        guest(host, VM, 103, power="running")

    clock.meanwhile = lambda: elsewhere(meanwhile)
    assert run(host) == {"started": [], "off": []} and not started(host) and is_over(host)


def test_a_run_waits_until_proxmox_ve_has_started_its_own_guests(host: Host, clock: Clock) -> None:
    host.write("/state/pve-guests.service", "activating\n")
    clock.meanwhile = lambda: host.write("/state/pve-guests.service", "active\n")
    assert len(run(host)["started"]) == 4
    host.write("/state/pve-guests.service", "inactive\n")
    host.write("/state/system", "starting\n")
    clock.meanwhile = lambda: None
    noted(host, "qm 103")
    guest(host, VM, 103)
    assert run(host)["off"] == [
        "guests that ran before the restart aren't started yet: Proxmox VE hasn't started its own; this host goes on trying (homelab-owed.timer)"
    ]
    assert not is_over(host)


@pytest.mark.parametrize("state", ["failed", "inactive"])
def test_where_proxmox_ve_starts_no_guest_any_more_they_are_started_all_the_same(host: Host, state: str) -> None:
    """pve-guests.service has failed, or is disabled or masked (`inactive`, with nothing left to start)."""
    host.write("/state/pve-guests.service", f"{state}\n")
    host.write("/state/system", "degraded\n")
    alone(host)
    assert len(started(host)) == 4 and is_over(host)


def test_a_lock_that_was_left_behind_is_said_once_with_what_cures_it_and_keeps_nobody_off_after_that(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a backup that a power cut has ended."""
    noted(host, "pct 901")
    guest(host, CT, 901, "lock: backup\n")
    capsys.readouterr()
    alone(host)
    said = capsys.readouterr().err
    assert "isn't started yet: it is locked, backup (once nothing works on it: `pct unlock 901`)" in said
    assert host.read(SAID) == said
    alone(host)
    assert not capsys.readouterr().err and host.read(SAID) == said and not started(host)
    host.programs["pct"](["unlock", "901"], b"")
    alone(host)
    assert started(host) == [901] and is_over(host)


def test_the_doctor_says_what_the_starter_would_find_now(host: Host) -> None:
    """Before it has looked, too."""
    noted(host, "pct 901")
    guest(host, CT, 901, "lock: backup\n")
    assert [start.said for start in seen(host)] == [
        "container 901 (g901) was switched off by homelab, and isn't started yet: it is locked, backup (once nothing works on it: `pct unlock 901`)"
    ]
    guest(host, CT, 901)
    assert seen(host)[0].said.endswith("isn't started yet: this host starts it once no run is at work")


def test_a_start_that_fails_keeps_nobody_off_and_is_tried_again_ever_more_seldom(host: Host, clock: Clock) -> None:
    host.write("/fails/105", "")
    real = time.time
    clock.patch.setattr(time, "time", lambda: real() + clock.passed)
    (said,) = run(host)["off"]
    assert started(host) == [105, 901, 90, 103]
    assert said == "VM 105 (g105) was switched off by homelab, and isn't started yet: start failed: no such bridge"
    tries = [clock.passed]
    while len(tries) < 8:
        before = len(started(host))
        alone(host)
        tries += [clock.passed] * (len(started(host)) - before)
    pauses = [round((after - before) / 60) for before, after in itertools.pairwise(tries)]
    assert pauses[0] < pauses[2] < pauses[-1] == pauses[-2] < 20
    (host.root / "fails/105").unlink()
    for _ in range(20):
        alone(host)
    assert host.read("/state/qm/105") == "running" and is_over(host)


def test_a_start_that_has_failed_some_hundred_times_is_left_to_its_owner_who_is_told(host: Host) -> None:
    noted(host, "qm 103")
    long_ago = int(time.time()) - 500_000
    for number in range(149):
        task(host, "qmstart", 103, long_ago + number, status="start failed: no such bridge")
    host.write("/fails/103", "")
    run(host)
    assert started(host) == [103] and waits(host) == {103: "start failed: no such bridge"}
    said = (
        "VM 103 (g103): no start is owed to it any more: its start has failed 150 times: start failed: no such bridge"
    )
    alone(host)
    assert started(host) == [103] and is_over(host) and host.read(SAID).splitlines()[-1] == said
    assert [start.said for start in seen(host)] == [said]


def seen(host: Host) -> list[OwedStart]:
    """What the doctor says of them."""
    return own_files.owed_starts(Source(host.working_system()))


# A shutdown of homelab's that a guest hasn't heeded.


def deaf(
    host: Host,
    seconds_ago: int,
    otherwise: Literal["fail", "stop"] = "fail",
    *,
    kind: str = VM,
    why: str = "change",
    known: Sequence[str] = (),
) -> None:
    """VM 103 or container 901 runs: homelab has asked it to shut down for three minutes up to then."""
    program, vmid, stop, status, note = {
        VM: ("qm", 103, "qmshutdown", "VM quit/powerdown failed - got timeout", Note),
        CT: ("pct", 901, "vzshutdown", "container did not stop", ContainerNote),
    }[kind]
    guest(host, kind, vmid, power="running")
    ends = int(time.time()) - seconds_ago
    presses = [task(host, stop, vmid, ends - left, status=status) for left in (180, 120, 60)]
    about = KINDS[program]
    guest_notes.write(
        host.working_system(), about, vmid, note(values={"hostpci0": ("mapping=rtx",)}, otherwise=otherwise)
    )
    named = {"program": program, "guest": vmid, "name": f"{about.label} {vmid} (g{vmid})", "identity": ""}
    debt = {"known": [*known], "why": why, "boot": B, "ours": presses}
    host.write(owed.OWED, json.dumps({"debts": [named | debt]}))


def test_a_guest_that_heeds_homelabs_shutdown_late_is_started_again(host: Host) -> None:
    deaf(host, seconds_ago=-30)
    for _ in range(2):
        alone(host)
    said = host.read(SAID)
    assert said.startswith("VM 103 (g103) was asked to shut down at ") and said.count("\n") == 1
    assert said.endswith(", and still runs; if it goes off soon, this host starts it again\n")
    assert [start.said for start in seen(host)] == said.splitlines() and not is_over(host)
    guest(host, VM, 103)
    alone(host)
    assert started(host) == [103] and is_over(host)


def test_one_that_goes_off_later_than_that_is_its_owners(host: Host) -> None:
    deaf(host, seconds_ago=300)
    asked = time.strftime("%H:%M", time.localtime(time.time() - 480))
    alone(host)
    said = f"VM 103 (g103): no start is owed to it any more: asked to shut down at {asked}; if it goes off by itself now, start it"
    assert [start.said for start in seen(host)] == host.read(SAID).splitlines() == [said] and is_over(host)
    guest(host, VM, 103)
    alone(host)
    assert not started(host)


@pytest.mark.parametrize("why", ["change", "handover"])
def test_one_that_is_off_at_the_first_look_is_started_again_however_late_that_is(host: Host, why: str) -> None:
    """Such as after a long `up`: what has switched it off is homelab's shutdown, as far as is known."""
    deaf(host, seconds_ago=3 * 3600, why=why)
    guest(host, VM, 103)
    alone(host)
    assert started(host) == [103] and is_over(host)


def test_a_late_shutdown_is_known_after_a_boot_that_was_longer_and_of_a_container(host: Host) -> None:
    """By the kernel's clock alone, a task of an earlier boot would be the latest one."""
    old = task(host, "vzstart", 901, int(time.time()) - 90 * 86400, ticks=0xF0000000)
    deaf(host, seconds_ago=-30, kind=CT, known=[old])
    alone(host)
    assert "container 901 (g901) was asked to shut down at" in host.read(SAID) and not is_over(host)


def test_a_container_that_goes_off_as_its_start_ends_stays_off_and_its_owner_is_told(host: Host) -> None:
    noted(host, "pct 901")

    def answer(method: str, path: str, parameters: dict[str, str]) -> Any:
        said = guest_kit.answer(host, method, path, parameters)
        if method == "POST":
            guest(host, CT, 901)
        return said

    api_kit.serve(host, answer)
    alone(host)
    assert started(host) == [901] and is_over(host)
    assert "container 901 (g901): no start is owed to it any more: it was started, and went off" in host.read(SAID)


def test_no_vm_takes_a_card_between_the_look_at_a_container_and_its_start(host: Host) -> None:
    """It takes the host's lock for that. Where somebody has it, the container waits."""
    noted(host, "pct 901")
    is_free = []

    def answer(method: str, path: str, parameters: dict[str, str]) -> Any:
        if method == "POST":
            with host.working_system().work.holding("lock", 0) as is_alone:
                is_free.append(is_alone)
        return guest_kit.answer(host, method, path, parameters)

    api_kit.serve(host, answer)
    with host.working_system().work.holding("lock", 0):
        alone(host)
    assert is_free == [] and "another run still holds /run/homelab/lock" in waits(host)[901]
    alone(host)
    assert is_free == [False] and started(host) == [901] and is_over(host)


def test_a_shutdown_that_ends_in_a_stop_or_of_one_that_was_started_since_is_no_late_one(host: Host) -> None:
    deaf(host, seconds_ago=-30, otherwise="stop")
    alone(host)
    assert is_over(host) and not host.exists(SAID)
    deaf(host, seconds_ago=-30)
    task(host, "qmstart", 103, int(time.time()))
    alone(host)
    assert is_over(host) and not host.exists(SAID)


# A card that another VM has.


def test_a_vm_whose_card_another_one_has_waits_for_it_and_both_are_named(host: Host) -> None:
    """An `onboot` VM was faster. Of a mapping of several cards another one will do."""
    first, second = (f"\tmap id=10de:2b85,node=pve,path=0000:0{bus}:00\n" for bus in (1, 2))
    host.write("/etc/pve/mapping/pci.cfg", f"card\n{first}\nboth\n{first}{second}")
    host.write("/run/qemu-server/pci-id-reservations", "0000:01:00.0 104 pid:4711\n0000:01:00.1 104 pid:4711\n")
    guest(host, VM, 104, power="running")
    guest(host, VM, 103, "hostpci0: mapping=card,pcie=1\n")
    guest(host, VM, 90, "hostpci0: mapping=both\n")
    guest(host, VM, 105, "hostpci0: 0000:02:00\n")
    noted(host, "qm 103", "qm 90", "qm 105")
    run(host)
    for _ in range(3):
        alone(host)
    assert started(host) == [90, 105]
    (start,) = seen(host)
    assert start.said.startswith("VM 103 (g103) was") and start.said.endswith("yet: VM 104 has its card")
    guest(host, VM, 104)  # Proxmox VE leaves the line behind where it was killed, and takes it for nobody's
    alone(host)
    assert started(host) == [90, 105, 103] and is_over(host)


def test_a_start_that_doesnt_end_is_said_and_goes_on(host: Host) -> None:
    noted(host, "qm 103")
    host.write("/silent", "")
    said = "VM 103 (g103) was switched off by homelab, and isn't started yet: it still runs after 300 s"
    assert run(host) == {"started": [], "off": [said]} and started(host) == [103]


@pytest.mark.parametrize("unknown", ["unsaid/api", f"{TASKS}/index.1/"[1:], "etc/pve/qemu-server/103.conf/"])
def test_what_cannot_be_told_starts_nothing_and_is_asked_again(host: Host, unknown: str) -> None:
    noted(host, "qm 103")
    place = host.root / unknown
    kept = place.read_text() if place.is_file() else None
    if unknown.endswith("/"):  # a read that fails
        place.unlink(missing_ok=True)
        place.mkdir(parents=True)
    else:
        host.write(unknown, "")
    assert run(host)["off"][0].startswith("VM 103 (g103) was switched off by homelab, and isn't started yet: ")
    assert not started(host) and not is_over(host)
    if unknown.endswith("/"):
        place.rmdir()
    else:
        place.unlink()
    if kept is not None:
        place.write_text(kept)
    alone(host)
    assert started(host) == [103] and is_over(host)


def test_a_backup_that_runs_is_waited_for_and_its_lock_is_no_last_word(host: Host) -> None:
    """A job that was missed while the host was off begins at its boot."""
    now = int(time.time())
    noted(host, "qm 103")
    guest(host, VM, 103, "lock: backup\n")
    task(host, "vzdump", 103, now - 1800, file="active")
    (said,) = run(host)["off"]
    assert said.startswith("VM 103 (g103) was switched off by homelab, and isn't started yet: it is locked, backup")
    assert not started(host) and not is_over(host)
    guest(host, VM, 103)
    alone(host)
    assert started(host) == [103] and is_over(host)


def test_a_lock_that_comes_while_others_are_started_is_waited_for(host: Host) -> None:
    """A start that fails isn't tried again, and others may have been started for an hour by then."""

    def answer(method: str, path: str, parameters: dict[str, str]) -> Any:
        if method == "POST" and "105" in path:
            guest(host, VM, 103, "lock: backup\n")
        return guest_kit.answer(host, method, path, parameters)

    noted(host, "qm 105", "qm 103")
    api_kit.serve(host, answer)
    assert "it is locked, backup" in run(host)["off"][0] and started(host) == [105]
    guest(host, VM, 103)
    alone(host)
    assert started(host) == [105, 103] and is_over(host)


def test_without_a_quorum_nobody_is_started_in_vain(host: Host) -> None:
    """A start that fails isn't tried again, and a node has no quorum for a while after its boot."""
    noted(host, "qm 103")
    host.write("/no-quorum", "")
    assert "cluster not ready - no quorum?" in run(host)["off"][0] and not started(host) and not is_over(host)
    (host.root / "no-quorum").unlink()
    alone(host)
    assert started(host) == [103] and is_over(host)


@pytest.mark.parametrize("how", ["hangs", "is broken"])
def test_where_etc_pve_gives_no_answer_no_guest_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    (host.root / "etc/pve/qemu-server/103.conf").unlink()
    system = host.working_system()
    host.write("/unsaid/103", "")
    assert guests.power_of(system, "qm", "103", 0) == "gone"

    real, over = os.stat, threading.Event()

    def answers(path: Any, **options: Any) -> Any:
        if not str(path).endswith("/103.conf"):
            return real(path, **options)
        if how == "hangs":
            over.wait()
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", answers)
        assert guests.power_of(system, "qm", "103", 0) == "unknown"
    over.set()


@pytest.mark.parametrize("silent", range(11))
def test_an_api_that_gives_no_answer_once_keeps_nobody_off_for_good(host: Host, silent: int) -> None:
    """At any of its questions: such as while its service restarts."""
    guest(host, VM, 103, "hookscript: local:snippets/homelab-handover.sh\nstartup: up=5\n")
    noted(host, "qm 103", "qm 90")
    asked = itertools.count()

    def answer(method: str, path: str, parameters: dict[str, str]) -> Any:
        if next(asked) == silent:
            raise api_kit.RefusedError("Connection refused")
        return guest_kit.answer(host, method, path, parameters)

    api_kit.serve(host, answer)
    run(host)
    alone(host)
    assert sorted(started(host)) == [90, 103] and is_over(host) and next(asked) > silent


def test_who_was_switched_off_thousands_of_tasks_ago_stays_off(host: Host) -> None:
    task(host, "qmstop", 103, BOOTED + 5, "anna@pam")
    for _ in range(3000):
        task(host, "vncproxy", 90, BOOTED + 6)
    run(host)
    assert started(host) == [105, 901, 90] and is_over(host)


def test_without_etc_pve_nothing_is_believed(host: Host) -> None:
    noted(host, "qm 103")
    (host.root / "etc/pve/local").unlink()
    assert "/etc/pve" in run(host)["off"][0] and not started(host) and not is_over(host)


@pytest.mark.parametrize("killed", ["before-105", "after-105", "before-901", "after-901", "after-103"])
def test_a_run_that_is_killed_starts_nobody_twice_and_forgets_nobody(host: Host, killed: str) -> None:
    host.write(f"/kill/{killed}", "")
    with pytest.raises(Killed):
        run(host)
    assert not is_over(host)
    alone(host)
    assert started(host) == [105, 901, 90, 103] and is_over(host)


@pytest.mark.parametrize("how", ["stopping", "ordered", "rolling back"])
def test_nobody_is_started_once_the_system_goes_down_again(host: Host, clock: Clock, how: str) -> None:
    """Who is next waits for the one before, by `up=`; meanwhile somebody restarts the host."""
    guest(host, VM, 105, "startup: order=1,up=300\n")

    def meanwhile() -> None:
        if not started(host):
            return
        if how == "stopping":
            host.write("/state/system", "stopping\n")
        elif how == "ordered":
            turn.note_restart(host.working_system())
        else:
            host.write("/run/homelab/restarting", f"boot {B}")

    clock.meanwhile = lambda: elsewhere(meanwhile)
    assert run(host)["started"] == ["VM 105 (g105)"]
    assert started(host) == [105] and not is_over(host)


def test_a_start_that_fails_since_the_system_goes_down_costs_the_others_none(host: Host) -> None:
    host.write("/ends/105", "")
    host.write("/fails/105", "")
    assert not run(host)["started"]
    assert started(host) == [105] and not is_over(host)
    host.write("/state/system", "running\n")
    alone(host)
    assert started(host) == [105, 901, 90, 103] and list(waits(host)) == [105]


def test_a_runs_own_guests_are_left_to_it_and_started_once_it_has_ended(host: Host) -> None:
    guest(host, VM, 90, "hookscript: local:snippets/homelab-handover.sh\n")
    with host.up_at_work("anna"):
        assert run(host, later=(105,), unwanted=(901,))["started"] == ["VM 103 (g103)"]
        alone(host)
        assert started(host) == [103], "a run is at work"
    alone(host)
    assert started(host) == [103, 105, 90] and is_over(host)


def test_the_run_that_confirms_the_boot_has_time_to_take_the_host(host: Host, clock: Clock) -> None:
    with ExitStack() as runs:

        def meanwhile() -> None:
            clock.meanwhile = lambda: None
            runs.enter_context(host.up_at_work("anna"))

        clock.meanwhile = meanwhile
        alone(host)
        assert not started(host) and not is_over(host)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (f"{HOME}/trial", f"boot {A}\n"),
        (f"{HOME}/taken-back", f"boot {B}\n"),
        ("/run/homelab/restarting", f"boot {B}"),
        ("/state/pve-guests.service", "activating\n"),
        ("/state/system", "stopping\n"),
        ("/run/homelab/ordered", f"{B} NOW\n"),
        ("/proc/sys/kernel/random/boot_id", f"{A}\n"),
    ],
)
def test_nothing_is_started_before_the_boot_is_decided(host: Host, file: str, text: str) -> None:
    host.working_system()
    before = host.read(file) if host.exists(file) else None
    host.write("/proc/cmdline", "root=/dev/sda1 quiet homelab.trial\n")
    host.write(file, text.replace("NOW", str(int(time.time()))))
    alone(host)
    assert not started(host) and not is_over(host)
    (host.root / file[1:]).unlink()
    if before is not None:
        host.write(file, before)
    alone(host)
    assert len(started(host)) == 4 and is_over(host)


def test_a_trial_that_this_boot_is_not_keeps_nobody_off(host: Host) -> None:
    host.write("/proc/cmdline", "root=/dev/sda1 quiet\n")
    host.write(f"{HOME}/trial", f"boot {A}\n")
    alone(host)
    assert len(started(host)) == 4


def test_the_next_up_hears_once_what_the_host_has_started_alone_while_that_boot_lasts(host: Host) -> None:
    host.write(f"{HOME}/judged", "boot x was judged")
    host.write("/fails/901", "")
    alone(host)
    said = "; the host itself has started what homelab had switched off: VM 105 (g105), VM 90 (g90), VM 103 (g103); container 901"
    judged = host.ask("apply", "confirm_boot", {})["judged"]
    assert judged.startswith(f"boot x was judged{said}")
    text = host.read(SAID)
    host.write(SAID, f"{text}news that came meanwhile\n")
    host.ask("apply", "confirm_boot", {"told": judged})
    judged = host.ask("apply", "confirm_boot", {})["judged"]
    assert judged.endswith("; news that came meanwhile")
    host.ask("apply", "confirm_boot", {"told": judged})
    assert host.ask("apply", "confirm_boot", {})["judged"] == ""
    host.write(SAID, text)
    (host.root / "run").rename(host.root / "gone")  # another restart: it is no news any more
    assert host.ask("apply", "confirm_boot", {})["judged"] == ""


def test_a_host_that_was_given_back_meanwhile_keeps_nothing_of_it(host: Host) -> None:
    alone(host)
    assert len(started(host)) == 4 and not host.exists(HOME)
    host.write(f"{HOME}/owed-program", "")  # what a cut has left of the end
    (host.root / "etc/systemd/system/timers.target.wants").mkdir(parents=True, exist_ok=True)
    host.write(f"{HOME}/dirs", "/etc/systemd/system/timers.target.wants\n")
    alone(host)
    assert not host.exists(HOME) and not host.exists("/etc/systemd/system/timers.target.wants")


# Before the restart.


def forget(host: Host) -> None:
    system = host.working_system()
    owed.drop(system, *owed.noted(system))


def note(host: Host) -> None:
    system = host.working_system()
    system.changing(lambda: owed.note_running(system))


def test_what_runs_is_noted_beside_what_is_owed_from_before(host: Host) -> None:
    guest(host, VM, 90, power="running")
    guest(host, CT, 902, power="running")
    note(host)
    assert who_ran(host) == [("qm", 103, A), ("qm", 105, A), ("pct", 901, A), ("qm", 90, B), ("pct", 902, B)]
    assert (host.root / "etc/systemd/system/timers.target.wants/homelab-owed.timer").is_symlink()
    guest(host, VM, 90)  # by its user: of this boot, what runs at the last note counts
    note(host)
    assert ("qm", 90, B) not in who_ran(host)
    owed.drop_restart(host.working_system())
    assert who_ran(host) == [("qm", 103, A), ("qm", 105, A), ("pct", 901, A)]


@pytest.mark.parametrize(
    ("kind", "file", "is_noted"),
    [("qmshutdown", "active", False), ("qmshutdown", "index", True), ("qmreboot", "active", True)],
)
def test_who_is_being_switched_off_is_not_noted(host: Host, kind: str, file: str, is_noted: bool) -> None:
    """A guest that hasn't heeded a shutdown runs."""
    (host.root / owed.OWED[1:]).unlink()
    guest(host, VM, 90, power="running")
    task(host, kind, 90, BOOTED + 60, "bob@pve", file=file, status="VM quit/powerdown failed")
    note(host)
    assert (host.exists(owed.OWED) and who_ran(host) == [("qm", 90, B)]) == is_noted


def test_a_vm_that_is_off_and_backed_up_does_not_run(host: Host) -> None:
    """Its QEMU alone does, before the guest's first instruction. One that runs has the backup's lock, too."""
    (host.root / owed.OWED[1:]).unlink()
    guest(host, VM, 90, "lock: backup\n", power="prelaunch")
    guest(host, VM, 103, "lock: backup\n", power="running")
    note(host)
    assert who_ran(host) == [("qm", 103, B)]


def test_a_host_without_a_running_guest_has_nothing_to_note(host: Host) -> None:
    (host.root / owed.OWED[1:]).unlink()
    note(host)
    assert is_over(host)


def test_what_runs_and_is_not_told_is_not_noted_as_nothing(host: Host) -> None:
    host.write("/unsaid/api", "")
    before = host.lasting()
    with pytest.raises(Failure) as failure:
        note(host)
    assert failure.value.found == "RPCEnvironment init request failed" and host.lasting() == before


def test_a_note_that_cant_be_read_is_said_and_stays(host: Host) -> None:
    (host.root / owed.OWED[1:]).unlink()
    host.write(f"{HOME}/owed/x", "")
    for act in (
        alone,
        lambda host: owed.note_running(host.working_system()),
        lambda host: owed.drop_restart(host.working_system()),
        lambda host: owed.leave_to_host(host.working_system()),
    ):
        with pytest.raises(Failure, match="no file: .*owed"):
            act(host)
    assert host.exists(f"{HOME}/owed-program")


def test_a_list_that_cant_be_read_says_which_file_to_remove_and_stands_in_no_other_way(host: Host) -> None:
    """Such as one of a newer version."""
    host.write(owed.OWED, "")
    source = Source(host.working_system())
    (start,) = own_files.owed_starts(source)
    assert start.said.startswith(
        "which guests homelab has switched off isn't known (it isn't as this version of homelab"
    )
    assert f": {owed.OWED}): remove {owed.OWED}" in start.said and not source.unreadable
    with pytest.raises(Failure) as failure:
        owed.noted(host.working_system())
    assert failure.value.next.startswith(f"remove {owed.OWED}, and start the guests")


def test_a_disk_that_is_full_ends_the_look_at_one_guest_alone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing false is said of the others."""
    noted(host, "qm 103", "qm 90", "qm 105")
    task(host, "qmstart", 90, BOOTED + 60, "bob@pve")
    with failing(errno.ENOSPC, "create", at="/.owed.homelab-tmp"), pytest.raises(Refused, match="No space left"):
        run(host, unwanted=(105,))
    said = capsys.readouterr().err
    assert started(host) == [103] and "VM 90 (g90): no start is owed to it any more: somebody else" in said
    run(host, unwanted=(105,))
    assert started(host) == [103] and is_over(host)


def test_what_was_said_of_a_guest_is_no_news_any_more_once_it_runs(host: Host) -> None:
    noted(host, "pct 901", "qm 103")
    for kind, vmid in ((CT, 901), (VM, 103)):
        guest(host, kind, vmid, "lock: backup\n")
    alone(host)
    assert host.read(SAID).count("it is locked") == 2
    guest(host, CT, 901, power="running")  # its owner has started it
    alone(host)
    (left,) = host.read(SAID).splitlines()
    assert left.startswith("VM 103")
    guest(host, VM, 103)
    alone(host)
    assert host.read(SAID) == "the host itself has started what homelab had switched off: VM 103 (g103)\n"


def test_a_host_that_is_given_back_names_and_forgets_whom_it_cant_start(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    note(host)  # and its restart doesn't come
    lost = owed.noted(host.working_system())
    for debt in lost:
        owed.update(host.working_system(), replace(debt, why="change"))
    owed.leave_to_host(host.working_system())
    said = capsys.readouterr().err
    assert is_over(host) and all(f"{debt.name} was switched off by homelab, and isn't" in said for debt in lost)


def test_a_host_that_is_given_back_forgets_whom_nothing_is_owed(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    owed.leave_to_host(host.working_system())
    assert "still off" in capsys.readouterr().err and not is_over(host)
    for kind, vmid in ((VM, 103), (VM, 90), (VM, 105), (CT, 901)):
        guest(host, kind, vmid, power="running")
    owed.leave_to_host(host.working_system())
    assert is_over(host) and not started(host)


# Cut short.


def booted_again(cut: Cut, host: Host, place: Path) -> Host:
    left = left_by(cut, host, place)
    for file in ("proc/sys/kernel/random/boot_id", "state/system", "state/pve-guests.service"):
        left.write(file, host.read(file))
    programs(left)
    return left


def test_a_note_that_is_cut_short_has_what_starts_them_and_is_forgotten_whole(host: Host, tmp_path: Path) -> None:
    """A note without what starts anybody of it would be nobody's."""
    starts = {"etc/systemd/system/timers.target.wants/homelab-owed.timer", f"{HOME}/owed-program"[1:]}
    (host.root / owed.OWED[1:]).unlink()
    (host.root / f"{HOME}/owed-program"[1:]).unlink()
    (host.root / "etc/systemd/system/homelab-owed.timer").unlink()
    guest(host, VM, 90, power="running")
    found = cuts(host, note)
    assert len(found) > 10 and all(owed.OWED[1:] not in cut.lasting or starts <= cut.lasting.keys() for cut in found)
    for number, cut in enumerate([*found, *cuts(host, forget)]):
        left = booted_again(cut, host, tmp_path / str(number))
        for kind in ("qm", "pct"):
            (left.root / "state" / kind).mkdir(parents=True)
        system = left.system()
        if number % 2:
            system.changing(lambda system=system: owed.drop_restart(system))  # type: ignore[misc]
        else:  # `destroy`
            guest(left, VM, 90, power="running")
            system.changing(lambda system=system: owed.leave_to_host(system))  # type: ignore[misc]
        assert is_over(left) and not left.exists(HOME), cut.how


def test_who_is_forgotten_has_a_timer_to_the_last(host: Host, tmp_path: Path) -> None:
    """A cut leaves no note that nobody would see to."""
    owed._TIMER.put(host.working_system(), "", "", b"")
    for number, cut in enumerate(cuts(host, forget)):
        left = booted_again(cut, host, tmp_path / str(number))
        whole = all(map(left.exists, owed._TIMER.paths))
        assert not left.exists(owed.OWED) or whole, cut.how
        if not left.exists(owed.OWED):
            alone(left)
            assert is_over(left), cut.how
