"""What the tests of NVIDIA's stack share: a VM's settings with the way to its guest, commands inside guests."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.e2e.conftest import Stack
from tests.lab.stack_kit import reached as reached
from tests.lab.stack_kit import shell
from tests.waiting import PATIENCE

WHOLE = {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"}


def with_stack(stack: Stack, nvidia: dict[str, Any] | None = None) -> dict[str, Any]:
    """NVIDIA's stack in the VM of the settings; returned to be changed by a test."""
    settings: dict[str, Any] = stack.config["homelab:vms"]["sandbox"]
    settings |= {**reached(stack.lab, settings["vmid"]), "nvidia": dict(WHOLE if nvidia is None else nvidia)}
    stack.write_config()
    found: dict[str, Any] = settings["nvidia"]
    return found


def inside(stack: Stack, command: str, vmid: int = 103, *, ok: bool = True) -> str:
    """What a command prints in a VM, as root, over SSH."""
    done = subprocess.run([*shell(stack.lab, vmid), command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode == 0) is ok, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def inside_container(stack: Stack, ctid: int, command: str) -> str:
    """What a command prints in a container, by `pct exec`."""
    done = stack.lab.run(f"pct exec {ctid} -- bash -c '{command}'")
    return str(done.stdout + done.stderr)
