"""A reading: the IOMMU's groups, the firmware's tables, interrupts, what isolates devices; the kernel's picture in cards' memory."""

from __future__ import annotations

import pytest

from tests.agent.kit import Host
from tests.agent.reading_kit import host as host
from tests.agent.reading_kit import link, read, says

LSPCI = """\
0000:00:01.0 PCI bridge: a
	Capabilities: [58] Express (v2) Root Port (Slot+), IntMsgNum 0
	Capabilities: [2a0 v1] Access Control Services
		ACSCap:	SrcValid+
0000:01:00.0 VGA compatible controller: b
	Capabilities: [78] Express (v2) Legacy Endpoint, MSI 00
0000:02:00.0 PCI bridge: c
	Capabilities: [80] Express (v1) PCI-Express to PCI/PCI-X Bridge, MSI 00
0000:03:00.0 Audio device: d
	Capabilities: [50] Power Management version 2
"""


def group(host: Host, name: str, regions: str) -> None:
    host.write(f"sys/kernel/iommu_groups/{name}/reserved_regions", regions)


MSI = "0x00000000fee00000 0x00000000feefffff msi\n"


def test_of_each_group_what_is_to_be_mapped_1_to_1_is_passed_on(host: Host) -> None:
    group(host, "0", f"{MSI}0x000000fd00000000 0x000000ffffffffff reserved\n")
    last = "0xfffffffffffff000 0xffffffffffffffff direct\n"
    group(host, "16", f"0x000000009d800000 0x000000009fffffff direct\n{MSI}{last}")
    group(host, "17", f"0x000000007b800000 0x000000007fffffff direct-relaxable\n{MSI}")
    found = read(host).iommu
    assert found.groups == 3
    assert found.direct == {16: ["0x9d800000-0x9fffffff", "0xfffffffffffff000-0xffffffffffffffff"]}


@pytest.mark.parametrize(
    ("regions", "direct"),
    [
        ("", {}),
        ("0x1 0x2 direct", {7: ["0x1-0x2"]}),  # without a newline at the end
        ('"},"x":"\n0x1 0x2 direct"\n0x1 $(id) direct\n0x1 0x2 direct x\n', {}),
        ("0x00000000000000001 0x2 direct\n1 2 direct\n", {}),
        ("\udcff0x1 0x2 direct\n".encode("utf-8", "surrogateescape").decode("latin-1"), {}),
    ],
)
def test_whatever_stands_there_the_answer_is_one(host: Host, regions: str, direct: dict[int, list[str]]) -> None:
    group(host, "7", regions)
    assert read(host).iommu.direct == direct


def test_without_groups_there_is_nothing_to_say(host: Host) -> None:
    found = read(host).iommu
    assert (found.groups, found.direct, found.interrupts) == (0, {}, "")


def test_a_group_that_vfio_makes_without_an_iommu_is_none(host: Host) -> None:
    """Of a mediated device such as GVT-g's, and with enable_unsafe_noiommu_mode."""
    for number, name in (("0", "vfio-noiommu\n"), ("1", "other\n")):
        host.write(f"sys/kernel/iommu_groups/{number}/name", name)
        host.function(f"0000:0{number}:00.0", "0x030000")
        link(host, f"sys/bus/pci/devices/0000:0{number}:00.0/iommu_group", f"sys/kernel/iommu_groups/{number}")
    facts = read(host)
    assert facts.iommu.groups == 1 and [device.group for device in facts.devices] == [None, 1]
    (host.root / "sys/kernel/iommu_groups/1/name").write_text("vfio-noiommu\n")
    host.programs["lspci"] = says("0000:00:00.0 x\n\tCapabilities: [2a0 v1] Access Control Services\n")
    host.function("0000:00:00.0", "0x060400")
    assert read(host).devices[0].acs, "the groups are predicted"


def test_a_group_whose_regions_cannot_be_read_is_noted(host: Host) -> None:
    regions = "sys/kernel/iommu_groups/3/reserved_regions"
    (host.root / regions).mkdir(parents=True)
    assert read(host).unreadable == [f"/{regions}: it is no file"]


