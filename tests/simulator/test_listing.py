"""Scenarios out of listings of real machines: each capture becomes a host that shows the very same devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.listing import ListingError, parse_groups, parse_lspci, scenario_from_listing
from tests.conftest import SHARED, shared
from tests.lab.host_kit import Host

LISTINGS = sorted(
    str(path.relative_to(SHARED / "real_hosts"))
    for path in (SHARED / "real_hosts").glob("*/iommu_groups*.txt")
    if "as_written_by_author" not in path.name  # a sentence about two groups, without ids
) or ["no-captures/iommu_groups.txt"]


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_captured_machine_becomes_a_host_with_the_same_groups(tmp_path: Path, listing: str) -> None:
    path = shared("real_hosts", *listing.split("/"))
    details = "\n".join(p.read_text(encoding="utf-8") for p in sorted(path.parent.glob("lspci*.txt")))
    text = path.read_text(encoding="utf-8")
    expected = {address: device.group for address, device in parse_groups(text).items()}
    host = Host(tmp_path, scenario_from_listing(text, details, name=path.parent.name), running=True)
    shown = host.groups()
    assert {address: shown[address] for address in expected} == expected
    printed = host.output("lspci -nn").splitlines()
    for line in text.splitlines():
        if "]: " in line:
            wanted = re.sub(r"^\s*(IOMMU [Gg]roup \d+ )?(0000:)?", "", line)  # lspci has no domain where there is one
            assert wanted in printed


def test_bridges_are_found_by_the_order_in_which_buses_are_numbered() -> None:
    text = shared("real_hosts", "pve91-am5-arc-no-nvidia", "iommu_groups.txt").read_text(encoding="utf-8")
    parents = {f.address: f.parent for f in scenario_from_listing(text).functions()}
    assert parents["0000:09:00.0"] == "0000:08:01.0"
    assert parents["0000:08:01.0"] == "0000:07:00.0"
    assert parents["0000:12:00.0"] == "0000:00:08.1"
    assert parents["0000:00:01.1"] is None


def test_root_disk_network_and_console_are_chosen() -> None:
    text = shared("real_hosts", "z370-2080ti-2060", "iommu_groups.txt").read_text(encoding="utf-8")
    functions = {f.address: f for f in scenario_from_listing(text).functions()}
    assert functions["0000:03:00.0"].blocks[0].use == "root"
    assert functions["0000:00:1f.6"].nets[0].bridge == "vmbr0"
    assert functions["0000:01:00.0"].boot_vga, "no other display than NVIDIA's"


def test_a_listing_without_disk_and_card_gets_its_own_in_groups_of_their_own() -> None:
    scenario = scenario_from_listing(
        "IOMMU Group 51:\n        1d:00.0 VGA compatible controller [0300]: NVIDIA Corporation GA102 [10de:2204] (rev a1)\n"
    )
    groups = {f.address: f.group for f in scenario.functions()}
    assert groups == {"0000:1d:00.0": 51, "0000:fd:00.0": 52, "0000:fe:00.0": 53}


@pytest.mark.parametrize(
    "text",
    [
        "IOMMU Group 7 01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] (rev a1)",
        "IOMMU group 7 01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] (rev a1)",
        "IOMMU Group 7:\n\t01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] (rev a1)",
        "Group:  7   0000:01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] (rev a1)",
        "**IOMMU Group 7** 01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] (rev a1)",
        "IOMMU Group 7:\n\t01:00.0 0300: 10de:2b85 (rev a1)",
    ],
)
def test_the_forms_in_which_people_post_groups(text: str) -> None:
    found = parse_groups(f"root@pve:~# ./groups.sh\n{text}\nThat's it!\n")
    device = found["0000:01:00.0"]
    assert (len(found), device.group, device.vendor, device.device, device.pci_class, device.revision) == (
        1, 7, "10de", "2b85", "0300", "a1",
    )  # fmt: skip


def test_dmesg_and_find_give_groups_without_names() -> None:
    text = "[    0.3] pci 0000:01:00.0: Adding to iommu group 3\n/sys/kernel/iommu_groups/4/devices/0000:02:00.0\n"
    assert {a: d.group for a, d in parse_groups(text).items()} == {"0000:01:00.0": 3, "0000:02:00.0": 4}


def test_lspci_adds_subsystem_modules_and_built_in_drivers() -> None:
    text = shared("real_hosts", "z370-2080ti-2060", "lspci_vn_s_02_00.txt").read_text(encoding="utf-8")
    found = parse_lspci(text)
    card, usb = found["0000:02:00.0"], found["0000:02:00.2"]
    assert card.subsystem == "1458:3fc2"
    assert card.modules == ["nvidiafb", "nouveau", "nvidia_drm", "nvidia"]
    assert (usb.prog_if, usb.driver_in_use, usb.modules) == ("30", "xhci_hcd", None)
    groups = shared("real_hosts", "z370-2080ti-2060", "iommu_groups.txt").read_text(encoding="utf-8")
    functions = {f.address: f for f in scenario_from_listing(groups, text).functions()}
    assert functions["0000:02:00.2"].built_in
    assert functions["0000:02:00.0"].modules == ["nvidiafb", "nouveau"], "a stock host has no NVIDIA driver"


def test_settings_win_over_what_is_found(tmp_path: Path) -> None:
    text = "IOMMU Group 1 00:01.0 Host bridge [0600]: Intel Corporation Device [8086:3ec2]"
    scenario = scenario_from_listing(text, node="other", pve="8.4", boot={"cmdline": "quiet intel_iommu=on"})
    assert (scenario.node, scenario.cpu.vendor, scenario.kernels) == ("other", "GenuineIntel", ["6.8.12-9-pve"])
    assert Host(tmp_path, scenario, running=True).cmdline().endswith("quiet intel_iommu=on")


def test_a_text_without_groups_is_refused() -> None:
    with pytest.raises(ListingError, match="no IOMMU group"):
        parse_groups("nothing to see here\n")
