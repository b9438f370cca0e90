"""NVIDIA's driver on the host itself, for the cards that stay with it; and a host, a VM and two containers in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, name_of
from tests.e2e.nvidia import inside, inside_container, reached

SMI = "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"
KEPT = {"rtx5090": {"match": "10de:2b85", "use": "host"}}


def built(stack: Stack) -> dict[str, str]:
    """Kernel -> what DKMS says of the driver for it, on the host."""
    lines = stack.lab.run("dkms status").stdout.splitlines()
    found = (line.partition(": ") for line in lines if line.startswith("nvidia/") and "," in line)
    return {words.split(", ")[1]: state for words, _, state in found}


def test_a_stock_host_gets_the_driver_for_every_kernel_and_a_kernel_update_is_drift(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("rtx5090", gpus=KEPT, nvidia={"driver": "580", "onDestroy": "purge"})
    inventory = "dpkg-query -W | grep -v '^proxmox-kernel'; find $ROOT/etc/apt $ROOT/etc/modprobe.d $ROOT/etc/systemd -type f | sort | xargs sha256sum"
    before = stack.lab.run(inventory).stdout
    kernels = {path.name.removeprefix("vmlinuz-") for path in (stack.lab.root / "boot").glob("vmlinuz-*")}
    up = stack.up()
    assert "NVIDIA GeForce RTX 5090, 580." in stack.lab.run(SMI).stdout
    assert built(stack) == dict.fromkeys(kernels, "installed")
    found = stack.output()["hosts"]["pve"]["nvidia"]
    assert (found["flavour"], [card["name"] for card in found["gpus"]]) == ("open", ["NVIDIA GeForce RTX 5090"])
    # One reboot at most, for all layers, and after the modules were built for what may boot.
    assert len(stack.lab.boots()) <= 2
    done = [name for _, name in up.steps]
    assert done.index("pve-driver") < done.index("pve-reboot") < done.index("pve-verified")
    mark = stack.lab.mark()
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
    assert len(stack.lab.connections(mark)) == 1

    # A kernel update for which the module wasn't built.
    (newest,) = {kernel for kernel in built(stack)} & {stack.lab.run("uname -r").stdout.strip()}
    stack.lab.run(f"dkms uninstall nvidia/$(modinfo -F version nvidia) -k {newest}")
    assert "installed" not in built(stack).get(newest, "")
    up = stack.up("--refresh")
    assert "drift: driver" in up.output and newest in up.output
    assert {"pve-driver", "pve-verified"} <= up.changed
    assert built(stack)[newest] == "installed"

    stack.destroy()
    assert stack.lab.run(inventory).stdout == before


def test_a_host_a_vm_and_two_containers_take_one_connection_each_when_nothing_changes(
    stack_on: Callable[..., Stack],
) -> None:
    settings: dict[str, Any] = yaml.safe_load((PROJECT / "lab/stacks/mixed.yaml").read_text())
    containers = {name: {**one, "start": True, "nvidia": {}} for name, one in settings["containers"].items()}
    stack = stack_on("mixed", vms=settings["vms"], containers=containers, nvidia={"driver": "580"})
    stack.lab.run("qm set 103 --net0 virtio,bridge=vmbr0")
    vm = stack.config["homelab:vms"]["sandbox"]
    vm |= {**reached(stack.lab), "nvidia": {"driver": "580"}}
    # It is off: said before anything is changed.
    stock = stack.lab.snapshot()
    assert "vms.sandbox running" in stack.up(ok=False).message
    assert stack.lab.snapshot() == stock
    vm["power"] = "running"
    stack.up()
    assert "580." in inside(stack, SMI)
    host = set(stack.lab.run("nvidia-smi --query-gpu=driver_version --format=csv,noheader").stdout.split())
    for ctid in (201, 202):
        command = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
        assert set(inside_container(stack, ctid, command).split()) == host
    mark = stack.lab.mark()
    again = stack.up("--refresh")
    assert again.changed == set(), again.output
    assert (len(stack.lab.connections(mark)), len(stack.lab.connections(mark, guest=103))) == (1, 1)
    # What is the same for everybody lies on the host, and isn't in the state: each text would be tens of kilobytes.
    sent = {
        name_of(one["urn"]): len(one["inputs"]["stdin"])
        for one in stack.resources()
        if "stdin" in one.get("inputs", {})
    }
    assert {name for name, length in sent.items() if length > 12_000} == {"sandbox-repo", "sandbox-driver"}
