"""From a stock host to a card on vfio-pci, by one reboot of a real kernel; and nothing more to do then."""

from __future__ import annotations

import pytest

from tests.metal.conftest import FirstUp
from tests.metal.host import CARD, IDS, NEIGHBOUR, MetalStack, own_drivers

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]


@pytest.mark.core
def test_from_stock_to_bound_by_one_reboot(first_up: FirstUp) -> None:
    assert {one: first_up.drivers_before[one] for one in (*CARD, *NEIGHBOUR)} == own_drivers(*CARD, *NEIGHBOUR)
    assert first_up.boots == first_up.boots_before + 1
    assert {one for one, driver in first_up.drivers.items() if driver == "vfio-pci"} == set(CARD)
    # An identical card keeps its drivers.
    assert {one: first_up.drivers[one] for one in NEIGHBOUR} == own_drivers(*NEIGHBOUR)
    # Loaded by the initramfs's script, vfio-pci took both; the card's own driver, which is in the initramfs too, never saw it.
    for function in CARD:
        assert f"homelab-vfio: {function} for vfio-pci, driver now: vfio-pci" in first_up.kernel_log
    drivers = [line for line in first_up.kernel_log.splitlines() if "bochs-drm" in line or "snd_hda_intel" in line]
    assert drivers
    assert not [line for line in drivers if CARD[0][:-2] in line]


@pytest.mark.core
def test_what_was_verified_is_what_the_kernel_says(bound: MetalStack) -> None:
    output = bound.output()["hosts"]["pve"]
    functions = {one["address"]: one for one in output["gpus"]["gpu"]["functions"]}
    assert {address: one["id"] for address, one in functions.items()} == {one: IDS[one[-2:]] for one in CARD}
    assert output["kernel"] == bound.machine.run("uname -r").strip()
    assert output["bootId"] == bound.machine.boot_id()
    groups = bound.machine.run("cd /sys/kernel/iommu_groups; ls -d */devices/*").splitlines()
    assert output["iommu"]["groups"] == len({line.split("/")[0] for line in groups}) > 0
    for address, one in functions.items():
        assert one["driver"] == "vfio-pci"
        assert f"{one['iommuGroup']}/devices/{address}" in groups
    words = bound.machine.run("cat /proc/cmdline").split()
    assert {"intel_iommu=on", "iommu=pt"} <= set(words)


@pytest.mark.core
def test_another_up_and_a_refresh_find_nothing_to_do(bound: MetalStack) -> None:
    before = bound.machine.boot_id()
    assert bound.up().changed == set()
    assert bound.up("--refresh").changed == set()
    assert bound.machine.boot_id() == before
