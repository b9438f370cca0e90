"""The same on AMD's processor and IOMMU, and on a host that UEFI starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.conftest import GPUS
from tests.metal.host import CARD, NEIGHBOUR, Hosts, MetalStack, own_drivers

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]


def bound_by_one_reboot(stack: MetalStack, *words: str) -> None:
    boots = stack.boots()
    stack.up()
    assert stack.boots() == boots + 1
    drivers = stack.drivers()
    assert {drivers[one] for one in CARD} == {"vfio-pci"}
    assert {one: drivers[one] for one in NEIGHBOUR} == own_drivers(*NEIGHBOUR)
    assert set(words) <= set(stack.machine.run("cat /proc/cmdline").split())
    assert stack.output()["hosts"]["pve"]["iommu"]["groups"] > 0
    assert stack.up("--refresh").changed == set()


def test_amd(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.amd(), tmp_path / "stack", GPUS)
    bound_by_one_reboot(stack, "amd_iommu=on", "iommu=pt")
    assert any("AMD-Vi" in line for line in stack.output()["hosts"]["pve"]["iommu"]["kernelLog"])


def test_uefi_with_grub(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.uefi(), tmp_path / "stack", GPUS)
    assert "firmware/efi" in stack.machine.run("ls -d /sys/firmware/efi")
    bound_by_one_reboot(stack, "intel_iommu=on", "iommu=pt")
