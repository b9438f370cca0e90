"""The engine killed (SIGKILL) at every resource boundary and in the middle of every script: the next `up` finishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from tests.e2e.conftest import PATIENCE_SECONDS, Stack, name_of
from tests.e2e.test_gpu_vm import given_back, running, with_card

CHAIN = ["pve-probe", "pve-iommu-cmdline", "pve-vfio-initramfs", "pve-vfio-cmdline", "pve-boot-reboot"]

# A script, and an argument that only its text has.
SCRIPTS = {
    "read_host": "GUESTS=yes",
    "cmdline iommu": "NAME=iommu",
    "vfio_initramfs": "NEEDED=yes",
    "cmdline vfio": "NAME=vfio",
    "reboot_host": "POLICY=auto",
    "read_host after the reboot": "GUESTS=no",
}


def wait_for_resource(stack: Stack, name: str) -> None:
    """Until the engine has logged that the resource is made. The log is a file: there is nothing to wait on but its growth."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for event in stack.events(partial=True):
            step = event.get("resOutputsEvent", {}).get("metadata")
            if step and name_of(step["urn"]) == name:
                return
        time.sleep(0.01)
    raise TimeoutError(f"{name} was not made")


def finishes_and_gives_everything_back(stack: Stack, stock: Mapping[str, object]) -> None:
    stack.lab.wait_idle()
    stack.lab.wait_settled()
    # Nothing is half-written: no temporary file is left where a boot would read it.
    names = stack.lab.snapshot("etc", "boot")
    assert not [path for path in names if path.endswith((".homelab-tmp", ".homelab-new"))]
    # The engine's lock on the stack outlives it; `pulumi up` says to call this.
    assert stack.run("cancel", "--yes").code == 0
    stack.up()
    assert stack.drivers()["0000:01:00.0"] == "vfio-pci"
    assert stack.up("--refresh").changed == set()
    stack.destroy()
    assert stack.lab.snapshot() == stock


@pytest.mark.parametrize("name", CHAIN)
def test_killed_after_a_resource_the_next_up_finishes(stack_on: Callable[..., Stack], name: str) -> None:
    stack = stack_on("rtx5090")
    stock = stack.lab.snapshot()
    process = stack.start("up", "--yes", "--skip-preview")
    wait_for_resource(stack, name)
    stack.kill(process)
    finishes_and_gives_everything_back(stack, stock)


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_during_a_script_the_next_up_finishes(stack_on: Callable[..., Stack], script: str) -> None:
    stack = stack_on("rtx5090")
    stock = stack.lab.snapshot()
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_command(SCRIPTS[script], timeout=PATIENCE_SECONDS)
    stack.kill(process)
    finishes_and_gives_everything_back(stack, stock)


def test_killed_during_a_destroy_the_next_one_finishes(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("rtx5090")
    stock = stack.lab.snapshot()
    stack.up()
    process = stack.start("destroy", "--yes", "--skip-preview")
    stack.lab.wait_command("NEEDED=yes", timeout=PATIENCE_SECONDS)
    stack.kill(process)
    stack.lab.wait_idle()
    assert stack.run("cancel", "--yes").code == 0
    stack.destroy()
    assert stack.lab.snapshot() == stock


# Requests, by which a run has got so far.
REQUESTS = (
    "POST /cluster/mapping/pci",
    "PUT /nodes/pve/qemu/103/config",
    "POST /nodes/pve/qemu/103/status/shutdown",
    "POST /nodes/pve/qemu/103/status/start",
)


def wait_for_request(stack: Stack, request: str) -> None:
    """Until the host's API was asked that. Its log is a file, too."""
    method, path = request.split()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(call["method"] == method and call["path"] == path for call in stack.lab.api_calls()):
        assert time.monotonic() < deadline, f"{request} was not asked"
        time.sleep(0.01)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("run", ["up", "destroy"])
def test_killed_while_a_vm_is_changed_the_next_run_finishes(
    stack_on: Callable[..., Stack], request_: str, run: str
) -> None:
    stack = stack_on("bound-by-hand", vms={"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}})
    stock = stack.lab.snapshot()
    if run == "destroy":
        if "mapping" in request_:
            request_ = "DELETE /cluster/mapping/pci/rtx5090"
        stack.up()
        (stack.lab.state / "log/api.jsonl").unlink()
    stack.lab.fault("task-seconds", 1)
    # Killed when the request has been carried out and nobody knows it: the answer doesn't come before that.
    stack.lab.fault("api-holds", request_)
    process = stack.start(run, "--yes", "--skip-preview")
    wait_for_request(stack, request_)
    stack.kill(process)
    stack.lab.fault("api-holds", None)
    stack.lab.fault("task-seconds", None)
    stack.lab.wait_idle()
    assert stack.run("cancel", "--yes").code == 0
    if run == "up":
        stack.up()
        assert with_card(stack)["0000:01:00.0"] == 103
        assert stack.up("--refresh").changed == set()
    stack.destroy()
    assert running(stack) == {103}
    given_back(stack, stock)
