"""Guests' hookscripts on a lab's host, through qm, pct and the API: which phase comes when, what it sees, and what its failure does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from lab.control import request
from lab.scenario import load_scenario, scenario_from
from tests.lab.host_kit import Host
from tests.simulator.test_api import QEMU, finish, log_of
from tests.waiting import PATIENCE, wait_until

OLD, NEW = "9.1.2", "9.1.13"
SNIPPET, VOLUME = "/var/lib/vz/snippets/hook.sh", "local:snippets/hook.sh"
CARD = "0000:01:00.0"
#: What a phase sees of the host, in one line: whether the VM's process is there, its reservation, the card's driver.
SEES = f"""#!/bin/bash
see() {{ [ -e "$1" ] && echo "$2" || echo "no $2"; }}
pid=$(cat "$HOMELAB_ROOT/run/qemu-server/$1.pid" 2>/dev/null)
driver=$(basename "$(readlink "$HOMELAB_ROOT/sys/bus/pci/devices/{CARD}/driver" || echo none)")
reserved=$(grep -c " $1 " "$HOMELAB_ROOT/run/qemu-server/pci-id-reservations" 2>/dev/null || true)
reboot=$(see "$HOMELAB_ROOT/run/qemu-server/$1.reboot" reboot)
echo "$2: $(see "$HOMELAB_ROOT/proc/${{pid:-none}}" process), ${{reserved:-0}} reserved, $driver, $reboot" | tee -a "$HOMELAB_ROOT/root/seen"
"""
BEFORE = "pre-start: no process, 0 reserved, nouveau, no reboot"


def made(path: Path, version: str = NEW, scenario: str = "rtx5090", **guest: Any) -> Host:
    """A host that runs this qemu-server, with storage `local` for snippets and a hook for VM 103; VM 103 is off unless told otherwise."""
    data = load_scenario(scenario).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    for one in data["guests"]:
        if one["id"] == 103:
            one |= {"onboot": False, "running": False, **guest}
    host = Host(path, scenario_from({**data, "qemu-server": version}, "changed", scenario))
    host.booted()
    host.output("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    return host


def hooked(host: Host, script: str = SEES, guest: str = "qm set 103") -> Host:
    host.write(SNIPPET, script, 0o755)
    host.output(f"{guest} --hookscript {VOLUME}")
    return host


def seen(host: Host) -> list[str]:
    path = host.root / "root/seen"
    return path.read_text().splitlines() if path.exists() else []


def last_log(host: Host, kind: str) -> list[str]:
    """The log of the last task of a kind that has ended."""
    lines = (host.root / "var/log/pve/tasks/index").read_text().splitlines()
    upid = [line.split()[0] for line in lines if f":{kind}:" in line][-1]
    [path] = (host.root / "var/log/pve/tasks").glob(f"?/{upid}")
    return path.read_text().splitlines()


# -- setting it --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("volume", "mode", "said"),
    [
        ("local:snippets/none.sh", 0o755, "script 'local:snippets/none.sh' does not exist"),
        (VOLUME, 0o644, f"script '{VOLUME}' is not executable"),
        ("local:iso/hook.sh", 0o755, "'local:iso/hook.sh' is not in the snippets directory"),
    ],
)
@pytest.mark.parametrize("command", ["qm set 103", "pct set 201"])
def test_only_an_executable_file_among_the_snippets_can_be_set(
    tmp_path: Path, command: str, volume: str, mode: int, said: str
) -> None:
    host = made(tmp_path, scenario="mixed")
    host.write(SNIPPET, "#!/bin/sh\n", mode)
    done = host.run(f"{command} --hookscript {volume}")
    assert done.returncode != 0 and said in done.stderr
    assert "hookscript" not in host.output("qm config 103; pct config 201")


def test_a_storage_without_snippets_takes_no_hookscript(tmp_path: Path) -> None:
    host = made(tmp_path)
    host.output("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir")
    host.write(SNIPPET, "#!/bin/sh\n", 0o755)
    done = host.run(f"qm set 103 --hookscript {VOLUME}")
    assert done.returncode != 0 and "storage 'local' does not support content-type 'snippets'" in done.stderr


# -- a VM's phases -----------------------------------------------------------------------------------------------
def test_pre_start_comes_before_the_card_is_bound_and_post_stop_after_everything(tmp_path: Path) -> None:
    host = hooked(made(tmp_path))
    host.output("qm set 103 --hostpci0 0000:01:00,pcie=1")
    started = host.run("qm start 103")
    stopped = host.run("qm stop 103")
    assert started.returncode == stopped.returncode == 0
    starting = [BEFORE, "post-start: process, 2 reserved, vfio-pci, no reboot"]
    stopping = [
        "pre-stop: process, 2 reserved, vfio-pci, no reboot",
        "post-stop: no process, 0 reserved, vfio-pci, no reboot",
    ]
    assert seen(host) == starting + stopping
    assert started.stderr.splitlines() == starting and stopped.stderr.splitlines() == stopping, (
        "it is in the task's log"
    )
    assert last_log(host, "qmstart") == [*starting, "TASK OK"]


def test_before_9_1_13_post_stop_is_run_by_qm_cleanup_after_the_task(tmp_path: Path) -> None:
    host = hooked(made(tmp_path, OLD))
    host.output("qm start 103")
    stopped = host.run("qm stop 103")
    assert "post-stop" not in stopped.stderr
    wait_until(lambda: len(seen(host)) == 4)
    assert seen(host)[-1] == "post-stop: no process, 0 reserved, nouveau, no reboot"
    assert last_log(host, "qmstop")[-2:] == ["pre-stop: process, 0 reserved, nouveau, no reboot", "TASK OK"]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_reboot_is_a_stop_and_a_start_that_the_script_can_tell(tmp_path: Path, version: str) -> None:
    host = hooked(made(tmp_path, version))
    host.output("qm start 103; sleep 0.4; qm reboot 103")
    phases = [line.split(":")[0] for line in seen(host)]
    assert phases == ["pre-start", "post-start", "pre-stop", "post-stop", "pre-start", "post-start"]
    assert [line.endswith(" reboot") and not line.endswith("no reboot") for line in seen(host)[2:]] == [
        True,
        True,
        False,
        False,
    ]
    assert host.output("qm status 103") == "status: running\n"


def test_a_pre_start_that_fails_keeps_the_vm_off_and_its_card_where_it_was(tmp_path: Path) -> None:
    host = hooked(made(tmp_path), '#!/bin/bash\necho "$2 $1" >>$HOMELAB_ROOT/root/seen\necho says no\nexit 3\n')
    host.output("qm set 103 --hostpci0 0000:01:00,pcie=1")
    done = host.run("qm start 103")
    error = f"hookscript error for 103 on pre-start: command '{SNIPPET} 103 pre-start' failed: exit code 3"
    assert done.returncode != 0 and "says no" in done.stderr and error in done.stderr
    assert host.output("qm status 103") == "status: stopped\n"
    assert host.driver(CARD) == "nouveau"
    assert seen(host) == ["pre-start 103"], "neither post-start nor post-stop"


def test_after_a_start_that_fails_behind_pre_start_there_is_no_post_stop(tmp_path: Path) -> None:
    host = hooked(made(tmp_path))
    host.output("qm set 103 --hostpci0 0000:77:00,pcie=1")
    assert host.run("qm start 103").returncode != 0
    assert seen(host) == [BEFORE]


@pytest.mark.parametrize("harm", ["rm", "chmod a-x"])
def test_a_snippet_that_has_gone_keeps_the_vm_from_starting(tmp_path: Path, harm: str) -> None:
    host = hooked(made(tmp_path))
    host.output(f"{harm} $HOMELAB_ROOT{SNIPPET}")
    done = host.run("qm start 103")
    assert done.returncode != 0 and f"hookscript error for 103 on pre-start: script '{VOLUME}' " in done.stderr


@pytest.mark.parametrize("phase", ["post-start", "pre-stop", "post-stop"])
def test_what_fails_in_another_phase_is_a_warning_in_the_log(tmp_path: Path, phase: str) -> None:
    host = hooked(made(tmp_path), f"#!/bin/bash\n[[ $2 != {phase} ]]\n")
    done = host.run("qm start 103 && qm stop 103")
    assert done.returncode == 0
    assert f"hookscript error for 103 on {phase}: command '{SNIPPET} 103 {phase}' failed: exit code 1" in done.stderr


def test_the_vms_lock_is_held_meanwhile_and_containers_can_be_stopped(tmp_path: Path) -> None:
    script = """#!/bin/bash
