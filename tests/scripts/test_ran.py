"""lib/ran.sh, lib/ran/start.sh: guests that ran before a restart of this program's run again after it, each started once. Tasks are as PVE::RESTEnvironment and
PVE::UPID write them, `stopall` and the shutdowns that it begins as pve-guests.service does (PVE::API2::Nodes)."""

from __future__ import annotations

import fcntl
import json
import time
from typing import Any

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder, quoted

A, B = "7d4f0d3c-0000-4000-8000-00000000000a", "7d4f0d3c-0000-4000-8000-00000000000b"
NOTED, DOWN, BOOTED = 1_700_000_000, 1_700_000_020, 1_700_000_100
VM, CT = "qemu-server", "lxc"
#: A guest's state is a file; its start is a task, as of root's shell.
GUEST = r"""
case $1 in
  list) printf '%s\n' "${0##*/} list" >>"$ROOT/said"; [[ ! -e $ROOT/no-list ]] || exit 1
    for file in "$ROOT/state/${0##*/}"/*; do [[ -e $file ]] || continue; id=${file##*/}
      if [[ ${0##*/} == pct ]]; then printf '%s %s name\n' "$id" "$(<"$file")"; else
        pid=0; [[ $(<"$file") != running ]] || pid=7; printf '%s name %s 512 32.00 %s\n' "$id" "$(<"$file")" "$pid"; fi; done ;;
  status) [[ ! -e $ROOT/unsaid/$2 ]] || exit 1; printf 'status: %s\n' "$(<"$ROOT/state/${0##*/}/$2")" ;;
  start) kind=qm; [[ ${0##*/} == qm ]] || kind=vz
    [[ ! -e $ROOT/kill/before-$2 ]] || { rm "$ROOT/kill/before-$2"; kill -9 "$(<"$ROOT/run/pid")"; exit 1; }
    printf '%s ' "$2" >>"$ROOT/started"
    printf 'UPID:pve:000003E8:00000001:%08X:%sstart:%s:root@pam: %08X OK\n' "$(date +%s)" "$kind" "$2" "$(date +%s)" >>"$ROOT/var/log/pve/tasks/index"
    [[ ! -e $ROOT/fails/$2 ]] || { echo 'start failed: no such bridge'; exit 255; }
    printf running >"$ROOT/state/${0##*/}/$2"
    [[ ! -e $ROOT/kill/after-$2 ]] || { rm "$ROOT/kill/after-$2"; kill -9 "$(<"$ROOT/run/pid")"; } ;;
esac
"""
SYSTEMCTL = """
[[ $1 != is-active ]] || { cat "$ROOT/guests-service"; exit; }
[[ $1 != is-system-running ]] || cat "$ROOT/system"
"""


@pytest.fixture
def host(folder: Folder) -> Folder:
    """In boot B, after a restart from boot A in which all of four guests ran: none of them does."""
    for name in ("qm", "pct"):
        folder.command(name, GUEST)
    folder.command("systemctl", SYSTEMCTL)
    folder.command("pvesh", "exit 1")
    folder.write("guests-service", "active\n")
    folder.write("system", "running\n")
    folder.write("proc/sys/kernel/random/boot_id", f"{B}\n")
    folder.write("proc/stat", f"cpu 1 2 3\nbtime {BOOTED}\n")
    folder.write("var/log/pve/tasks/index", "")
    for folder_of, vmid, startup in ((VM, 103, ""), (VM, 90, ""), (VM, 105, "order=1,down=9"), (CT, 901, "2")):
        guest(folder, folder_of, vmid, f"startup: {startup}\n" if startup else "")
    noted(folder, "qm 103", "qm 90", "qm 105", "pct 901")
    return folder


def guest(host: Folder, kind: str, vmid: int, conf: str = "", power: str = "stopped") -> None:
    key = "name" if kind == VM else "hostname"
    host.write(f"etc/pve/{kind}/{vmid}.conf", f"{key}: g{vmid}\n{conf}[before]\nlock: snapshot\nstartup: order=9\n")
    host.write(f"state/{'qm' if kind == VM else 'pct'}/{vmid}", power)


def noted(host: Folder, *guests: str, at: int = NOTED, boot: str = A) -> None:
    host.write("var/lib/homelab/ran", "".join(f"{one} {at} {boot}\n" for one in guests))
    host.write("var/lib/homelab/ran-program", "…\n")
    host.write("etc/systemd/system/homelab-ran.timer", "…\n")


