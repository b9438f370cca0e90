"""What can go wrong with NVIDIA's stack: one clear message each, before or at the step it concerns, and the next `up` goes on, as it does after one that
was killed (SIGKILL) in the middle of a step.

In which steps it is killed, the seed says (tests/sampling.py). In a container: tests/e2e/test_nvidia_lxc.py. That each script is finished from any of its commands:
tests/agent/test_nvidia_packages.py and its siblings.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import yaml

from tests.e2e.conftest import Stack
from tests.e2e.nvidia import WHOLE, inside, with_stack
from tests.e2e.test_nvidia_vm import DOCKER, SANDBOX
from tests.sampling import sample
from tests.waiting import PATIENCE

# What only that step's script or request has in it, in the order of the steps.
READING, PACKAGES, TOOLKIT = '"layer": "read_system"', '"layer": "nvidia_packages"', '"layer": "container_toolkit"'
REBOOT, VERIFICATION = '"layer": "reboot_guest"', '"layer": "nvidia_verification"'
# In the order of the steps, so that each `up` goes on a little further: fault, value, the resource that fails, what is said, what that step has in it.
FAULTS: list[tuple[str, Any, str, tuple[str, ...], str]] = [
    ("guest-unreachable", 103, "sandbox-system", ("vms.sandbox in reach", "its console in Proxmox VE"), READING),
    ("dkms-fails", True, "sandbox-packages", ("make.log",), PACKAGES),
]


def killed_at(stack: Stack, script: str, guest: int | None) -> None:
    """An `up` that is killed while that script runs on the host, or in a guest."""
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_command(script, timeout=PATIENCE, guest=guest)
    stack.kill(process)
    stack.lab.wait_disconnected(guest=guest)
    # The next one comes while the step still runs, and waits for it: nothing here does.
    stack.unlock()


def test_each_failure_is_named_once_the_next_run_goes_on_and_no_secret_is_told_or_kept_in_the_open(
    stack_on: Callable[..., Stack],
) -> None:

    def set_secret(stack: Stack, path: str, value: str) -> None:
        """As a person does it, who is asked for the value."""
        file = stack.folder / "Pulumi.lab.yaml"
        where = ["--stack", "lab", "--cwd", str(stack.project), "--config-file", str(file)]
        command = [str(stack.engine.pulumi), "config", "set", "--secret", "--path", path, value, *where]
        subprocess.run(command, env=stack.environment, check=True, capture_output=True)
        stack.config = yaml.safe_load(file.read_text())["config"]

    stack = stack_on("bound-by-hand", vms=SANDBOX)
    # A card that fails: tests/e2e/test_nvidia_vm.py.
    with_stack(stack, {"driver": "570", "cuda": "13.0"})
    assert "CUDA 13.0" in stack.preview(ok=False).message
    with_stack(stack, {"driver": "580"})["timeouts"] = {"reboot": 5}
    stack.write_config()
    set_secret(stack, "homelab:vms.sandbox.nvidia.proxy", "http://user:hunter2@proxy.lan:3128")
    nvidia, told = stack.config["homelab:vms"]["sandbox"]["nvidia"], ""
    killed = sample((READING, PACKAGES), 1, "steps in a VM")
    for fault, value, resource, said, script in FAULTS:
        stack.lab.fault(fault, value)
        run = stack.up(ok=False)
        told += run.output
        stack.lab.fault(fault, None)
        for text in ("wanted:", "next:", *said):
            assert text in run.message, f"{fault}: {run.message}"
        assert resource in failed(stack), f"{fault}: {run.message}"
        if fault == "guest-unreachable":
            stack.lab.wait_guest(103)
            nvidia["timeouts"]["reboot"] = 120
        if script in killed:
            killed_at(stack, script, 103)
    told += stack.up().output
    assert "580." in inside(stack, "nvidia-smi --query-gpu=driver_version --format=csv,noheader")

    # Killed in later steps. Another branch takes a reboot, for the loaded module isn't the installed one.
    nvidia |= {**WHOLE, "driver": "595"}
    for script in sample((PACKAGES, REBOOT, TOOLKIT, VERIFICATION), 1, "later steps in a VM"):
        killed_at(stack, script, 103)
    stack.up()
    assert "GPU 0: NVIDIA GeForce RTX 5090" in inside(stack, DOCKER)
    again = stack.up("--refresh")
    assert again.changed == set(), again.output

    told += "".join(path.read_text(errors="replace") for path in stack.folder.rglob("*.json*"))
    places = [match.start() for match in re.finditer("hunter2", told)]
    assert places == [], [told[max(0, place - 300) : place + 30] for place in places[:3]]
    assert "hunter2" not in inside(stack, "grep -rs hunter2 $HOMELAB_ROOT/etc $HOMELAB_ROOT/var || true")


def failed(stack: Stack) -> set[str]:
    """The resources of which the engine's log has an error."""
    found = [event["diagnosticEvent"] for event in stack.events() if "diagnosticEvent" in event]
    return {one["urn"].rpartition("::")[2] for one in found if one["severity"] == "error" and one.get("urn")}
