"""The engine killed (SIGKILL) in the middle of scripts and requests, at moments that the seed says (tests/sampling.py): the next run finishes.

Where that one comes alone, for what a third run might make good: tests/e2e/test_make.py.
"""

from __future__ import annotations

import copy
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.engine import install
from remote_scripts.both import reboot
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import given_back, with_card
from tests.sampling import sample
from tests.waiting import PATIENCE, wait_until

# The scripts that an `up` runs, in that order, by an argument that only the script's text has.
SCRIPTS = {
    "read_host": '"guests": true',
    "cmdline iommu": '"name": "iommu"',
    "initramfs": '"layer": "initramfs"',
    "cmdline vfio": '"name": "vfio"',
    "reboot": '"layer": "reboot"',
    "read_host after the reboot": '"guests": false',
}
# The first that pulumi-command has done: its request has a line for each part.
STEP = '{\n "layer": "cmdline"'
# The first that changes anything: the run has the host by then.
WITH_ANOTHER_RUN = SCRIPTS["cmdline iommu"]


def comes_to_rest(stack: Stack) -> None:
    """After a kill: what runs on the host ends, and the engine's lock, which outlives it, is released as `pulumi up` says."""
    stack.lab.wait_idle()
    stack.lab.wait_settled()
    # Nothing is half-written: no temporary file is left where a boot would read it.
    names = stack.lab.snapshot("etc", "boot")
    assert not [path for path in names if path.endswith((".homelab-tmp", ".homelab-new"))]
    assert stack.run("cancel", "--yes").code == 0


@pytest.mark.one_of("killed runs")
def test_of_two_runs_the_second_gets_one_sentence_each_goes_on_where_one_was_killed_and_the_last_finishes_and_a_destroy_too(
    stack_on: Callable[..., Stack], engine: install.Engine, tmp_path: Path
) -> None:
    """One stack for all scripts: an `up` that is killed in one must have come past every earlier one. That a script itself is finished from any
    of its commands is shown without an engine (tests/agent)."""

    def a_second_run_gets_one_sentence(stack: Stack, engine: install.Engine, folder: Path) -> None:
        """Of a stack with a state of its own, as from another machine."""
        folder.mkdir()
        second = Stack(folder, engine, copy.deepcopy(stack.config), lab=stack.lab)
        second.create()
        refused = second.up(ok=False)
        assert refused.message.count("wanted:") == 1, refused.message
        assert "to be the only run at work on this host" in refused.message and "since 20" in refused.message

    stack = stack_on("rtx5090")
    stack.host["timeouts"]["rollback"] = 600  # the boot is confirmed two runs later
    stock = stack.lab.snapshot()
    others = [script for script in SCRIPTS.values() if script != WITH_ANOTHER_RUN]
    tried = {WITH_ANOTHER_RUN, *sample(others, 1, "scripts of an up")}
    for script in (one for one in SCRIPTS.values() if one in tried):
        stack.lab.fault("script-hangs", script if script == WITH_ANOTHER_RUN else None)
        process = stack.start("up", "--yes", "--skip-preview")
        stack.lab.wait_command(script, timeout=PATIENCE)
        if script == WITH_ANOTHER_RUN:
            a_second_run_gets_one_sentence(stack, engine, tmp_path / "second")
        stack.kill(process)
        stack.lab.fault("script-hangs", None)
        comes_to_rest(stack)
    assert stack.run("refresh", "--clear-pending-creates", "--yes").code == 0
    assert "pending operations" not in stack.up().output
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"
    assert [boot["reason"] for boot in stack.lab.boots()] == ["start", "reboot"]
    assert stack.up("--refresh").changed == set()
    # And a destroy.
    process = stack.start("destroy", "--yes", "--skip-preview")
    stack.lab.wait_command('"layer": "initramfs"', timeout=PATIENCE)
    stack.kill(process)
    stack.lab.wait_idle()
    stack.unlock()
    stack.destroy()
    given_back(stack, stock)


