"""What the program refuses on a real host, and that the host is untouched then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.conftest import GPUS
from tests.metal.host import NEIGHBOUR, Hosts, MetalStack

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]

#: A table of one partition, from 1 MiB on, of 32 MiB.
ONE_PARTITION = """
import struct
entry = struct.pack("<8B2L", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, 65536)
with open("/dev/nvme0n1", "r+b") as disk:
    disk.write(bytes(446) + entry + bytes(48) + b"\\x55\\xaa")
"""


def refused(stack: MetalStack, *said: str) -> None:
    """An `up` that fails with these words and changes nothing: no file, no driver, no boot."""
    before = (stack.machine.files(), stack.machine.drivers(), stack.machine.boot_id())
    failed = stack.up(ok=False)
    for text in said:
        assert text in failed.message
    assert (stack.machine.files(), stack.machine.drivers(), stack.machine.boot_id()) == before


def test_identical_cards_must_be_told_apart(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.intel(), tmp_path / "stack", {"gpu": {"match": "1234:1111"}})
    refused(stack, "2: 0000:01:00, 0000:02:00", "identical cards can't be told apart by their id")


def test_a_host_without_an_iommu_is_told_to_switch_it_on_in_the_firmware(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.without_iommu(), tmp_path / "stack", GPUS)
    refused(stack, "wanted: Intel VT-d switched on in the firmware", "enter the firmware setup (BIOS/UEFI)")


def test_a_card_in_a_group_with_an_nvme_disk_is_refused_before_and_with_real_groups(
    hosts: Hosts, tmp_path: Path
) -> None:
    stack = hosts.stack(hosts.shared_group(), tmp_path / "stack", {"gpu": {"address": NEIGHBOUR[0]}})
    disk = "0000:03:00.0 NVMe disk"
    # The IOMMU is off: there are no groups, and what they are going to be is computed from the bridges' capabilities.
    assert stack.machine.run("ls /sys/kernel/iommu_groups") == ""
    refused(stack, f"it shares its predicted IOMMU group with {disk}")
    stack.machine.run("sed -i s/intel_iommu=off/intel_iommu=on/ /etc/default/grub && update-grub")
    stack.machine.reboot()
    assert stack.machine.run("ls /sys/kernel/iommu_groups") != ""
    refused(stack, f"it shares its IOMMU group with {disk}")
    group = stack.machine.run(f"ls /sys/bus/pci/devices/{NEIGHBOUR[0]}/iommu_group/devices").split()
    assert "0000:03:00.0" in group
    # It may be allowed to go, but not while something of the host's has claimed it, or a part of it.
    stack.config["homelab:hosts"]["pve"]["gpus"]["gpu"]["allowGroupMembers"] = ["0000:03:00.0"]
    stack.preview()
    stack.machine.run("python3 -", input=ONE_PARTITION)
    stack.machine.run("blockdev --rereadpt /dev/nvme0n1; udevadm settle")
    part = "/dev/nvme0n1p1"
    for claimed, given_back in (
        (f"mkfs.ext4 -qF {part}; mount {part} /mnt", "umount /mnt"),
        (f"mkswap {part}; swapon {part}", f"swapoff {part}"),
        (f"dmsetup create a --table '0 2048 linear {part} 0'", "dmsetup remove a"),
    ):
        stack.machine.run(claimed)
        refused(stack, "carries the disk nvme0n1 (in use)")
        stack.machine.run(given_back)
    stack.preview()
