"""What can go wrong with NVIDIA's stack: one clear message each, before or at the step it concerns, and the next `up` goes on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside, with_stack

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
# In the order of the steps, so that each `up` goes on a little further: fault, value, the resource that fails, what is said.
FAULTS: list[tuple[str, Any, str, tuple[str, ...]]] = [
    ("guest-unreachable", 103, "sandbox-system", ("vms.sandbox in reach", "its console in Proxmox VE")),
    ("apt-offline", True, "sandbox-repo", ("network",)),
    ("key-wrong", "cuda", "sandbox-repo", ("EB693B3035CD5710E231E123A4B469963BF863CC",)),
    ("apt-locked", 600, "sandbox-driver", ("lock",)),
    ("disk-full", True, "sandbox-driver", ("the disk is full",)),
    ("download-corrupt", True, "sandbox-driver", ("Hash Sum mismatch",)),
    ("dkms-fails", True, "sandbox-driver", ("make.log",)),
    ("gpu-fails", 79, "sandbox-verified", ("Xid 79", "power the host off")),
]


def test_each_failure_is_named_once_and_the_next_run_goes_on(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    nvidia = with_stack(stack, {"driver": "580"})
    nvidia["timeouts"] = {"lock": 2, "reboot": 5}
    for fault, value, resource, said in FAULTS:
        stack.lab.fault(fault, value)
        message = stack.up(ok=False).message
        stack.lab.fault(fault, None)
        for text in ("wanted:", "next:", *said):
            assert text in message, f"{fault}: {message}"
        assert resource in failed(stack), f"{fault}: {message}"
        if fault == "guest-unreachable":
            stack.lab.wait_guest(103)
            nvidia["timeouts"]["reboot"] = 120
        if fault == "gpu-fails":
            stack.lab.run("qm stop 103; qm start 103")
            stack.lab.wait_guest(103)
    stack.up()
    assert "580." in inside(stack, "nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def failed(stack: Stack) -> set[str]:
    """The resources of which the engine's log has an error."""
    found = [event["diagnosticEvent"] for event in stack.events() if "diagnosticEvent" in event]
    return {one["urn"].rpartition("::")[2] for one in found if one["severity"] == "error" and one.get("urn")}


def packages(stack: Stack) -> str:
    return inside(stack, "dpkg-query -W; ls $ROOT/etc/apt/sources.list.d $ROOT/usr/share/keyrings")


def test_secure_boot_is_said_before_anything_is_installed(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    stack.lab.run(
        "qm set 103 --efidisk0 local-lvm:1,efitype=4m,pre-enrolled-keys=1; qm stop 103; qm start 103", check=False
    )
    stack.lab.wait_guest(103)
    with_stack(stack)
    before = packages(stack)
    message = stack.up(ok=False).message
    assert "Secure Boot is on" in message and "mokutil --import" in message and "pre-enrolled-keys" in message
    assert packages(stack) == before


@pytest.mark.parametrize(
    ("nvidia", "said"),
    [
        ({"driver": "565"}, "branch 570 or later, with the open kernel modules"),
        ({"driver": "580", "flavour": "proprietary"}, "kernel modules that fit cards and driver"),
        ({"driver": "570", "cuda": "13.0"}, "CUDA 13.0"),
        ({"driver": 580}, "in quotes"),
    ],
)
def test_what_can_never_work_is_refused_without_the_host(
    untouched: Callable[..., Stack], nvidia: dict[str, Any], said: str
) -> None:
    stack = untouched("bound-by-hand", vms=SANDBOX)
    with_stack(stack, nvidia)
    mark = stack.lab.mark()
    assert said in stack.preview(ok=False).message
    assert stack.lab.connections(mark) == []


def set_secret(stack: Stack, path: str, value: str) -> None:
    """As a person does it, who is asked for the value."""
    file = stack.folder / "Pulumi.lab.yaml"
    where = ["--stack", "lab", "--cwd", str(stack.project), "--config-file", str(file)]
    command = [str(stack.engine.pulumi), "config", "set", "--secret", "--path", path, value, *where]
    subprocess.run(command, env=stack.environment, check=True, capture_output=True)
    stack.config = yaml.safe_load(file.read_text())["config"]


def test_no_secret_is_told_or_kept_in_the_open(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    with_stack(stack, {"driver": "580"})
    set_secret(stack, "homelab:vms.sandbox.nvidia.proxy", "http://user:hunter2@proxy.lan:3128")
    run = stack.run("up", "--yes", "--skip-preview")  # whether there is such a proxy doesn't matter here
    assert "sandbox-system" in run.changed
    state = "".join(path.read_text(errors="replace") for path in stack.folder.rglob("*.json"))
    places = [match.start() for match in re.finditer("hunter2", run.output + state)]
    assert places == [], [(run.output + state)[max(0, place - 300) : place + 30] for place in places[:3]]
    assert "hunter2" not in inside(stack, "grep -rs hunter2 $ROOT/etc $ROOT/var || true")
