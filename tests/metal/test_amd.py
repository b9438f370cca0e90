"""The same on AMD's processor and IOMMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.conftest import GPUS
from tests.metal.host import CARD, NEIGHBOUR, Hosts, own_drivers

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]


def test_from_stock_to_bound_by_one_reboot(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.amd(), tmp_path / "stack", GPUS)
    boots = stack.boots()
    stack.up()
    assert stack.boots() == boots + 1
    drivers = stack.drivers()
    assert {drivers[one] for one in CARD} == {"vfio-pci"}
    assert {one: drivers[one] for one in NEIGHBOUR} == own_drivers(*NEIGHBOUR)
    assert {"amd_iommu=on", "iommu=pt"} <= set(stack.machine.run("cat /proc/cmdline").split())
    output = stack.output()["hosts"]["pve"]
    assert output["iommu"]["groups"] > 0
    assert any("AMD-Vi" in line for line in output["iommu"]["kernelLog"])
    assert stack.up("--refresh").changed == set()
