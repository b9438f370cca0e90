"""`shutDown: holders`: containers in which nothing has the card open run on while a VM has it; on a folder whose kernel answers.

Killed at any command, cut off from power, booted: each container runs as before, or was restarted where it had to be.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts import handover_kit
from tests.scripts.conftest import Folder, empty_folder
from tests.scripts.handover_kit import HOLDERS, Left, at_home, holding, sweep, two_users, with_the_vm
from tests.scripts.test_handover import AUDIO, GPU, LINE, OTHER, STATE, just_now, made, program, run, state
from tests.scripts.test_handover_kills import booted, some, vm_locked

STORY = "/var/lib/homelab/handover/log"
AUTOLOAD = "/run/modprobe.d/homelab-handover.conf"


@pytest.fixture
def host(folder: Folder) -> Folder:
    return handover_kit.with_containers(handover_kit.with_a_kernel(made(folder), only=True))


@pytest.fixture
def lent(kept_systems: KeptSystems) -> Folder:
    """The same, with the card lent to the VM: 951 runs on."""

    def make(place: Path) -> Folder:
        host = handover_kit.with_containers(handover_kit.with_a_kernel(made(empty_folder(place)), only=True))
        start(host)
        return host

    return just_now(kept_systems.take("lent", make))


def start(host: Folder) -> subprocess.CompletedProcess[str]:
    return host.bash(program("hook", "103", "pre-start", shut_down=HOLDERS), parts=())


def back(host: Folder) -> None:
    run(host, "reconcile", shut_down=HOLDERS)


def both(host: Folder) -> tuple[bool, bool]:
    """Do 950 and 951 run?"""
    return host.read("/ct950") == "running\n", host.read("/ct951") == "running\n"


def ran_on(host: Folder) -> bool:
    """Was 951 never shut down?"""
    return "shutdown 951" not in host.read("/asked")


def as_before(host: Folder) -> bool:
    return at_home(host, only=True) and both(host) == (True, True) and not (host.root / AUTOLOAD[1:]).exists()


def given(host: Folder, *, other: str = "") -> None:
    """A driver that was loaded meanwhile has the major that nvidia-uvm had."""
    text = host.read("/proc/devices")
    assert "508" not in text
    host.write("/proc/devices", text.replace("devices:\n", f"devices:\n508 {other or 'cdc-wdm'}\n", 1))


def at_drain(host: Folder, text: str) -> None:
    """What happens after the first look, and before the second one."""
    command = (host.commands / "nvidia-smi").read_text().split("\n", 1)[1]
    host.command("nvidia-smi", f'if [[ "$*" == drain*-m\\ 1 ]]; then\n{text}\nfi\n{command}')


def test_who_does_not_use_it_runs_on_and_has_it_again(host: Folder) -> None:
    done = start(host)
    assert done.returncode == 0 and with_the_vm(host), done.stdout + done.stderr
    assert both(host) == (False, True) and "containers 951 run on" in done.stdout
    assert "containers=950\nstaying=951\nasked=\nfreed=508 \n" in host.read(STATE)
    assert "\nblacklist nvidia\n" in host.read(AUTOLOAD)
    host.write("/vm103", "running\n")
    back(host)
    assert both(host) == (False, True) and state(host) == "VM"
    host.write("/vm103", "stopped\n")
    back(host)
    assert as_before(host) and ran_on(host) and state(host) == "", host.read(STORY)


def test_without_the_setting_all_are_shut_down(host: Folder) -> None:
    run(host, "hook", "103", "pre-start")
    assert both(host) == (False, False) and "staying=\n" in host.read(STATE) and not (host.root / AUTOLOAD[1:]).exists()


def test_nobody_who_uses_it_runs_on(host: Folder) -> None:
    holding(host, 951)
    start(host)
    assert with_the_vm(host) and both(host) == (False, False)
    back(host)
    assert as_before(host)


@pytest.mark.parametrize(
    ("made_so", "why"),
    [
        ("echo 0x10de >$ROOT/sys/bus/pci/devices/{OTHER}/vendor", "this host has another card of NVIDIA's"),
        (
            "echo 0x10de >$ROOT/sys/bus/pci/devices/{OTHER}/vendor; echo 0x030200 >$ROOT/sys/bus/pci/devices/{OTHER}/class",
            "this host has another card of NVIDIA's",
        ),
        ("echo stat --cached >$ROOT/fails", "who has it open can't be told"),
        (
            "printf 'state=HELD\\nboot=boot\\ncontainers=960\\n' >$ROOT{STATE}; echo >$ROOT/etc/pve/lxc/960.conf; echo stopped >$ROOT/ct960",
            "not every container has got over the last handover (960)",
        ),
        ("sed -i '/195/d' $ROOT/proc/devices", "which numbers the driver has can't be told"),
        ("sed -i '/nvidia-uvm/d' $ROOT/proc/devices", "which numbers the driver has can't be told"),
        (
            "echo 0::/elsewhere >$ROOT/proc/40950/cgroup",
            "whether ollama (PID 40950), which has it open, is in a container can't be told",
        ),
    ],
)
def test_where_it_is_not_sure_all_are_shut_down(host: Folder, made_so: str, why: str) -> None:
    handover_kit.with_a_stat_that_can_fail(host)
    host.write(STATE, "")
    done = host.bash(made_so.format(OTHER=OTHER, STATE=STATE), parts=())
    assert done.returncode == 0, done.stderr
    done = start(host)
    assert f"all containers that have it are shut down: {why}" in done.stdout, done.stdout
    assert "shutdown 951" in host.read("/asked") and "containers 951 run on" not in done.stdout


def test_another_function_of_nvidias_is_no_other_card(host: Folder) -> None:
    """Such as a chipset's."""
    host.write(f"/sys/bus/pci/devices/{OTHER}/vendor", "0x10de\n")
    host.write(f"/sys/bus/pci/devices/{OTHER}/class", "0x060400\n")
    start(host)
    assert both(host) == (False, True)