[[ $2 == pre-start ]] || exit 0
qm set 103 --tags x; echo "qm: $?"
pct shutdown 201; echo "pct: $?"
"""
    host = hooked(made(tmp_path, scenario="mixed"), script)
    done = host.run("qm start 103")
    assert "can't lock file '/var/lock/qemu-server/lock-103.conf' - got timeout" in done.stderr
    assert "qm: 0" not in done.stderr and "pct: 0" in done.stderr
    assert host.output("pct status 201") == "status: stopped\n"


def test_a_script_that_hangs_hangs_the_start_and_what_it_says_is_in_the_log_at_once(tmp_path: Path) -> None:
    host = hooked(made(tmp_path), "#!/bin/bash\necho begun\nuntil [ -e $HOMELAB_ROOT/root/go ]; do sleep 0.02; done\n")
    start = subprocess.Popen(["qm", "start", "103"], env=host.machine.environment(), stderr=subprocess.DEVNULL)

    def logs() -> str:
        return "".join(path.read_text() for path in (host.root / "var/log/pve/tasks").glob("?/UPID*qmstart*"))

    wait_until(lambda: logs() == "begun\n")
    assert start.poll() is None and host.output("qm status 103") == "status: stopped\n"
    host.write("/root/go", "")
    assert start.wait(PATIENCE) == 0


# -- with the host -----------------------------------------------------------------------------------------------
def test_at_boot_and_shutdown_the_guests_phases_come_in_order(tmp_path: Path) -> None:
    script = """#!/bin/bash
