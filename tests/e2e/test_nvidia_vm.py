"""NVIDIA's stack in a VM: from a stock host to a container with the card, mended, changed, purged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.scenario import SCENARIO_FOLDER
from tests.e2e.conftest import Stack
from tests.e2e.nvidia import WHOLE, inside, reached, with_stack

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
CARD = {"rtx5090": {"match": "10de:2b85"}}
SMI = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
STEPS = ["sandbox-system", "sandbox-packages", "sandbox-reboot"]
MORE = ["sandbox-toolkit", "sandbox-verified"]
DOCKER = "docker run --rm --gpus all nvidia/cuda:12.8.1-base-ubuntu24.04 nvidia-smi -L"


def test_from_a_stock_host_to_a_container_with_the_card_what_happens_to_that_later_another_branch_and_a_purge(
    stack_on: Callable[..., Stack], tmp_path: Path, subtests: pytest.Subtests
) -> None:

    def on_system(folder: Path, **system: Any) -> Path:
        """A stock host with another system in VM 103."""
        scenario = yaml.safe_load((SCENARIO_FOLDER / "rtx5090.yaml").read_text())
        next(guest for guest in scenario["guests"] if guest["id"] == 103)["system"] = system
        path = folder / "changed.yaml"
        path.write_text(yaml.safe_dump(scenario))
        return path

    stack = stack_on(on_system(tmp_path, distribution="debian-12"), gpus=CARD, vms=SANDBOX)
    nvidia = with_stack(stack, {**WHOLE, "onDestroy": "purge"})
    # Not root, but whoever the image has; and where the guest agent says that it is.
    stack.config["homelab:vms"]["sandbox"] |= reached(stack.lab, sudo=True) | {"address": "agent"}
    stack.lab.wait_guest(103)
    up = stack.up()
    with subtests.test("the order of the steps"):
        made = [name for operation, name in up.steps if operation == "create"]
        assert [name for name in made if name in (*STEPS, *MORE)] == [*STEPS, *MORE]
    with subtests.test("driver, CUDA and a container in the guest"):
        assert "GPU 0: NVIDIA GeForce RTX 5090" in inside(stack, DOCKER)
        assert "release 12.8" in inside(stack, "$HOMELAB_ROOT/usr/local/cuda-12.8/bin/nvcc --version")
        assert "Open Kernel Module" in inside(stack, "cat $HOMELAB_ROOT/proc/driver/nvidia/version")
    with subtests.test("outputs"):
        found = stack.output()["vms"]["sandbox"]["nvidia"]
        assert found["driver"].startswith("580.")
        assert (found["cuda"], found["flavour"], found["program"]) == ("12.8", "open", True)
        assert (found["container"], found["uvm"]) == (True, True)
        assert [card["name"] for card in found["gpus"]] == ["NVIDIA GeForce RTX 5090"]

    # As after a restored disk: another system, in which nothing tells of us.
    stack.lab.run("qm stop 103")
    shutil.rmtree(stack.lab.state / "guests/103/root")
    stack.lab.run("qm start 103")
    stack.lab.wait_guest(103)

    inside(stack, SMI, ok=False)
    # What dpkg notes of an engine stays with the owner's images and volumes.
    inventory = "dpkg -l | grep ^ii | tr -s [:blank:]; find $HOMELAB_ROOT/etc -type f | sort | xargs sha256sum"
    before = inside(stack, inventory)
    up = stack.up("--refresh")
    with subtests.test("another system, in which nothing tells of us"):
        assert "sandbox: drift: " in up.output
        assert {"sandbox-packages", *MORE} <= up.changed
        assert "GPU 0: NVIDIA GeForce RTX 5090" in inside(stack, DOCKER)

    # Restarted by somebody: nothing to mend. Then by us, with its host, before an option of its card comes into force: it is verified again, and nothing
    # else is done.
    stack.lab.run("qm stop 103; qm start 103")
    stack.lab.wait_guest(103)
    boots, of_host = len(stack.lab.guest_boots(103)), len(stack.lab.boots())
    stack.host["iommu"] = {"passthrough": False}
    stack.config["homelab:vms"]["sandbox"]["gpus"] = [{"gpu": "rtx5090", "rombar": False}]
    again = stack.up("--refresh")
    with subtests.test("a restart by somebody, and one by us"):
        assert again.found_changed == set(), again.output
        assert "sandbox-verified" in again.changed and "sandbox-packages" not in again.changed, again.output
        assert len(stack.lab.boots()) == of_host + 1 and len(stack.lab.guest_boots(103)) > boots

    # Another branch, which doesn't work after its boot: that is said.
    boots = len(stack.lab.guest_boots(103))
    nvidia["driver"] = "595"
    stack.lab.fault("gpu-fails", "595.")
    first = stack.up(ok=False)
    with subtests.test("another branch, which doesn't work"):
        assert "sandbox-toolkit" in first.changed
        assert len(stack.lab.guest_boots(103)) == boots + 1  # another module is loaded
    stack.lab.fault("gpu-fails", None)
    up = stack.up()
    with subtests.test("another branch"):
        assert stack.output()["vms"]["sandbox"]["nvidia"]["driver"].startswith("595.")
        assert "sandbox-verified" in up.changed

    stack.destroy()
    assert inside(stack, inventory) == before