def test_who_comes_to_use_it_between_two_looks_is_shut_down_after_all(host: Folder) -> None:
    at_drain(
        host,
        'mkdir -p "$ROOT/proc/40951/task"; ln -sfn .. "$ROOT/proc/40951/task/40951"; cp "$ROOT/maps" "$ROOT/proc/40951/"; '
        'echo chat >"$ROOT/proc/40951/comm"; echo 0::/lxc/951/ns/x >"$ROOT/proc/40951/cgroup"',
    )
    host.write("/maps", host.read("/proc/40950/maps"))
    done = start(host)
    assert done.returncode == 0 and with_the_vm(host), done.stdout
    assert (
        both(host) == (False, False)
        and "container 951 down, which doesn't run on: in use by chat (PID 40951 of container 951)" in done.stdout
    )
    back(host)
    assert as_before(host)


def test_what_no_look_shows_is_shown_by_the_module_that_does_not_go(host: Folder) -> None:
    host.write("/pins", "951")
    done = start(host)
    assert done.returncode == 0 and with_the_vm(host), done.stdout
    assert (
        both(host) == (False, False)
        and "container 951 down, which doesn't run on: the module nvidia is in use" in done.stdout
    )
    back(host)
    assert as_before(host)


def test_where_that_does_not_help_everybody_has_what_they_had(host: Folder) -> None:
    host.write("/in-use", "nvidia")
    done = start(host)
    assert done.returncode == 1 and "the module nvidia, which goes with its only card, is in use" in done.stdout
    assert as_before(host) and state(host) == "HELD", done.stdout


def test_where_the_driver_has_another_card_by_then_nobody_runs_on(host: Folder) -> None:
    """Which nobody unbinds while a container may open the card."""
    at_drain(host, f'ln -sfn ../../../../bus/pci/drivers/nvidia "$ROOT/sys/bus/pci/devices/{OTHER}/driver"')
    done = start(host)
    assert both(host) == (False, False) and "NVIDIA's driver has another card now" in done.stdout, done.stdout
    assert host.read("/asked").index("shutdown 951") < host.read("/asked").index("step_unbind")


def test_who_cannot_be_kept_from_loading_the_driver_does_not_run_on(host: Folder) -> None:
    host.write("/run/modprobe.d", "a file")
    done = start(host)
    assert done.returncode == 0 and with_the_vm(host) and both(host) == (False, False), done.stdout + done.stderr
    assert "what it opens could load the driver again" in done.stdout