def task(host: Folder, kind: str, vmid: int | str, at: int, user: str = "root@pam", file: str = "index") -> None:
    line = f"UPID:pve:000003E8:00000001:{at:08X}:{kind}:{vmid}:{user}:"
    path = host.root / "var/log/pve/tasks" / file
    with path.open("a") as tasks:
        tasks.write(f"{line} 0\n" if file == "active" else f"{line} {at + 1:08X} OK\n")


def run(host: Folder, *, later: tuple[int, ...] = (), unwanted: tuple[int, ...] = ()) -> dict[str, Any]:
    script = scripts.start_guests(later, unwanted)
    done = host.bash(
        f'printf %s "$$" >"$ROOT/run/pid"\nsleep() {{ SECONDS=$((SECONDS + 60)); }}\n{script}', "start_guests", parts=()
    )
    assert not done.stdout or done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout)) if done.stdout else {}


def alone(host: Folder) -> str:
    """What the host's own timer runs."""
    done = host.bash(f"sleep() {{ SECONDS=$((SECONDS + 60)); }}\n{scripts._ran_program()}", "start_alone", parts=())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def started(host: Folder) -> list[int]:
    path = host.root / "started"
    return [int(one) for one in path.read_text().split()] if path.exists() else []


def is_over(host: Folder) -> bool:
    left = [*host.root.rglob("homelab-ran*"), *(host.root / "var/lib/homelab").glob("ran*")]
    return not left


def test_what_ran_is_started_once_in_proxmox_ves_order(host: Folder) -> None:
    said = run(host)
    assert started(host) == [105, 901, 90, 103]
    assert said["started"] == ["VM 105 (g105)", "container 901 (g901)", "VM 90 (g90)", "VM 103 (g103)"]
    assert (said["off"], said["later"], is_over(host)) == ([], [], True)
    assert run(host) == {"started": [], "off": [], "later": []}


def clock_set_back(host: Folder) -> None:
    task(host, "qmshutdown", 103, DOWN + 5)
    host.write("proc/stat", f"btime {NOTED - 9999}\n")


@pytest.mark.parametrize(
    ("what", "starts"),
    [
        (lambda host: None, True),
        (lambda host: guest(host, VM, 103, power="running"), False),
        (lambda host: guest(host, VM, 103, power="paused"), False),
        (lambda host: (host.root / "etc/pve/qemu-server/103.conf").unlink(), False),
        (lambda host: guest(host, VM, 103, "lock: backup\n"), False),
        (lambda host: host.write("etc/pve/ha/resources.cfg", "vm: 103\n\tstate stopped\n"), False),
        (lambda host: host.write("etc/pve/ha/resources.cfg", "vm:103\n\tstate started\n"), False),
        (lambda host: host.write("etc/pve/ha/resources.cfg", "vm: 103\n\tstate ignored\n\nct: 7\n"), True),
        (lambda host: host.write("etc/pve/ha/resources.cfg", "ct: 103\n\nvm: 1031\n"), True),
        # By somebody: after the boot; before the host went down; while it starts; a restore under the same id.
        (lambda host: task(host, "qmstart", 103, BOOTED + 60, "bob@pve"), False),
        (lambda host: task(host, "qmshutdown", 103, NOTED + 5), False),
        (lambda host: task(host, "qmshutdown", 103, DOWN + 5, "bob@pve"), False),
        (lambda host: task(host, "qmstart", 103, BOOTED + 60, file="active"), False),
        (lambda host: task(host, "qmrestore", 103, BOOTED + 60, file="index.1"), False),
        # Of another guest; before it was noted; a console; the host's own shutdown of it.
        (lambda host: task(host, "qmstart", 1030, BOOTED + 60), True),
        (lambda host: task(host, "qmstart", 103, NOTED - 60), True),
        (lambda host: task(host, "vncproxy", 103, BOOTED + 60), True),
        (lambda host: task(host, "qmshutdown", 103, DOWN + 5), True),
        # The start of what was noted as running: in the second of the note, or while its list was waited for.
        (lambda host: task(host, "qmstart", 103, NOTED), True),
        (lambda host: task(host, "qmstart", 103, NOTED + 5), True),
        # The same where the clock was set back.
        (clock_set_back, True),
        # Somebody else's restart, hours later.
        (lambda host: noted(host, "qm 103", at=BOOTED - 9000), False),
        # Written by nobody.
        (lambda host: noted(host, "qm $(reboot)", "rm 103", "qm -1"), False),
    ],
)  # fmt: skip
def test_a_guest_that_somebody_has_seen_to_is_left_alone(host: Folder, what: Any, starts: bool) -> None:
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN)
    what(host)
    said = run(host)
    assert started(host) == ([103] if starts else [])
    assert is_over(host) and said["later"] == []


