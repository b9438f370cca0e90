"""What stands against a card in a container: one clear message each, and the configuration as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_lxc import NO_REBOOT, PHOENIX, conf, containers, opens


def refused(stack: Stack, wanted: str, found: str, before: str) -> None:
    """A preview and a run refuse it alike, and nothing is changed."""
    for result in (stack.preview(ok=False), stack.up(ok=False)):
        assert wanted in result.output
        assert found in result.output
        assert result.output.count("wanted:") >= 1
    assert conf(stack, 901) == before


@pytest.mark.parametrize(
    ("changes", "wanted", "found"),
    [
        ({"ctid": 999}, "container 999, to be adopted as containers.phoenix", "901 (ai-lab), 950 (media)"),
        ({"ctid": 103}, "container 103, as containers.phoenix", "103 is a virtual machine (Sandbox)"),
        (
            {"gpuAssignment": "2"},
            "card 2 (gpuAssignment) for containers.phoenix",
            "0 (RTX 5090 [10de:2b85] at 0000:01:00), 1 (RTX 4090 [10de:2684] at 0000:02:00)",
        ),
    ],
    ids=["unknown", "a VM's", "no such card"],
)
def test_settings_that_do_not_fit_the_host(
    untouched: Callable[..., Stack], changes: dict[str, Any], wanted: str, found: str
) -> None:
    stack = untouched("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    containers(stack)["phoenix"] |= changes
    refused(stack, wanted, found, conf(stack, 901))


def test_a_locked_container(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    path = stack.lab.root / "etc/pve/lxc/901.conf"
    path.write_text(path.read_text().replace("memory:", "lock: backup\nmemory:"))
    refused(stack, "container 901, as containers.phoenix, free to be changed", "it is locked: backup", path.read_text())


def test_a_missing_module_for_cuda(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    stack.lab.fault("nvidia-uvm-missing")
    stack.lab.reboot()
    refused(stack, "/dev/nvidia-uvm, of the module nvidia-uvm", "has no module nvidia-uvm", conf(stack, 901))


def test_a_driver_that_is_not_loaded_and_one_that_is_not_there(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    blacklist = stack.lab.root / "etc/modprobe.d/no-nvidia.conf"
    blacklist.write_text("blacklist nvidia\nblacklist nvidia_drm\nblacklist nvidia_uvm\n")
    stack.lab.run("update-initramfs -u -k all")
    stack.lab.reboot()
    assert not (stack.lab.root / "proc/driver/nvidia/version").exists()
    refused(stack, "NVIDIA's driver loaded on the host", "it is blacklisted", conf(stack, 901))


def test_a_host_without_the_driver(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("rtx5090", gpus={}, containers={"box": {"ctid": 901, "gpuAssignment": "0"}}, **NO_REBOOT)
    (stack.lab.root / "etc/pve/lxc/901.conf").write_text("arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n")
    refused(stack, "NVIDIA's driver loaded on the host", "the driver isn't installed", conf(stack, 901))


def test_a_card_on_vfio_pci_and_one_of_a_vm(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    before = conf(stack, 901)
    stack.lab.run("qm stop 103; qm set 103 --hostpci0 0000:02:00")
    refused(stack, "card 1 (gpuAssignment)", "0000:02:00 is given to VM 103 (Sandbox)", before)
    stack.lab.rebind("0000:02:00.0", "vfio-pci")
    refused(stack, "card 1 (gpuAssignment)", "0000:02:00 is bound to vfio-pci for VM 103 (Sandbox)", before)


def test_a_container_that_will_not_shut_down_runs_on_as_it_was_or_is_stopped(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus={}, containers=PHOENIX, **NO_REBOOT)
    containers(stack)["phoenix"]["shutdown"] = {"timeout": 1}
    before = conf(stack, 901)
    stack.lab.fault("guest-ignores-shutdown", "901")
    up = stack.up(ok=False)
    assert "container 901 off within 1 s" in up.output
    assert "it runs on, and its configuration is as it was before" in up.output
    assert conf(stack, 901) == before
    containers(stack)["phoenix"]["shutdown"]["otherwise"] = "stop"
    stack.up()
    assert opens(stack, 901, "/dev/nvidia0")