@pytest.mark.parametrize(
    "taken",
    [
        "sed -i 's/^Character devices:/&\\n508 cdc-wdm/' $ROOT/proc/devices",
        "ln -sfn ../../devices/pci0000:00/0000:00:02.0/drm/card1 $ROOT/sys/dev/char/226:1",
        "rm $ROOT/proc/devices",
    ],
)
def test_one_whose_numbers_are_another_devices_does_not_run_on(host: Folder, taken: str) -> None:
    """Seen by the timer, while the VM runs."""
    host.write(f"/sys/bus/pci/devices/{GPU}/drm/card1/dev", "226:1\n")
    host.write("/sys/dev/char/.keep", "")
    start(host)
    assert both(host) == (False, True) and "freed=508 226:1 \n" in host.read(STATE)
    devices = host.read("/proc/devices")
    host.write("/vm103", "running\n")
    back(host)
    assert both(host) == (False, True)
    assert host.bash(taken, parts=()).returncode == 0
    back(host)
    assert both(host) == (False, False) and "staying=\n" in host.read(STATE), host.read(STORY)
    host.write("/proc/devices", devices)
    host.write("/vm103", "stopped\n")
    back(host)
    assert as_before(host) and state(host) == "", host.read(STORY)


def test_its_own_nodes_are_no_other_devices(host: Folder) -> None:
    host.write(f"/sys/bus/pci/devices/{GPU}/drm/card1/dev", "226:1\n")
    (host.root / "sys/dev/char").mkdir(parents=True)
    start(host)
    (host.root / "sys/dev/char/226:1").symlink_to(f"../../devices/pci0000:00/{GPU}/drm/card1")
    back(host)
    assert as_before(host) and ran_on(host), host.read(STORY)


def test_where_numbers_have_moved_it_is_restarted(lent: Folder) -> None:
    given(lent)
    back(lent)
    assert as_before(lent) and state(lent) == "", lent.read(STORY)
    asked = lent.read("/asked")
    assert asked.index("shutdown 951") < asked.index("start 951")


def test_lines_of_one_that_is_restarted_follow(host: Folder) -> None:
    """They don't while it runs (card_nodes_boot.sh)."""
    host.write("/var/lib/homelab/containers/951/nodes", "ours\n")
    host.write("/etc/pve/lxc/951.conf", "hostname: chat\ndev0: /dev/nvidia0\nlxc.cgroup2.devices.allow: c 508:* rwm\n")
    host.write(
        "/usr/local/sbin/homelab-card-nodes",
        '#!/bin/bash\n[[ $(<"$ROOT/ct951") == running ]] || sed -i "s/508/507/" "$ROOT/etc/pve/lxc/951.conf"\n',
        0o755,
    )
    start(host)
    given(host)
    back(host)
    assert as_before(host) and state(host) == "" and "c 507:* rwm" in host.read("/etc/pve/lxc/951.conf")


def test_a_number_that_is_another_drivers_although_nvidias_is_not_back(lent: Folder) -> None:
    """Its module couldn't be loaded: then it has no number that could have moved."""
    given(lent)
    lent.write("/fails", "modprobe nvidia_uvm\n")
    back(lent)
    assert "shutdown 951" in lent.read("/asked"), lent.read(STORY)


def third(host: Folder) -> None:
    """952 is another one in which nothing has the card open."""
    host.write("/etc/pve/lxc/952.conf", "hostname: more\ndev0: /dev/nvidia0\n")
    host.write("/ct952", "running\n")


def instance(host: Folder, ctid: int) -> None:
    """A control group anew, as each start of a container makes it."""
    folder = host.root / f"sys/fs/cgroup/lxc/{ctid}"
    if folder.exists():
        folder.rename(folder.with_name(f"{ctid}.before"))
    folder.mkdir(parents=True)


def held(host: Folder, fails: str = "pct shutdown 951") -> None:
    """951 has numbers of before, and can't be shut down: it is locked by a backup, such as at night."""
    instance(host, 951)
    start(host)
    given(host)
    host.write("/fails", f"{fails}\n")
    back(host)
    assert state(host) == "HELD", host.read(STORY)


def aged(host: Folder) -> None:
    """Half an hour, and more, has gone by."""
    host.write(
        STATE, "".join("since=1\n" if one.startswith("since=") else one for one in host.read(STATE).splitlines(True))
    )