def test_the_firmwares_tables_are_told_by_their_names(host: Host) -> None:
    host.write("sys/firmware/acpi/tables/IVRS", "")
    assert read(host).iommu.tables == ["IVRS"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  0:  11  IR-IO-APIC    2-edge  timer\n 26:  0  PCI-MSI-0000:00:00.2   0-edge  AMD-Vi\n", "remapped"),
        (" 41:  1  IR-PCI-MSIX-0000:01:00.0  0-edge  nvme0q0\n", "remapped"),
        ("  0:  11  IO-APIC    2-edge  timer\n 41:  1  PCI-MSI 524288-edge  nvme0q0\n", "plain"),
        ("NMI:  0  Non-maskable interrupts\n", ""),
        (None, ""),
    ],
)
def test_how_interrupts_come_is_told_by_the_names_of_their_chips(host: Host, text: str | None, said: str) -> None:
    if text is not None:
        host.write("proc/interrupts", text)
    assert read(host).iommu.interrupts == said


@pytest.mark.parametrize(
    ("cmdline", "acs", "asked"),
    [("quiet", False, False), ("quiet", True, True), ("quiet pcie_acs_override=downstream", False, True)],
)
def test_what_isolates_devices_is_asked_where_groups_may_change(
    host: Host, cmdline: str, acs: bool, asked: bool
) -> None:
    host.programs["lspci"] = says(LSPCI)
    host.write("proc/cmdline", f"{cmdline}\n")
    group(host, "1", MSI)
    for address in ("0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        host.function(address, "0x030000", "8086")
    found = {one.address: (one.acs, one.express) for one in read(host, acs=acs).devices}
    kinds = [(True, "root port"), (False, "legacy endpoint"), (False, "pci-express to pci/pci-x bridge"), (False, "")]
    assert list(found.values()) == (kinds if asked else [(False, "")] * 4)


# -- the kernel's picture in cards' memory (/proc/iomem) ------------------------------------------------------------
AMD_CARD = "0000:c3:00.0"
# A card's memory above 4 GiB, as siderolabs/talos issue 14356 shows it; and an old one's below.
HIGH = """\
2800000000-2fffffffff : PCI Bus 0000:c3
  2800000000-2fffffffff : 0000:c3:00.0
    2800000000-2801fa3fff : BOOTFB
      2800000000-2801fa3fff : simpledrm
"""
LOW = "d0000000-dfffffff : 0000:c3:00.0\n  d0000000-d02fffff : efifb\n"


def card(host: Host, ranges: str, address: str = AMD_CARD, code: str = "0x038000") -> None:
    host.function(address, code, "1002:1586", resource=ranges)


def resource(first: str, last: str) -> str:
    empty = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    return f"0x{first:0>16} 0x{last:0>16} 0x000000000014220c\n{empty * 12}"


@pytest.mark.parametrize(
    ("iomem", "ranges", "found"),
    [
        (HIGH, resource("2800000000", "2fffffffff"), ["BOOTFB", "simpledrm"]),
        (LOW, resource("d0000000", "dfffffff"), ["efifb"]),
        # The picture isn't below the card's line: only the ranges tell.
        ("d0000000-d02fffff : BOOTFB\n", resource("d0000000", "dfffffff"), ["BOOTFB"]),
        (HIGH, resource("d0000000", "dfffffff"), None),
        ("d0000000-dfffffff : 0000:c3:00.0\n  d0000000-dfffffff : vfio-pci\n", resource("d0000000", "dfffffff"), None),
        # Not root: zeros.
        ("00000000-00000000 : BOOTFB\n", resource("0", "dfffffff"), None),
        ("d0000000-d02fffff : BOOTFB $(id)\nx-y : BOOTFB\n\n : BOOTFB", resource("d0000000", "dfffffff"), None),
        (LOW, "", None),
        (LOW, "garbage\n0xd0000000 dfffffff 0\n$(id) $(id) 0\n", None),
    ],
)
def test_a_picture_in_a_cards_memory_is_named(host: Host, iomem: str, ranges: str, found: list[str] | None) -> None:
    host.write("proc/iomem", iomem)
    card(host, ranges)
    assert read(host).framebuffers == ({AMD_CARD: found} if found else {})


def test_of_two_cards_the_one_is_named_that_has_it_and_nothing_but_cards(host: Host) -> None:
    host.write("proc/iomem", LOW)
    card(host, resource("d0000000", "dfffffff"))
    card(host, resource("e0000000", "efffffff"), "0000:01:00.0", "0x030000")
    card(host, resource("d0000000", "dfffffff"), "0000:00:01.0", "0x060400")
    assert read(host).framebuffers == {AMD_CARD: ["efifb"]}


def test_a_host_without_the_file_says_nothing(host: Host) -> None:
    card(host, resource("d0000000", "dfffffff"))
    assert read(host).framebuffers == {}
