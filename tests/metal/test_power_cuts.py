"""The power is cut at any moment: the host boots, the next `up` finishes, `destroy` gives every byte back.

QEMU is killed: what the guest hadn't written to its disk is gone, as with a plug that is pulled. A moment is drawn from a seed, and
told with a failure. `make test-metal CUTS=50 SEED=7` takes as many as wanted; without, one for each phase, some ten minutes.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.metal.conftest import GPUS, FirstUp
from tests.metal.host import CARD, Hosts, MetalStack
from tests.metal.test_bound import begin_reboot

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]

SEED = os.environ.get("SEED", "1")
# In the order in which they are most worth it, should somebody want fewer.
PHASES = ("after destroy", "during up", "during destroy", "after up", "during a trial")
CUTS = int(os.environ.get("CUTS") or len(PHASES))

# How long a host goes on changing files while it goes back, on an idle machine: moments are drawn from that, in seconds. Measured with two emulated
# processors, and reckoned for the one there is now, with which the core tests take 1.7 times as long.
ROLL_BACK_SECONDS = 25.0 * 1.7

# Two of the files that a run writes, one of them first made by it; what is drawn is when, not what.
TAMPER = "rm /etc/initramfs-tools/scripts/init-top/homelab-vfio; echo '#' >>/etc/default/grub.d/zz-homelab-iommu.cfg"


class Moment:
    """When the power is cut. ``str`` says all that is needed to cut it there again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.phase = PHASES[number % len(PHASES)]
        self._random = random.Random(f"{SEED} {number}")

    def within(self, seconds: float) -> float:
        return self._random.uniform(0, seconds)

    def __str__(self) -> str:
        return f"{self.phase} (CUTS={self.number + 1} SEED={SEED})"


def begun(stack: MetalStack, verb: str) -> tuple[subprocess.Popen[bytes], float]:
    """A run, and when it has begun to change the host."""
    process, deadline = stack.start(verb, "--yes", "--skip-preview"), time.monotonic() + stack.patience
    while not stack.machine.run("pgrep -f 'agent.pyz (apply|revert)' || :", check=False):
        assert process.poll() is None and time.monotonic() < deadline, "no script has run"
    return process, time.monotonic()


def cut_after(stack: MetalStack, verb: str, seconds: float) -> None:
    """So long after a run has begun to change the host, neither the host nor the run is there any more."""
    process, _ = begun(stack, verb)
    with pytest.raises(subprocess.TimeoutExpired):  # else it had come to its end
        process.wait(seconds)
    # A run that still saw its host go would end by itself, within a second.
    stack.kill(process)
    stack.machine.stop()


def boot_again(stack: MetalStack) -> None:
    stack.machine.start()
    stack.machine.wait_for_ssh()
    stack.run("cancel", "--yes")  # the lock of a run that was killed, if there is one


def finishes_and_gives_everything_back(stack: MetalStack, before: FirstUp) -> None:
    stack.up("--refresh")
    assert {stack.machine.drivers()[one] for one in CARD} == {"vfio-pci"}
    assert stack.up("--refresh").changed == set()
    stack.destroy()
    assert stack.machine.files() == before.files_before


def after_destroy(moment: Moment, hosts: Hosts, first_up: FirstUp, folder: Path) -> None:
    stack = hosts.stack(hosts.intel("bound"), folder, GPUS, first_up.kept)
    stack.destroy()
    stack.machine.stop()
    boot_again(stack)
    # No stack is left that could mend anything.
    assert stack.machine.files() == first_up.files_before
    assert stack.machine.drivers() == first_up.drivers_before


def during_up(moment: Moment, hosts: Hosts, first_up: FirstUp, folder: Path) -> None:
    stack = hosts.stack(hosts.intel(), folder.with_name("first"), GPUS)
    process, began = begun(stack, "up")
    begin_reboot(stack)
    seconds = time.monotonic() - began
    stack.kill(process)
    stack = hosts.stack(hosts.intel(), folder, GPUS)
    cut_after(stack, "up", moment.within(seconds))
    boot_again(stack)
    finishes_and_gives_everything_back(stack, first_up)


def during_destroy(moment: Moment, hosts: Hosts, first_up: FirstUp, folder: Path) -> None:
    stack = hosts.stack(hosts.intel("bound"), folder.with_name("first"), GPUS, first_up.kept)
    process, began = begun(stack, "destroy")
    assert process.wait() == 0
    seconds = time.monotonic() - began
    stack = hosts.stack(hosts.intel("bound"), folder, GPUS, first_up.kept)
    # The last fifth is the engine's own, and another run may be quicker.
    cut_after(stack, "destroy", moment.within(0.8 * seconds))
    boot_again(stack)
    stack.destroy()
    assert stack.machine.files() == first_up.files_before


def after_up(moment: Moment, hosts: Hosts, first_up: FirstUp, folder: Path) -> None:
    stack = hosts.stack(hosts.intel("bound"), folder, GPUS, first_up.kept)
    files = stack.machine.files()
    stack.machine.run(TAMPER)
    stack.up("--refresh")
    stack.machine.stop()
    boot_again(stack)
    assert stack.machine.files() == files
    assert {stack.machine.drivers()[one] for one in CARD} == {"vfio-pci"}
    assert stack.up("--refresh").changed == set()


def during_a_trial(moment: Moment, hosts: Hosts, first_up: FirstUp, folder: Path) -> None:
    stack = hosts.stack(hosts.intel("bound"), folder, GPUS, first_up.kept)
    stack.host["iommu"] = {"passthrough": False}
    stack.host["timeouts"] |= {"connect": 15, "rollback": 60}
    process = stack.start("up", "--yes", "--skip-preview")
    begin_reboot(stack)
    stack.machine.connect_network(False)
    stack.machine.wait_for_reset(600)  # ours; the trial ends a minute after the boot's start
    time.sleep(moment.within(60 + ROLL_BACK_SECONDS))
    stack.kill(process)
    stack.machine.stop()
    boot_again(stack)
    finishes_and_gives_everything_back(stack, first_up)


CUT: dict[str, Callable[[Moment, Hosts, FirstUp, Path], None]] = {
    "after destroy": after_destroy,
    "during up": during_up,
    "during destroy": during_destroy,
    "after up": after_up,
    "during a trial": during_a_trial,
}


@pytest.mark.parametrize("moment", [Moment(number) for number in range(CUTS)], ids=str)
def test_a_power_cut_loses_nothing(hosts: Hosts, first_up: FirstUp, tmp_path: Path, moment: Moment) -> None:
    CUT[moment.phase](moment, hosts, first_up, tmp_path / "stack")