def test_one_that_does_not_go_off_is_tried_again_for_as_long_as_that_takes(host: Folder) -> None:
    held(host)
    assert both(host) == (True, True), "the other one is started"
    assert "container 951 doesn't go off" in host.read(STATE)
    aged(host)
    back(host)
    assert state(host) == "HELD"
    host.write("/fails", "\n")
    back(host)
    assert as_before(host) and state(host) == "" and "start 951" in host.read("/asked"), host.read(STORY)


def test_one_that_somebody_restarts_by_hand_is_left(host: Folder) -> None:
    held(host)
    instance(host, 951)
    host.write("/fails", "\n")
    back(host)
    assert as_before(host) and state(host) == "", host.read(STORY)
    assert "start 951" not in host.read("/asked")


def test_one_that_does_not_go_off_keeps_nobody_else_on(host: Folder) -> None:
    """While the VM has the card; and at the return the other one is restarted once, and not each minute."""
    third(host)
    start(host)
    assert "staying=952 951\n" in host.read(STATE)
    host.write("/vm103", "running\n")
    host.write("/fails", "pct shutdown 952\n")
    given(host)
    back(host)
    assert both(host) == (False, False) and "staying=952\n" in host.read(STATE)
    host.write("/vm103", "stopped\n")
    for _ in range(3):
        back(host)
    assert both(host) == (True, True) and state(host) == "HELD"
    assert (host.read("/asked").count("\nshutdown 951"), host.read("/ct952")) == (1, "running\n")


def test_a_handover_before_it_could_be_restarted_forgets_no_numbers(host: Folder) -> None:
    held(host)
    done = start(host)
    assert done.returncode == 1 and "container 951 doesn't go off" in done.stdout
    host.write("/fails", "\n")
    done = start(host)
    assert done.returncode == 0 and with_the_vm(host) and both(host) == (False, False), done.stdout
    assert "numbers=0,508,," in host.read(STATE) and "507 nvidia-uvm" not in host.read("/proc/devices")
    back(host)
    assert as_before(host) and state(host) == "" and "0,508,, -> 0,50" in host.read(STORY)


def test_a_driver_that_answers_late_keeps_nobody_off_for_good(lent: Folder) -> None:
    """HELD; a number is another driver's by then, and who was started by hand is left alone."""
    lent.write("/ails", "")
    back(lent)
    assert state(lent) == "HELD" and "staying=951\n" in lent.read(STATE)
    aged(lent)
    (lent.root / "ails").unlink()
    lent.write("/ct950", "running\n")
    lent.write("/proc/devices", lent.read("/proc/devices").replace("508 nvidia-uvm", "508 cdc-wdm\n507 nvidia-uvm"))
    for _ in range(2):
        back(lent)
    assert as_before(lent) and state(lent) == "" and "shutdown 950" not in lent.read("/asked").partition("start 950")[2]


def test_numbers_that_are_not_there_yet_are_waited_for(lent: Folder) -> None:
    lent.write("/fails", "modprobe nvidia_uvm\nmodprobe nvidia-uvm\n")
    back(lent)
    assert state(lent) == "HELD" and both(lent) == (True, True), "the other one is started"
    assert "not all are there again (0,508,, -> 0,,,): 951" in lent.read(STATE)
    lent.write("/fails", "\n")
    given(lent)
    back(lent)
    assert as_before(lent) and state(lent) == "" and "start 951" in lent.read("/asked"), lent.read(STORY)


def test_who_was_started_by_hand_meanwhile_is_not_shut_down_with_them(lent: Folder) -> None:
    lent.write("/vm103", "running\n")
    lent.write("/ct950", "running\n")
    given(lent)
    back(lent)
    assert both(lent) == (True, False)


def test_another_card_that_comes_up_meanwhile_could_get_its_numbers(lent: Folder) -> None:
    lent.write("/vm103", "running\n")
    lent.write(f"/sys/bus/pci/devices/{OTHER}/vendor", "0x10de\n")
    back(lent)
    assert both(lent) == (False, False) and "another card of NVIDIA's by now" in lent.read(STORY)


def test_a_program_of_the_hosts_that_has_it_shuts_nobody_down_in_vain(host: Folder) -> None:
    holding(host, 952)
    host.write("/proc/40952/cgroup", "0::/system.slice/dcgm.service\n")
    done = start(host)
    assert done.returncode == 1 and "of dcgm.service" in done.stdout and ran_on(host), done.stdout