def test_a_run_waits_until_proxmox_ve_has_started_its_own_guests(host: Folder) -> None:
    host.write("guests-service", "activating\n")
    host.command("systemctl", SYSTEMCTL.replace("exit", 'echo active >"$ROOT/guests-service"; exit'))
    assert len(run(host)["started"]) == 4
    host.write("guests-service", "inactive\n")
    host.write("system", "starting\n")
    noted(host, "qm 103")
    guest(host, VM, 103)
    host.command("systemctl", SYSTEMCTL)
    (host.root / "run/homelab/notes").write_text("")
    assert run(host) == {"started": [], "off": [], "later": []} and not is_over(host)
    assert "note: guests that ran before the restart aren't started yet" in host.read("run/homelab/notes")


@pytest.mark.parametrize("state", ["failed", "inactive"])
def test_where_proxmox_ve_starts_no_guest_any_more_they_are_started_all_the_same(host: Folder, state: str) -> None:
    """pve-guests.service has failed, or is disabled or masked (`inactive`, with nothing left to start)."""
    host.write("guests-service", f"{state}\n")
    host.write("system", "degraded\n")
    alone(host)
    assert len(started(host)) == 4 and is_over(host)


def test_who_stays_off_is_said_with_what_to_do(host: Folder) -> None:
    guest(host, VM, 103, "lock: backup\n")
    said = run(host)
    assert said["off"] == [
        "VM 103 (g103) ran before the restart, and stays off: it is locked, backup (once nothing works on it: `qm unlock 103`, "
        "then `qm start 103`)"
    ]


def test_a_start_that_fails_is_said_and_keeps_nobody_off(host: Folder) -> None:
    host.write("fails/105", "")
    said = run(host)
    assert started(host) == [105, 901, 90, 103] and is_over(host)
    (off,) = said["off"]
    assert off == (
        "VM 105 (g105) ran before the restart, and has not started again: start failed: no such bridge (`qm start 105`)"
    )


@pytest.mark.parametrize(
    ("file", "status", "said"),
    [
        ("index", "start failed: no such bridge", True),
        ("active", "start failed: no such bridge", True),
        ("index", "OK", False),
        ("index", "WARNINGS: 1", False),
        ("active", "0", False),
    ],
)
def test_a_start_that_failed_where_somebody_else_began_it_is_said_and_not_tried_again(
    host: Folder, file: str, status: str, said: bool
) -> None:
    """Proxmox VE at the boot, for `onboot`; or a run that was killed before it had told."""
    noted(host, "qm 103")
    task(host, "stopall", "", DOWN)
    ended = "" if status == "0" else f"{'1 ' if file == 'active' else ''}{BOOTED + 9:08X} "
    line = f"UPID:pve:000003E8:00000001:{BOOTED + 5:08X}:qmstart:103:root@pam: {ended}{status}\n"
    host.write(f"var/log/pve/tasks/{file}", line)
    expected = f"VM 103 (g103) ran before the restart, and has not started again: {status} (`qm start 103`)"
    assert run(host)["off"] == ([expected] if said else [])
    assert not started(host) and is_over(host)


@pytest.mark.parametrize(
    "unknown",
    ["unsaid/103", "etc/pve/ha/resources.cfg/", "var/log/pve/tasks/index.1/", "etc/pve/qemu-server/103.conf/"],
)
def test_what_cannot_be_told_starts_nothing_and_is_asked_again(host: Folder, unknown: str) -> None:
    now = int(time.time())
    host.write("proc/stat", f"btime {now - 60}\n")
    noted(host, "qm 103", at=now - 120)
    place = host.root / unknown
    kept = place.read_text() if place.is_file() else None
    if unknown.endswith("/"):  # a read that fails
        place.unlink(missing_ok=True)
        place.mkdir(parents=True)
    else:
        host.write(unknown, "")
    assert run(host)["later"][0].startswith("VM 103") and not started(host) and not is_over(host)
    if unknown.endswith("/"):
        place.rmdir()
    else:
        place.unlink()
    if kept is not None:
        place.write_text(kept)
    alone(host)
    assert started(host) == [103] and is_over(host)


def test_who_can_not_be_told_of_for_two_hours_is_given_up_aloud(host: Folder) -> None:
    noted(host, "qm 103")
    host.write("unsaid/103", "")
    assert "couldn't be told for two hours" in run(host)["off"][0] and is_over(host)


@pytest.mark.parametrize("killed", ["before-105", "after-105", "before-901", "after-901", "after-103"])
def test_a_run_that_is_killed_starts_nobody_twice_and_forgets_nobody(host: Folder, killed: str) -> None:
    host.write(f"kill/{killed}", "")
    assert run(host) == {} and not is_over(host)
    alone(host)
    assert started(host) == [105, 901, 90, 103] and is_over(host)