echo "$2 of $1; 201 $(pct status 201); host $(systemctl is-system-running)" >>$HOMELAB_ROOT/root/seen
"""
    host = hooked(made(tmp_path, scenario="mixed"), script)
    host.output("qm set 103 --onboot 1 --startup order=2; pct set 201 --startup order=1")
    host.reboot()
    host.reboot()
    start = [f"{phase} of 103; 201 status: running; host running" for phase in ("pre-start", "post-start")]
    stop = [f"{phase} of 103; 201 status: running; host stopping" for phase in ("pre-stop", "post-stop")]
    assert seen(host) == [*start, *stop, *start]
    assert last_log(host, "qmshutdown") == ["TASK OK"]


def test_a_vm_whose_script_refuses_at_boot_is_off_and_its_task_says_why(tmp_path: Path) -> None:
    host = hooked(made(tmp_path), "#!/bin/bash\necho says no\nexit 1\n")
    host.output("qm set 103 --onboot 1")
    host.reboot()
    assert host.output("qm status 103") == "status: stopped\n"
    assert last_log(host, "qmstart")[0] == "says no" and "exit code 1" in last_log(host, "qmstart")[-1]


def test_a_power_cut_asks_no_script(tmp_path: Path) -> None:
    host = hooked(made(tmp_path))
    host.output("qm start 103")
    host.machine.set_fault("power-cut", True)
    host.machine.shutdown()
    assert [line.split(":")[0] for line in seen(host)] == ["pre-start", "post-start"]


# -- containers --------------------------------------------------------------------------------------------------
def test_a_containers_phases(tmp_path: Path) -> None:
    script = '#!/bin/bash\necho "$2 $1: $(pct status $1)" >>$HOMELAB_ROOT/root/seen\n'
    host = hooked(made(tmp_path, scenario="mixed"), script, "pct set 201")
    host.output("pct shutdown 201; pct start 201")
    down, up = ("pre-stop", "post-stop"), ("pre-start", "post-start")
    states = {"pre-stop": "running", "post-stop": "stopped", "pre-start": "stopped", "post-start": "running"}
    assert seen(host) == [f"{phase} 201: status: {states[phase]}" for phase in (*down, *up)]


def test_a_containers_pre_start_that_fails_keeps_it_off(tmp_path: Path) -> None:
    host = hooked(
        made(tmp_path, scenario="mixed"), "#!/bin/bash\necho the card is with VM 103\nexit 1\n", "pct set 201"
    )
    done = host.run("pct stop 201; pct start 201")
    assert done.returncode != 0 and "the card is with VM 103" in done.stderr
    assert host.output("pct status 201") == "status: stopped\n"


# -- through the daemon ------------------------------------------------------------------------------------------
def test_the_apis_tasks_and_a_guest_that_powers_itself_off_run_the_script_too(labs: Callable[[str], Lab]) -> None:
    lab = labs("rtx5090")
    lab.run("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets; qm stop 103")
    path = lab.root / SNIPPET.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/bash\necho "$2" | tee -a "$HOMELAB_ROOT/root/seen"\n[[ $2 != post-start ]]\n')
    path.chmod(0o755)
    assert lab.run(f"qm set 103 --hookscript {VOLUME}").returncode == 0
    upid = lab.ask_api("POST", f"{QEMU}/status/start")
    assert finish(lab, upid) == "OK"
    error = f"hookscript error for 103 on post-start: command '{SNIPPET} 103 post-start' failed: exit code 1"
    assert log_of(lab, upid) == ["pre-start", "post-start", error, "TASK OK"], "warnings fail nothing"
    seen_there = lab.root / "root/seen"
    answering: dict[str, Any] = {"for": "answering", "guest": 103, "seconds": 20}
    request(lab.state, "wait", **answering)
    request(lab.state, "poweroff", guest=103)
    wait_until(lambda: seen_there.read_text().split()[2:] == ["post-stop"])