@pytest.mark.parametrize(("line", "stays"), [("dev1: /dev/snd/controlC1", False), ("dev1: /dev/fuse", True)])
def test_one_with_sound_goes_where_the_card_has_sound(host: Folder, line: str, stays: bool) -> None:
    """Its sound function is unbound, which waits for whoever has that open."""
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/dev", "116:9\n")
    host.write("/etc/pve/lxc/951.conf", f"hostname: chat\ndev0: /dev/nvidia0\n{line}\n")
    start(host)
    assert with_the_vm(host) and both(host) == (False, stays)


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (
            'mkdir -p "$p/task" "$p/fd"; ln -sfn .. "$p/task/40960"; : >"$p/maps"; echo mpd >"$p/comm"; '
            'ln -sfn /dev/null "$p/fd/3"; echo 0::/system.slice/mpd.service >"$p/cgroup"',
            "in use by mpd (PID 40960 of mpd.service)",
        ),
        ("echo stat --cached >$ROOT/fails", "who has its sound open can't be told"),
    ],
)
def test_sound_that_somebody_has_open_when_the_modules_are_gone_is_not_unbound(
    host: Folder, happens: str, said: str
) -> None:
    """Its numbers are here those of /dev/null, which can be opened."""
    handover_kit.with_a_stat_that_can_fail(host)
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/dev", "1:3\n")
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/uevent", "DEVNAME=snd/controlC1\n")
    (host.root / "dev/snd").mkdir()
    (host.root / "dev/snd/controlC1").symlink_to("/dev/null")
    command = (host.commands / "systemd-run").read_text().split("\n", 1)[1]
    host.command("systemd-run", f'p=$ROOT/proc/40960\n[[ "$*" != *"rmmod nvidia" ]] || {{ {happens}; }}\n{command}')
    done = start(host)
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert as_before(host) and "step_unbind big" not in host.read("/asked")


def test_one_whose_restart_failed_meanwhile_is_started_with_the_others(host: Folder) -> None:
    """As of a backup in stop mode: a node that it has is gone with the driver. Who was shut down stays off."""
    third(host)
    start(host)
    host.write("/ct951", "stopped\n")
    host.write("/ct952", "stopped\n")
    command = (host.commands / "systemctl").read_text().split("\n", 1)[1]
    host.command("systemctl", f'[[ "$*" != *is-failed*pve-container@951.service ]] || exit 0\n{command}')
    back(host)
    assert as_before(host) and state(host) == "" and host.read("/ct952") == "stopped\n", host.read(STORY)


def test_what_became_of_it_meanwhile_holds_nobody(lent: Folder) -> None:
    """It was destroyed; or shut down by somebody, and stays off."""
    (lent.root / "etc/pve/lxc/951.conf").unlink()
    given(lent)
    back(lent)
    assert at_home(lent, only=True) and state(lent) == "" and "start 951" not in lent.read("/asked")


def test_one_that_somebody_shut_down_stays_off_unless_it_must_be_restarted(lent: Folder) -> None:
    lent.write("/ct951", "stopped\n")
    back(lent)
    assert at_home(lent, only=True) and both(lent) == (True, False) and state(lent) == ""


def test_a_dead_cards_containers_know_no_other_device(lent: Folder) -> None:
    config = lent.root / f"sys/bus/pci/devices/{GPU}/config"
    config.write_bytes(b"\xff" * 64)
    back(lent)
    assert state(lent) == "DEAD" and both(lent) == (False, True)
    given(lent)
    back(lent)
    assert state(lent) == "DEAD" and both(lent) == (False, False)


def test_a_destroy_tells_of_one_that_could_not_be_restarted(lent: Folder) -> None:
    given(lent)
    lent.write("/fails", "pct shutdown\n")
    back(lent)
    done = lent.run("revert", scripts.handover([LINE + HOLDERS]))
    assert done.returncode == 0 and "container 951 has run on since VM 103 had the card" in done.stderr + done.stdout
    assert "`pct reboot 951`" in done.stderr + done.stdout


