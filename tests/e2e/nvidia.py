"""What the tests of NVIDIA's stack share: a VM's settings with the way to its guest, commands inside guests."""

from __future__ import annotations

import subprocess
from typing import Any

from lab import Lab
from tests.e2e.conftest import Stack
from tests.waiting import PATIENCE

WHOLE = {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"}


def reached(lab: Lab, vmid: int = 103, *, sudo: bool = False) -> dict[str, Any]:
    """A VM's settings by which its guest is reached: as root, or as the user that its image has, with sudo."""
    guest = lab.guest(vmid)
    ssh = {name: guest[name] for name in ("port", "hostKey", "privateKeyFile")}
    if sudo:
        ssh["user"] = guest["user"]
    return {"address": guest["host"], "ssh": ssh}


def with_stack(stack: Stack, nvidia: dict[str, Any] | None = None) -> dict[str, Any]:
    """NVIDIA's stack in the VM of the settings; returned to be changed by a test."""
    settings: dict[str, Any] = stack.config["homelab:vms"]["sandbox"]
    settings |= {**reached(stack.lab, settings["vmid"]), "nvidia": dict(WHOLE if nvidia is None else nvidia)}
    stack.write_config()
    found: dict[str, Any] = settings["nvidia"]
    return found


def inside(stack: Stack, command: str, vmid: int = 103, *, ok: bool = True) -> str:
    """What a command prints in a VM, as root, over SSH."""
    guest = stack.lab.guest(vmid)
    options = [f"-oUserKnownHostsFile={guest['hostKeyFile']}", "-oStrictHostKeyChecking=no", "-oLogLevel=ERROR"]
    where = ["-i", guest["privateKeyFile"], "-p", str(guest["port"]), f"root@{guest['host']}"]
    done = subprocess.run(
        ["ssh", "-F", "none", *options, *where, command], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode == 0) is ok, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def inside_container(stack: Stack, ctid: int, command: str) -> str:
    """What a command prints in a container, by `pct exec`."""
    done = stack.lab.run(f"pct exec {ctid} -- bash -c '{command}'")
    return str(done.stdout + done.stderr)