# Requests, by which a run has got so far.
MAPPED, CONFIGURED = "POST /cluster/mapping/pci", "PUT /nodes/pve/qemu/103/config"
OFF, ON = "POST /nodes/pve/qemu/103/status/shutdown", "POST /nodes/pve/qemu/103/status/start"
UNMAPPED = "DELETE /cluster/mapping/pci/rtx5090"


def killed_at(stack: Stack, run: str, request: str) -> None:
    """A run that is killed when a request has been carried out and nobody knows it: the answer doesn't come before that. What the host itself
    asks for, it brings to its end."""
    mark = stack.lab.mark()
    stack.lab.fault("api-holds", request)
    process = stack.start(run, "--yes", "--skip-preview")
    method, path = request.split()
    deadline = time.monotonic() + PATIENCE
    # Its log is a file, too.
    while not any(call["method"] == method and call["path"] == path for call in stack.lab.api_calls(mark)):
        assert time.monotonic() < deadline and process.poll() is None, f"{request} was not asked"
        time.sleep(0.01)
    stack.kill(process)
    stack.lab.fault("api-holds", None)
    stack.lab.wait_idle()
    stack.unlock()


@pytest.mark.one_of("killed runs")
@pytest.mark.parametrize(
    ("in_up", "in_destroy"),
    sample([(MAPPED, CONFIGURED), (CONFIGURED, OFF), (OFF, ON), (ON, UNMAPPED)], 1, "requests of an up and a destroy"),
)
def test_each_run_that_changes_a_vm_goes_on_where_the_one_before_was_killed(
    stack_on: Callable[..., Stack], in_up: str, in_destroy: str
) -> None:
    stack = stack_on("bound-by-hand", vms={"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}})
    stock = stack.lab.snapshot()
    killed_at(stack, "up", in_up)
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    assert stack.up("--refresh").changed == set()
    killed_at(stack, "destroy", in_destroy)
    stack.destroy()
    assert stack.machine.guests_on() == {103}
    given_back(stack, stock)


@pytest.mark.one_of("killed runs")
def test_a_run_whose_host_says_nothing_more_ends_with_a_sentence_and_the_next_run_goes_on(
    stack_on: Callable[..., Stack],
) -> None:
    """The lab's server is stopped in the middle of a step: the kernel takes connections, and nobody answers, as where all
    programs of a host wait for a dead disk. pulumi-command waits for ever. That takes a minute, in which nothing is computed; which hosts, and when:
    tests/unit/test_silent_host.py.
    """
    stack = stack_on("rtx5090")
    usual = {**stack.host["timeouts"]}
    stack.host["timeouts"].update(step=5, connect=3)
    stack.lab.fault("script-hangs", STEP)
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_command(STEP, timeout=PATIENCE)
    server = stack.lab.status()["pid"]
    os.kill(server, signal.SIGSTOP)
    try:
        assert process.wait(PATIENCE) != 0
    finally:
        os.kill(server, signal.SIGCONT)
    said = (stack.folder / "killed.log").read_text()
    assert "wanted: pve to answer within 5 s" in said and "^C received; terminating" in said, said
    stack.lab.fault("script-hangs", None)
    comes_to_rest(stack)
    stack.host["timeouts"] = usual
    stack.up()
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"


def test_ctrl_c_ends_a_step_where_it_waits_and_the_next_run_goes_on(stack_on: Callable[..., Stack]) -> None:
    """pulumi-command ends nothing at Ctrl-C, but the host is told. Where a step ends: tests/agent/test_run_guard.py."""
    stack = stack_on("rtx5090")
    log = stack.folder / "killed.log"
    with (stack.lab.root / "run/vzdump.lock").open("w") as backup:  # for which a restart waits three minutes
        fcntl.flock(backup, fcntl.LOCK_EX)
        process = stack.start("up", "--yes", "--skip-preview")
        wait_until(lambda: log.exists() and "pve-reboot creating" in log.read_text())
        time.sleep(3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) != 0
        assert time.monotonic() - began < reboot.TURN_SECONDS / 2
        stack.lab.wait_idle()
    said = log.read_text()
    assert "wanted: the run at work that has started this step" in said, said
    assert [boot["reason"] for boot in stack.lab.boots()] == ["start"]
    stack.up()
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"