def test_a_rehearsal_says_who_would_run_on(host: Folder) -> None:
    before = [*handover_kit.everything(host.root)]
    done = host.run("rehearse", scripts.rehearse_card([LINE + HOLDERS], "big", 103))
    found = json.loads(done.stdout)
    assert (found["containers"], found["stays"], found["all_go"]) == (["950"], ["951"], ""), done.stdout
    assert [*handover_kit.everything(host.root)] == before
    host.write(f"/sys/bus/pci/devices/{OTHER}/vendor", "0x10de\n")
    found = json.loads(host.run("rehearse", scripts.rehearse_card([LINE + HOLDERS], "big", 103)).stdout)
    assert (found["containers"], found["stays"]) == (["951", "950"], [])
    assert found["all_go"].startswith("this host has another card of NVIDIA's")


# -- a second handover, and what goes on for long -------------------------------------------------------------------------
def test_a_second_handover_lets_it_run_on_again(host: Folder) -> None:
    for _ in range(2):
        assert "containers 951 run on" in start(host).stdout
        back(host)
        assert as_before(host) and ran_on(host) and state(host) == ""


def test_numbers_that_are_again_those_of_then_are_others_than_in_between(host: Folder) -> None:
    """508, then another, then 508: who was restarted in between has lines with the one in between."""
    third(host)
    lines = "hostname: more\ndev0: /dev/nvidia0\nlxc.cgroup2.devices.allow: c 508:* rwm\n"
    for ctid in (951, 952):
        host.write(f"/etc/pve/lxc/{ctid}.conf", lines)
        host.write(f"/var/lib/homelab/containers/{ctid}/nodes", "ours\n")
    follows = "now=$(sed -n 's/ nvidia-uvm$//p' $ROOT/proc/devices)\nfor c in 951 952; do [[ $(<$ROOT/ct$c) != stopped ]] || sed -i \"s/c [0-9]*:/c $now:/\" $ROOT/etc/pve/lxc/$c.conf; done\n"
    host.write("/usr/local/sbin/homelab-card-nodes", f"#!/bin/bash\n{follows}", 0o755)
    held(host)
    assert "c 508:" not in host.read("/etc/pve/lxc/952.conf") and "c 508:" in host.read("/etc/pve/lxc/951.conf")
    host.write("/fails", "\n")
    assert start(host).returncode == 0
    host.write("/proc/devices", host.read("/proc/devices").replace("508 cdc-wdm\n", ""))
    back(host)
    assert as_before(host) and state(host) == "" and "508 nvidia-uvm" in host.read("/proc/devices")
    assert [host.read(f"/etc/pve/lxc/{ctid}.conf") for ctid in (951, 952)] == [lines] * 2


def test_who_is_shut_down_before_the_next_handover_stays_off(lent: Folder) -> None:
    given(lent)
    conf = lent.read("/etc/pve/lxc/951.conf")
    lent.write("/etc/pve/lxc/951.conf", f"lock: backup\n{conf}")
    back(lent)
    assert state(lent) == "HELD"
    lent.write("/etc/pve/lxc/951.conf", conf)
    lent.write("/ct951", "stopped\n")
    start(lent)
    back(lent)
    assert both(lent) == (True, False) and state(lent) == "", lent.read(STORY)


def test_one_that_is_locked_is_not_asked_to_go(lent: Folder) -> None:
    """Proxmox VE would note a failed task each minute."""
    given(lent)
    lent.write("/etc/pve/lxc/951.conf", "lock: backup\nhostname: chat\ndev0: /dev/nvidia0\n")
    back(lent)
    aged(lent)
    back(lent)
    assert state(lent) == "HELD" and "it is locked (backup)" in lent.read(STATE) and "since=1\n" in lent.read(STATE)
    assert "shutdown 951" not in lent.read("/asked")
    lent.write("/etc/pve/lxc/951.conf", "hostname: chat\ndev0: /dev/nvidia0\n")
    back(lent)
    assert as_before(lent) and state(lent) == ""


def test_a_restart_that_failed_late_is_tried_for_half_an_hour_as_others_are(host: Folder) -> None:
    held(host)
    aged(host)
    back(host)
    host.write("/ct951", "stopped\n")
    command = (host.commands / "systemctl").read_text().split("\n", 1)[1]
    host.command("systemctl", f'[[ "$*" != *is-failed*pve-container@951.service ]] || exit 0\n{command}')
    host.write("/fails", "pct start 951\n")
    back(host)
    assert state(host) == "HELD" and both(host) == (True, False)
    host.write("/fails", "\n")
    back(host)
    assert as_before(host) and state(host) == "", host.read(STORY)


