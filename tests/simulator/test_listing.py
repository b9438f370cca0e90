"""Scenarios out of listings of real machines: each capture becomes a host that shows the very same devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import SHARED, shared
from tests.lab.host_kit import Host
from tests.lab.listings import scenario_of

LISTINGS = sorted(
    str(path.relative_to(SHARED / "real_hosts"))
    for path in (SHARED / "real_hosts").glob("*/iommu_groups*.txt")
    if "as_written_by_author" not in path.name  # a sentence about two groups, without ids
) or ["no-captures/iommu_groups.txt"]


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_captured_machine_becomes_a_host_with_the_same_groups(tmp_path: Path, listing: str) -> None:
    path = shared("real_hosts", *listing.split("/"))
    text, scenario = path.read_text(encoding="utf-8"), scenario_of(path)
    added = {"0000:fd:00.0", "0000:fe:00.0"}
    expected = {function.address: function.group for function in scenario.functions() if function.address not in added}
    assert len(expected) == len(set(re.findall(r"\b[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b", text)))
    host = Host(tmp_path, scenario, running=True)
    shown = host.groups()
    assert {address: shown[address] for address in expected} == expected
    printed = host.output("lspci -nn").splitlines()
    for line in text.splitlines():
        if "]: " in line:
            wanted = re.sub(r"^\s*(IOMMU [Gg]roup \d+ )?(0000:)?", "", line)  # lspci has no domain where there is one
            assert wanted in printed


def test_bridges_are_found_by_the_order_in_which_buses_are_numbered() -> None:
    listing = shared("real_hosts", "pve91-am5-arc-no-nvidia", "iommu_groups.txt")
    parents = {f.address: f.parent for f in scenario_of(listing).functions()}
    assert parents["0000:09:00.0"] == "0000:08:01.0"
    assert parents["0000:08:01.0"] == "0000:07:00.0"
    assert parents["0000:12:00.0"] == "0000:00:08.1"
    assert parents["0000:00:01.1"] is None


def test_root_disk_network_and_console_are_chosen() -> None:
    listing = shared("real_hosts", "z370-2080ti-2060", "iommu_groups.txt")
    functions = {f.address: f for f in scenario_of(listing).functions()}
    assert functions["0000:03:00.0"].blocks[0].use == "root"
    assert functions["0000:00:1f.6"].nets[0].bridge == "vmbr0"
    assert functions["0000:01:00.0"].boot_vga, "no other display than NVIDIA's"
