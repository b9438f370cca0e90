"""The lab's daemon brings its host up and down as a real one: reboots, timers, faults, kills, resets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab import Lab, LabError
from lab.control import request
from lab.state import process_start_time, read_lab_file
from tests.simulator.ssh_kit import openssh
from tests.waiting import PATIENCE, wait_until

SCENARIO = "rtx5090"


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """A lab that runs, with no fault set when the test begins."""
    yield shared_lab
    for name in shared_lab.machine.faults:
        shared_lab.fault(name, None)
    if shared_lab.status()["phase"] != "up":
        shared_lab.power_cycle()


def ssh_status(lab: Lab, command: str) -> int:
    """Run a command to its end; its exit status."""
    with openssh(lab.connection, command) as client:
        return client.wait(PATIENCE)


def connects(lab: Lab) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", lab.connection["port"])) == 0


def daemon_pid(lab: Lab) -> int:
    found = read_lab_file(lab.state)
    assert found is not None
    assert found.pid is not None
    return found.pid


def boot_id(lab: Lab) -> str:
    return (lab.root / "proc/sys/kernel/random/boot_id").read_text().strip()


def test_the_start_is_logged_as_a_boot(lab: Lab) -> None:
    first = lab.boots()[0]
    assert first["reason"] == "start"
    assert set(first) >= {"boot_id", "kernel", "entry", "cmdline", "reason", "network"}
    assert first["cmdline"]


def test_a_reboot_gives_a_new_boot_id_on_the_same_port(lab: Lab) -> None:
    before, port, mark = boot_id(lab), lab.connection["port"], lab.mark()
    lab.reboot()
    [boot] = lab.boots(since=mark)
    assert (boot["reason"], boot["network"]) == ("reboot", True)
    assert boot["boot_id"] == boot_id(lab) != before
    assert lab.connection["port"] == port
    assert connects(lab)


def test_the_reboot_command_answers_at_once_and_ends_what_runs(lab: Lab) -> None:
    boots, mark = len(lab.boots()), lab.mark()
    # One process: a shell whose child is killed first says so, to a pipe that is closed by then, and dies of that.
    with openssh(lab.connection, "trap '' TERM HUP; echo started; exec sleep 300") as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "started\n"
        assert lab.run("reboot").returncode == 0
        assert lab.wait_settled(boots=boots + 1) == "up"
        assert stubborn.wait(PATIENCE) == 255
    [killed] = [entry for entry in lab.commands(since=mark) if "started" in entry["command"]]
    assert killed["exit"] == 128 + signal.SIGKILL


def test_a_process_that_detached_itself_doesnt_outlive_its_host(lab: Lab) -> None:
    pid_file = lab.root / "tmp/daemon.pid"
    detached = f"setsid -f env -i bash -c 'echo $$ > {pid_file}; sleep 300'"
    assert ssh_status(lab, f"{detached} > /dev/null 2>&1 < /dev/null") == 0
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    pid = int(pid_file.read_text())
    assert process_start_time(pid) is not None
    lab.reboot()
    assert process_start_time(pid) is None


def test_a_host_that_is_down_refuses_connections_and_keeps_its_port(lab: Lab) -> None:
    lab.fault("hang-seconds", 3)
    boots, port = len(lab.boots()), lab.connection["port"]
    lab.reboot(wait=False)
    wait_until(lambda: lab.status()["phase"] == "booting")
    assert not connects(lab)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] != port
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    assert lab.wait_settled(boots=boots + 1) == "up"
    assert connects(lab)


def test_a_client_that_keeps_dialling_gets_in_at_its_first_answered_try(lab: Lab) -> None:
    mark, boots, port = lab.mark(), len(lab.boots()), lab.connection["port"]
    lab.reboot(wait=False)
    wait_until(lambda: lab.status()["phase"] == "booting")
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                assert client.recv(4) == b"SSH-"
                break
    lab.wait_settled(boots=boots + 1)
    lab.wait_disconnected()
    assert len(lab.connections(since=mark)) == 1


def test_a_host_that_never_comes_back_listens_no_more_until_it_is_repaired(lab: Lab) -> None:
    lab.fault("never-comes-back", True)
    lab.reboot()
    assert lab.status()["phase"] == "dead"
    assert not connects(lab)
    lab.fault("never-comes-back", None)
    mark = lab.mark()
    lab.power_cycle()
    assert connects(lab) and [boot["reason"] for boot in lab.boots(since=mark)] == ["power"]


def test_a_host_without_its_network_runs_but_is_out_of_reach(lab: Lab) -> None:
    lab.fault("no-network-when", "quiet")
    mark = lab.mark()
    lab.reboot()
    assert lab.status()["phase"] == "unreachable"
    assert not connects(lab)
    assert [boot["network"] for boot in lab.boots(since=mark)] == [False]


def test_two_reboots_asked_for_at_once_are_one(lab: Lab) -> None:
    mark = lab.mark()
    lab.reboot(wait=False)
    lab.reboot()
    assert len(lab.boots(since=mark)) == 1


# Timers


def start_timer(lab: Lab, unit: str, command: str, seconds: float) -> None:
    request(lab.state, "timer-start", unit=unit, command=command, seconds=seconds)


def test_a_timer_runs_its_command_with_the_hosts_paths(lab: Lab) -> None:
    program = lab.root / "var/lib/timed"
    program.write_text('#!/bin/bash\necho "$HOMELAB_ROOT $1" > "$HOMELAB_ROOT/var/lib/timed.out"\necho said\n')
    program.chmod(0o755)
    mark = lab.mark()
    start_timer(lab, "once.timer", "/var/lib/timed argument", 0.1)
    wait_until(lambda: bool(lab.log("timers", since=mark)))
    assert (lab.root / "var/lib/timed.out").read_text() == f"{lab.root} argument\n"
    [entry] = lab.log("timers", since=mark)
    assert (entry["unit"], entry["exit"], entry["output"]) == ("once.timer", 0, "said\n")


def test_a_stopped_timer_does_nothing(lab: Lab) -> None:
    mark = lab.mark()
    start_timer(lab, "stopped.timer", "touch $HOMELAB_ROOT/tmp/never", 0.2)
    assert request(lab.state, "timer-stop", unit="stopped.timer")["stopped"] is True
    assert request(lab.state, "timer-stop", unit="stopped.timer")["stopped"] is False
    start_timer(lab, "later.timer", "true", 0.3)
    wait_until(lambda: bool(lab.log("timers", since=mark)))
    assert [entry["unit"] for entry in lab.log("timers", since=mark)] == ["later.timer"]


def test_timers_can_run_fast(lab: Lab) -> None:
    mark = lab.mark()
    lab.fault("timers-run-fast", 600)
    start_timer(lab, "soon.timer", "true", 60)
    wait_until(lambda: bool(lab.log("timers", since=mark)))
    lab.machine.clear_faults()


def test_armed_timers_are_listed_with_the_time_left_and_end_with_the_boot(lab: Lab) -> None:
    start_timer(lab, "far.timer", "true", 600)
    [armed] = lab.timers()
    assert (armed["unit"], armed["command"]) == ("far.timer", "true")
    assert 500 < armed["left"] <= 600
    lab.reboot()
    assert lab.timers() == []


def test_a_timer_can_reboot_the_host(lab: Lab) -> None:
    boots = len(lab.boots())
    start_timer(lab, "reboot.timer", "/sbin/reboot", 0.1)
    assert lab.wait_settled(boots=boots + 1) == "up"


def enable_timer(lab: Lab, name: str, script: str, seconds: float) -> None:
    """Install and enable a timer as a package would."""
    units = lab.root / "etc/systemd/system"
    program = lab.root / "var/lib" / name
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    (units / f"{name}.service").write_text(f"[Service]\nType=oneshot\nExecStart=/var/lib/{name}\n")
    (units / f"{name}.timer").write_text(f"[Timer]\nOnBootSec={seconds}s\n\n[Install]\nWantedBy=timers.target\n")
    (units / "timers.target.wants").mkdir(exist_ok=True)
    (units / "timers.target.wants" / f"{name}.timer").symlink_to(f"/etc/systemd/system/{name}.timer")


def test_an_enabled_timer_runs_after_each_boot_also_out_of_reach(lab: Lab) -> None:

    def disable_timer(lab: Lab, name: str) -> None:
        (lab.root / f"etc/systemd/system/timers.target.wants/{name}.timer").unlink(missing_ok=True)

    enable_timer(
        lab, "each-boot", 'cat "$HOMELAB_ROOT/proc/sys/kernel/random/boot_id" >> "$HOMELAB_ROOT/var/lib/boots"', 1
    )
    try:
        lab.fault("no-network-when", "quiet")
        mark = lab.mark()
        lab.reboot()
        wait_until(lambda: bool(lab.log("timers", since=mark)))
        assert (lab.root / "var/lib/boots").read_text().split() == [boot_id(lab)]
    finally:
        disable_timer(lab, "each-boot")


def test_a_dead_mans_switch_brings_a_host_without_network_back(lab: Lab) -> None:
    """What the program relies on: a timer that undoes the cause and reboots."""
    cause = 'sed -i "s/quiet/& no-net/" "$HOMELAB_ROOT/etc/default/grub"; update-grub'
    undo = f"{cause.replace('s/quiet/& no-net/', 's/ no-net//')}; reboot"
    lab.fault("no-network-when", "no-net")
    lab.run(cause)
    enable_timer(lab, "switch", f'rm "$HOMELAB_ROOT/etc/systemd/system/timers.target.wants/switch.timer"; {undo}', 1)
    boots = len(lab.boots())
    lab.reboot(wait=False)
    assert lab.wait_settled(boots=boots + 2) == "up"
    assert [("no-net" in boot["cmdline"], boot["network"]) for boot in lab.boots()[boots:]] == [
        (True, False),
        (False, True),
    ]


# Waiting


def test_waiting_in_vain_says_how_things_stand(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"in vain.*'up' after \d+ boots"):
        lab.wait_command("no such command", timeout=0.2)


def test_an_unknown_request_is_named_with_those_that_there_are(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"'\{\"do\": \"fly\"\}'.*reboot"):
        request(lab.state, "fly")


def test_a_request_without_its_argument_says_which(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"`timer-start`: wanted `seconds` as float, found None"):
        request(lab.state, "timer-start", unit="x.timer", command="true")


# Reset, kill, restart: with a lab of their own


def test_a_reset_gives_the_stock_host_with_the_same_addresses_keys_and_password(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        stock, before, mark = lab.snapshot(), (lab.api, lab.connection), lab.mark()
        (lab.root / "etc/default/grub").write_text("changed\n")
        (lab.root / "boot/new").write_text("new\n")
        lab.run("echo user:somebody@pve:1:0::::: >>$HOMELAB_ROOT/etc/pve/user.cfg")
        lab.fault("hang-seconds", 1)
        lab.reset()
        assert lab.snapshot() == stock
        assert (lab.api, lab.connection) == before
        assert lab.machine.faults == {}
        assert [boot["reason"] for boot in lab.boots(since=mark)] == ["start"]
        assert lab.status()["phase"] == "up"


def test_a_reset_cuts_a_boot_that_hangs_short(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        lab.fault("hang-seconds", 3600)
        lab.reboot(wait=False)
        wait_until(lambda: lab.status()["phase"] == "booting")
        lab.reset()
        assert lab.status()["phase"] == "up"


def test_a_lab_whose_daemon_was_killed_starts_again_as_it_was(tmp_path: Path) -> None:
    lab = Lab.start("rtx5090", state=tmp_path / "lab")
    (lab.root / "etc/kept").write_text("kept\n")
    before, boots = lab.connection, len(lab.boots())
    with openssh(lab.connection, "echo $$; exec sleep 300") as client:
        assert client.stdout is not None
        orphan = int(client.stdout.readline())
        os.kill(daemon_pid(lab), signal.SIGKILL)
        client.wait(PATIENCE)
    # The kernel closes its sockets a moment after it.
    wait_until(lambda: not lab.running and not connects(lab))
    with Lab.start("rtx5090", state=lab.state) as again:
        assert again.connection == before
        assert (again.root / "etc/kept").read_text() == "kept\n"
        assert len(again.boots()) == boots + 1
        wait_until(lambda: process_start_time(orphan) is None)


def test_a_start_that_was_killed_before_its_end_begins_again(tmp_path: Path) -> None:
    state = tmp_path / "lab"
    (state / "root/etc").mkdir(parents=True)
    (state / "root/etc/half").write_text("half\n")
    with Lab.start("rtx5090", state=state) as lab:
        assert not (lab.root / "etc/half").exists()


def test_another_process_with_the_daemons_pid_isnt_taken_for_it(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        lab.stop()
        path = lab.state / "lab.json"
        path.write_text(path.read_text().replace('"pid": null', f'"pid": {os.getpid()}'))
        assert not lab.running
        lab.stop()
        assert process_start_time(os.getpid()) is not None
        with Lab.start("rtx5090", state=lab.state) as again:
            assert again.running


def test_a_stopped_lab_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    lab = Lab.start("rtx5090", state=tmp_path / "lab")
    daemon = daemon_pid(lab)
    with openssh(lab.connection, "trap '' TERM; echo $$; while :; do sleep 1; done") as client:
        assert client.stdout is not None
        command = int(client.stdout.readline())
        lab.stop()
        assert process_start_time(command) is None
        client.wait(PATIENCE)
    wait_until(lambda: process_start_time(daemon) is None)
    assert not (lab.state / "control.sock").exists()
    assert not connects(lab)
    lab.stop()


def test_a_daemon_that_hangs_is_stopped_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.client.STOP_SECONDS", 0.5)
    lab = Lab.start("rtx5090", state=tmp_path / "lab")
    daemon = daemon_pid(lab)
    with openssh(lab.connection, "echo $$; exec sleep 300") as client:
        assert client.stdout is not None
        command = int(client.stdout.readline())
        os.kill(daemon, signal.SIGSTOP)
        lab.stop()
        client.wait(PATIENCE)
    wait_until(lambda: process_start_time(daemon) is None and process_start_time(command) is None)
    assert lab.status()["phase"] == "stopped"


def test_a_lab_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    state = tmp_path / "lab"
    program = "import sys, pathlib, lab; lab.Lab.start('rtx5090', pathlib.Path(sys.argv[1])); print('up'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        assert Lab.open(state).running
        starter.kill()
        assert starter.wait(PATIENCE) == -signal.SIGKILL
    wait_until(lambda: not Lab.open(state).running)


def test_a_lab_ends_when_its_folder_is_removed(tmp_path: Path) -> None:
    lab = Lab.start("rtx5090", state=tmp_path / "lab", outlives_caller=True)
    daemon = daemon_pid(lab)
    lab.state.rename(tmp_path / "gone")
    wait_until(lambda: process_start_time(daemon) is None)


def test_a_lab_in_a_folder_with_a_long_name_has_its_socket_elsewhere(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / ("long" * 30) / "lab") as lab:
        found = read_lab_file(lab.state)
        assert found is not None
        socket_path = Path(found.control)
        assert socket_path.is_socket()
        assert socket_path.parent.stat().st_mode & 0o077 == 0
        assert lab.run("reboot").returncode == 0
    assert not socket_path.parent.exists()


def test_labs_run_side_by_side_and_dont_disturb_one_another(tmp_path: Path) -> None:
    labs: dict[int, Lab] = {}
    threads = [
        threading.Thread(target=lambda n=n: labs.update({n: Lab.start("rtx5090", state=tmp_path / str(n))}))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({lab.connection["port"] for lab in labs.values()}) == 3
        assert len({lab.connection["hostKey"] for lab in labs.values()}) == 3
        before = boot_id(labs[1])
        labs[0].reboot()
        labs[2].stop()
        assert boot_id(labs[1]) == before
        assert ssh_status(labs[1], "true") == 0
        assert ssh_status(labs[0], "true") == 0
    finally:
        for lab in labs.values():
            lab.stop()


def test_two_starts_of_one_lab_at_once_make_one_daemon(tmp_path: Path) -> None:
    started: list[Lab] = []
    threads = [
        threading.Thread(target=lambda: started.append(Lab.start("rtx5090", state=tmp_path / "lab"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 2
    assert len(started[0].boots()) == 1
    started[0].stop()
    assert not started[1].running


def test_a_folder_with_another_scenario_is_refused(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab, pytest.raises(LabError, match="holds a lab of 'rtx5090'"):
        Lab.start("intel-zfs", state=lab.state)


def test_an_unknown_scenario_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no-such-scenario"):
        Lab.start("no-such-scenario", state=tmp_path / "lab")
    assert not (tmp_path / "lab/lab.json").exists()


def test_a_snapshot_tells_content_mode_and_links_apart(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        before = lab.snapshot()
        assert before["etc/default/grub"][0] == "file"
        grub = lab.root / "etc/default/grub"
        grub.chmod(0o600)
        assert changed(before, lab.snapshot()) == {"etc/default/grub"}
        (lab.root / "etc/link").symlink_to("nowhere")
        (lab.root / "etc/folder").mkdir()
        after = lab.snapshot()
        assert changed(before, after) >= {"etc/link", "etc/folder"}
        assert after["etc/link"][2] == "nowhere"
        assert set(lab.snapshot("etc/default")) < set(before)


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - {"etc"}