def test_a_late_restart_by_hand_ends_it(host: Folder) -> None:
    """Also of one that didn't start."""
    held(host, "pct shutdown 951\npct start 950")
    aged(host)
    back(host)
    instance(host, 951)
    host.write("/ct950", "running\n")
    back(host)
    assert as_before(host) and state(host) == "" and "start 951" not in host.read("/asked"), host.read(STATE)


def test_one_that_goes_off_later_than_it_was_waited_for_is_started(host: Folder) -> None:
    """Such as where a server of NFS doesn't answer: what shuts it down goes on in its unit."""
    held(host)
    host.write("/ct951", "stopped\n")
    host.write("/fails", "\n")
    back(host)
    assert as_before(host) and state(host) == "" and "start 951" in host.read("/asked")


def test_after_a_long_way_back_a_number_is_waited_for(lent: Folder) -> None:
    """What took long was another state's time."""
    lent.write(STATE, lent.read(STATE).replace("state=VM", "state=RETURNING"))
    aged(lent)
    lent.write("/fails", "modprobe nvidia_uvm\nmodprobe nvidia-uvm\n")
    back(lent)
    assert state(lent) == "HELD" and "not all are there again" in lent.read(STATE) and ran_on(lent)


def test_one_that_is_under_ha_by_now_is_not_asked_to_go(lent: Folder) -> None:
    given(lent)
    lent.write("/etc/pve/ha/resources.cfg", "ct: 951\n\tstate started\n")
    back(lent)
    assert state(lent) == "HELD" and "under HA by now" in lent.read(STATE) and ran_on(lent)


def test_nodes_are_made_anew_before_anybody_is_restarted_late(host: Folder) -> None:
    held(host)
    aged(host)
    host.write("/asked", "")
    host.write("/fails", "\n")
    back(host)
    asked = host.read("/asked")
    assert asked.index("step_nodes") < asked.index("start 951") and as_before(host)


def test_a_restart_by_hand_ends_the_wait_for_a_number(host: Folder) -> None:
    instance(host, 951)
    start(host)
    host.write("/fails", "modprobe nvidia_uvm\nmodprobe nvidia-uvm\n")
    back(host)
    assert state(host) == "HELD"
    instance(host, 951)
    back(host)
    assert state(host) == "" and "shutdown 951" not in host.read("/asked")


def test_after_half_an_hour_a_number_is_no_longer_waited_for(lent: Folder) -> None:
    lent.write("/fails", "modprobe nvidia_uvm\nmodprobe nvidia-uvm\n")
    back(lent)
    aged(lent)
    back(lent)
    assert both(lent) == (True, True) and state(lent) == "" and "start 951" in lent.read("/asked")


def test_after_half_an_hour_nothing_else_is_tried_on_its_account(host: Folder) -> None:
    """Somebody works on the driver, or has given the card to another one."""
    held(host)
    aged(host)
    link = host.root / f"sys/bus/pci/devices/{GPU}/driver"
    link.unlink()
    link.symlink_to("../../../../bus/pci/drivers/vfio-pci")
    (host.root / f"proc/driver/nvidia/gpus/{GPU}").rename(host.root / "kept" / GPU)
    asked = host.write("/asked", "")
    host.command("modprobe", 'echo modprobe >>"$ROOT/asked"')
    back(host)
    assert asked.read_text() == ""


@pytest.mark.parametrize("noted", ["VM", "RETURNING", "HELD"])
def test_an_empty_folder_of_proxmox_ve_is_no_destroyed_container(lent: Folder, noted: str) -> None:
    """Its service is restarted, such as by an upgrade."""
    lent.write("/vm103", "running\n")
    given(lent)
    if noted == "HELD":
        lent.write("/vm103", "stopped\n")
        lent.write("/fails", "pct shutdown 951\npct start 950\n")
        back(lent)
        assert state(lent) == "HELD"
    elif noted == "RETURNING":
        lent.write("/vm103", "stopped\n")
        lent.write(STATE, lent.read(STATE).replace("state=VM", "state=RETURNING"))
    (lent.root / "etc/pve/lxc").rename(lent.root / "etc/pve/lxc.away")
    lent.write("/fails", "pct\n")
    back(lent)
    (lent.root / "etc/pve/lxc.away").rename(lent.root / "etc/pve/lxc")
    lent.write("/fails", "\n")
    back(lent)
    assert both(lent) == ((False, False) if noted == "VM" else (True, True)) and "shutdown 951" in lent.read("/asked")