def test_a_runs_own_guests_are_left_to_it_and_started_once_it_has_ended(host: Folder) -> None:
    (host.root / "run/homelab").mkdir(mode=0o700)
    with (host.root / "run/homelab/up").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        guest(host, VM, 90, "hookscript: local:snippets/homelab-handover.sh\n")
        said = run(host, later=(105,), unwanted=(901,))
        assert said["later"] == ["VM 105 (g105)", "VM 90 (g90)"] and started(host) == [103]
        alone(host)
        assert started(host) == [103], "a run is at work"
    alone(host)
    assert started(host) == [103, 105, 90] and is_over(host)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("var/lib/homelab/armed", f"boot {A}\n"),
        ("var/lib/homelab/rolling-back", f"boot {B}\n"),
        ("run/homelab/restarting", f"boot {B}"),
        ("guests-service", "activating\n"),
        ("system", "starting\n"),
        ("proc/sys/kernel/random/boot_id", f"{A}\n"),
    ],
)
def test_nothing_is_started_before_the_boot_is_decided(host: Folder, file: str, text: str) -> None:
    (host.root / "run/homelab").mkdir(mode=0o700)
    before = (host.root / file).read_text() if (host.root / file).exists() else None
    host.write("proc/cmdline", "root=/dev/sda1 quiet\n")
    if file == "system":
        host.write("guests-service", "inactive\n")
    host.write(file, text)
    alone(host)
    assert not started(host) and not is_over(host)
    (host.root / file).unlink()
    if before is not None:
        host.write(file, before)
    alone(host)
    assert len(started(host)) == 4 and is_over(host)


@pytest.mark.parametrize("file", ["judged", "rolled-back"])
def test_the_next_up_hears_what_the_host_has_started_alone(host: Folder, file: str) -> None:
    host.write(f"var/lib/homelab/{file}", "boot x was judged")
    host.write("fails/901", "")
    alone(host)
    text = host.read(f"var/lib/homelab/{file}")
    assert text.startswith(
        "boot x was judged; the host itself has started what ran before its restart: VM 105 (g105), VM 90 (g90), VM 103 (g103); container 901"
    )


def test_a_host_that_was_given_back_meanwhile_keeps_nothing_of_it(host: Folder) -> None:
    alone(host)
    assert len(started(host)) == 4 and not (host.root / "var/lib/homelab").exists()


# -- before the restart ------------------------------------------------------------------------------------------
NOTE = f"RAN_PROGRAM={quoted('# program')}\nSTATUS_SECONDS=0\nnote_running || printf '%s' \"$OUTPUT\"\n"


def test_what_runs_is_noted_beside_what_is_owed_from_before(host: Folder) -> None:
    guest(host, VM, 90, power="running")
    guest(host, CT, 902, power="running")
    done = host.bash(NOTE, parts=("ran",))
    assert done.stdout == "", done.stderr
    lines = [line.split() for line in host.read("var/lib/homelab/ran").splitlines()]
    assert [(*line[:2], line[3]) for line in lines] == [
        ("qm", "90", B), ("pct", "902", B), ("qm", "103", A), ("qm", "105", A), ("pct", "901", A),
    ]  # fmt: skip
    assert (host.root / "etc/systemd/system/timers.target.wants/homelab-ran.timer").is_symlink()
    host.bash("drop_ran", parts=("ran",))
    assert [line.split()[1] for line in host.read("var/lib/homelab/ran").splitlines()] == ["103", "105", "901"]


def test_a_host_without_a_running_guest_has_nothing_to_note(host: Folder) -> None:
    (host.root / "var/lib/homelab/ran").unlink()
    assert host.bash(NOTE, parts=("ran",)).stdout == "" and is_over(host)


def test_what_runs_and_is_not_told_is_not_noted_as_nothing(host: Folder) -> None:
    host.write("no-list", "")
    before = host.files()
    assert "`qm list` gave no answer" in host.bash(NOTE, parts=("ran",)).stdout
    assert {path: about for path, about in host.files().items() if path != "said"} == before


def test_a_host_that_is_given_back_forgets_whom_nothing_is_owed(host: Folder) -> None:
    assert "still off" in host.bash("settle_ran", parts=("ran",)).stderr and not is_over(host)
    for kind, vmid in ((VM, 103), (VM, 90), (VM, 105), (CT, 901)):
        guest(host, kind, vmid, power="running")
    host.bash("settle_ran", parts=("ran",))
    assert is_over(host) and not started(host)
