"""A card that goes to a VM and comes back many times: nothing is lost, and nothing grows. HOMELAB_EVERY_CUT=1: 200 times, else a few."""

from __future__ import annotations

import pytest

from tests import sampling
from tests.scripts import handover_kit
from tests.scripts.conftest import Folder
from tests.scripts.handover_kit import at_home, everything, with_the_vm
from tests.scripts.test_handover import STATE, made, program, run, state
from tests.scripts.test_handover_kills import ONLY, vm_locked

TIMES = 200 if sampling.EVERY else 3
STORY = "/var/lib/homelab/handover/log"


@pytest.mark.timeout(3600)  # 200 times take a quarter of an hour where the machine has other work
@ONLY
def test_after_many_turns_the_host_is_what_it_was(folder: Folder, only: bool) -> None:
    host = handover_kit.with_a_kernel(made(folder), only=only)
    run(host, "reconcile")
    # Of earlier turns, as much as is kept: it is cut in the first of these.
    host.write(STORY, "2026-01-01 00:00:00 big: an old line\n" * 3600)
    asked, most = host.write("/asked", ""), 0
    first = None
    for number in range(TIMES):
        with vm_locked(host):
            run(host, "hook", "103", "pre-start")
            assert with_the_vm(host), number
            run(host, "hook", "103", "post-stop")
        run(host, "reconcile")
        assert at_home(host, only=only), number
        # Files and their contents, nodes and what is in /run, a unit for each step, and each of them gone with its end.
        seen = sorted(everything(host.root)), sorted(path.name for path in (host.root / "run").rglob("*"))
        first = first or seen
        assert seen == first, number
        units = [line for line in asked.read_text().splitlines() if line]
        most = max(most, len(units))
        assert len(units) == most and all("--collect" in line.split() for line in units), number
        asked.write_text("")
        assert len(host.read(STORY)) <= 131072, "the story is no log without end"
    assert "an old line" in host.read(STORY) or TIMES > 3


def test_a_driver_that_was_unloaded_comes_back_with_its_numbers(folder: Folder) -> None:
    """vfio's own, which are given out when it is loaded first, are none that the driver has just freed: lines with the driver's would not be about it."""
    host = handover_kit.with_a_kernel(made(folder), only=True)
    host.write(
        "/etc/pve/lxc/950.conf",
        "hostname: media\nlxc.cgroup2.devices.allow: c 508:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n",
    )
    run(host, "hook", "103", "pre-start")
    assert with_the_vm(host) and "nvidia" not in host.read("/proc/devices").partition("195 nvidia")[2]
    run(host, "reconcile")
    assert at_home(host, only=True) and "508 nvidia-uvm\n" in host.read("/proc/devices")
    assert state(host) == "", host.read(STORY)


def test_numbers_that_are_again_those_of_then_are_others_than_in_between(folder: Folder) -> None:
    """508, then another, then 508: who could not be started in between has lines with the one in between."""
    host = handover_kit.with_a_kernel(made(folder), only=True)
    lines = "hostname: media\ndev0: /dev/nvidia0\nlxc.cgroup2.devices.allow: c 508:* rwm\n"
    conf = "/etc/pve/lxc/950.conf"
    host.write(conf, lines)
    host.write("/var/lib/homelab/containers/950/nodes", "ours\n")
    follows = (
        "import os, pathlib, re\nroot = os.environ['ROOT']\nconf = pathlib.Path(root + '/etc/pve/lxc/950.conf')\n"
        "now = re.search('([0-9]+) nvidia-uvm', pathlib.Path(root + '/proc/devices').read_text())[1]\n"
        "conf.write_text(re.sub('c [0-9]+:', f'c {now}:', conf.read_text()))\n"
    )
    host.write("/usr/local/sbin/homelab-card-nodes", follows, 0o755)
    run(host, "hook", "103", "pre-start")
    host.write("/proc/devices", host.read("/proc/devices").replace("devices:\n", "devices:\n508 cdc-wdm\n", 1))
    host.write("/fails", "pct start 950\n")
    run(host, "reconcile")
    assert state(host) == "HELD" and "c 508:" not in host.read(conf), host.read(STORY)
    host.write("/fails", "\n")
    run(host, "hook", "103", "pre-start")
    host.write("/proc/devices", host.read("/proc/devices").replace("508 cdc-wdm\n", ""))
    run(host, "reconcile")
    assert at_home(host, only=True) and state(host) == "" and "508 nvidia-uvm" in host.read("/proc/devices")
    assert host.read(conf) == lines


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("/etc/pve/lxc/951.conf", "lock: backup\nhostname: chat\n", "it is locked (backup)"),
        ("/etc/pve/ha/resources.cfg", "ct: 951\n\tstate started\n", "it is under HA by now"),
    ],
    ids=["locked", "under HA"],
)
def test_one_that_is_owed_a_start_and_runs_again_is_not_asked_to_go_where_it_would_not(
    folder: Folder, place: str, text: str, said: str
) -> None:
    """Somebody has started it, and taken the card out of it. Proxmox VE would note a failed task."""
    host = handover_kit.with_a_kernel(made(folder), only=True)
    host.write("/etc/pve/lxc/951.conf", "hostname: chat\n")
    host.write("/ct951", "running\n")
    boot = host.read("/proc/sys/kernel/random/boot_id").strip()
    host.write(STATE, f"state=HELD\nvm=103\nboot={boot}\nsince=1\nwhy=it has not started\ncontainers=951\n")
    host.write(place, text)
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert at_home(host, only=True) and host.read("/ct951") == "running\n"
