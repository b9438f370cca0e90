"""NVIDIA's stack in a VM: from a stock host to a container with the card, mended, changed, purged."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside, with_stack

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
STEPS = ["sandbox-nvidia-system", "sandbox-nvidia-repository", "sandbox-nvidia-driver", "sandbox-nvidia-reboot"]
MORE = ["sandbox-nvidia-cuda", "sandbox-nvidia-toolkit", "sandbox-nvidia-verification"]
DOCKER = "docker run --rm --gpus all nvidia/cuda:12.8.1-base-ubuntu24.04 nvidia-smi -L"


def test_from_a_stock_host_to_a_container_with_the_card(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("rtx5090", vms=SANDBOX)
    with_stack(stack)
    up = stack.up()
    made = [name for operation, name in up.steps if operation == "create"]
    assert [name for name in made if name in (*STEPS, *MORE)] == [*STEPS, *MORE]
    assert "GPU 0: NVIDIA GeForce RTX 5090" in inside(stack, DOCKER)
    assert "release 12.8" in inside(stack, "$ROOT/usr/local/cuda-12.8/bin/nvcc --version")
    assert "Open Kernel Module" in inside(stack, "cat $ROOT/proc/driver/nvidia/version")
    found = stack.output()["vms"]["sandbox"]["nvidia"]
    assert found["driver"].startswith("580.")
    assert (found["cuda"], found["flavour"], found["program"], found["container"]) == ("12.8", "open", True, True)
    assert [card["name"] for card in found["gpus"]] == ["NVIDIA GeForce RTX 5090"]

    boots = len(stack.lab.guest_boots(103))
    mark = stack.lab.mark()
    assert stack.up().changed == set()
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
    assert (len(stack.lab.connections(mark)), len(stack.lab.connections(mark, guest=103))) == (1, 1)
    assert len(stack.lab.guest_boots(103)) == boots
