"""The engine killed (SIGKILL) in the middle of steps of NVIDIA's stack, one after the other: the last `up` finishes.

Others each day (tests/sampling.py). In a container: tests/e2e/test_nvidia_lxc.py. That each script is finished from any of its commands: tests/scripts/test_nvidia_driver.py and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside, with_stack
from tests.e2e.test_nvidia_vm import DOCKER, SANDBOX
from tests.sampling import sample
from tests.waiting import PATIENCE

# What only that step's script has in it, in the order of the steps.
READING, REPOSITORY, DRIVER, CUDA, TOOLKIT = "ASK=", "APT_FILES=", "RUN_UNPINNED=", "NVCC=/usr", "NO_CGROUPS="
REBOOT, VERIFICATION = 'die "a reboot of this system"', "KERNEL_LOG="


def killed_at(stack: Stack, script: str, guest: int | None) -> None:
    """An `up` that is killed while that script runs on the host, or in a guest."""
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_command(script, timeout=PATIENCE, guest=guest)
    stack.kill(process)
    stack.lab.wait_disconnected(guest=guest)
    # The next one comes while the step still runs, and waits for it: nothing here does.
    assert stack.run("cancel", "--yes").code == 0


def test_a_vms_stack_killed_at_each_step_is_finished_by_the_last_run(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    nvidia = with_stack(stack)
    # The driver has been installed by the second one's time: another branch then takes a reboot, for the loaded module isn't the installed one.
    before, behind = (READING, REPOSITORY, DRIVER), (CUDA, TOOLKIT, VERIFICATION)
    for script in (*sample(before, 1, "steps in a VM"), *sample(behind, 1, "later steps in a VM")):
        killed_at(stack, script, 103)
    nvidia["driver"] = "595"
    killed_at(stack, REBOOT, 103)
    stack.up()
    assert "GPU 0: NVIDIA GeForce RTX 5090" in inside(stack, DOCKER)
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