def test_numbers_of_its_sound_concern_nobody_who_runs_on(host: Folder) -> None:
    host.write(f"/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/dev", "116:9\n")
    start(host)
    assert "freed=508 \n" in host.read(STATE)


# -- killed ------------------------------------------------------------------------------------------------------------
def settled(host: Folder, left: Left) -> None:
    back(host)
    assert as_before(host) and not two_users(host), (
        f"HOMELAB_SEED={sampling.SEED} {left}: {state(host)} {host.read(STORY)}"
    )
    assert state(host) in ("", "HELD") and "staying=951" not in (host.read(STATE) if state(host) else ""), left


def test_a_start_that_is_killed_anywhere_is_undone_or_begun_again(host: Folder, tmp_path: Path) -> None:
    with vm_locked(host):
        found, _, _ = sweep(host, tmp_path / "start", "hook", "103", "pre-start", shut_down=HOLDERS)
    assert with_the_vm(host) and {left.noted for left in found} >= {"", "DRAINING", "FREE", "DETACHED", "VM"}
    for left, then in some([(left, then) for left in found for then in ("service", "start")], "holders"):
        left.back(host)
        if then == "start":
            with vm_locked(host):
                done = start(host)
            assert with_the_vm(host), f"HOMELAB_SEED={sampling.SEED} {left}: {done.stdout}{host.read(STORY)}"
        settled(host, left)


@pytest.mark.parametrize("moved", [False, True], ids=["the same numbers", "others"])
def test_a_way_back_that_is_killed_anywhere_is_finished_by_the_service(
    lent: Folder, tmp_path: Path, moved: bool
) -> None:
    if moved:
        given(lent)
    found, _, _ = sweep(lent, tmp_path / "service", "reconcile", shut_down=HOLDERS)
    assert as_before(lent) and state(lent) == "" and ran_on(lent) is not moved
    for left in some(found, f"holders back {moved}"):
        left.back(lent)
        settled(lent, left)
        assert ran_on(lent) is not moved or left.noted == "", left


def test_one_that_must_not_run_on_is_not_forgotten_by_a_kill(lent: Folder, tmp_path: Path) -> None:
    lent.write("/vm103", "running\n")
    given(lent)
    found, _, _ = sweep(lent, tmp_path / "watch", "reconcile", shut_down=HOLDERS)
    assert both(lent) == (False, False)
    for left in some(found, "holders watch"):
        left.back(lent)
        back(lent)
        assert both(lent) == (False, False), left
        lent.write("/vm103", "stopped\n")
        settled(lent, left)


def test_what_is_left_to_restart_is_not_forgotten_by_a_kill(host: Folder, tmp_path: Path) -> None:
    held(host)
    host.write("/fails", "\n")
    found, _, _ = sweep(host, tmp_path / "held", "reconcile", shut_down=HOLDERS)
    assert as_before(host)
    for left in some(found, "holders held"):
        left.back(host)
        settled(host, left)
        assert state(host) == "", left


def test_a_start_in_which_it_must_go_after_all_is_killed_anywhere(host: Folder, tmp_path: Path) -> None:
    host.write("/pins", "951")
    with vm_locked(host):
        found, _, _ = sweep(host, tmp_path / "start", "hook", "103", "pre-start", shut_down=HOLDERS)
    assert with_the_vm(host) and both(host) == (False, False)
    for left in some(found[len(found) // 2 :], "holders pinned"):
        left.back(host)
        settled(host, left)


def test_a_power_cut_at_any_command_ends_with_the_boot(host: Folder, tmp_path: Path) -> None:
    with vm_locked(host):
        found, _, on_disk = sweep(host, tmp_path / "start", "hook", "103", "pre-start", shut_down=HOLDERS)
    for files in some(on_disk, "holders disk"):
        booted(host, files, found[0].folder, "running\n")
        back(host)
        assert as_before(host) and state(host) == "", host.read(STORY)
