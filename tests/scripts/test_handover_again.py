"""A card that goes to a VM and comes back many times: nothing is lost, and nothing grows. HOMELAB_EVERY_CUT=1: 200 times, else a few."""

from __future__ import annotations

import pytest

from tests import sampling
from tests.scripts import handover_kit
from tests.scripts.conftest import Folder
from tests.scripts.handover_kit import at_home, everything, with_the_vm
from tests.scripts.test_handover import made, run, state
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
