"""read_host.sh: what it passes on of the kernel's picture in cards' memory (/proc/iomem)."""

from __future__ import annotations

import pytest

from tests.scripts.conftest import Folder
from tests.scripts.test_read_iommu import read
from tests.scripts.test_signs import host as host  # the least that read_host.sh needs

CARD = "0000:c3:00.0"
# A card's memory above 4 GiB, as siderolabs/talos issue 14356 shows it; and an old one's below.
HIGH = """\
2800000000-2fffffffff : PCI Bus 0000:c3
  2800000000-2fffffffff : 0000:c3:00.0
    2800000000-2801fa3fff : BOOTFB
      2800000000-2801fa3fff : simpledrm
"""
LOW = "d0000000-dfffffff : 0000:c3:00.0\n  d0000000-d02fffff : efifb\n"


def card(host: Folder, ranges: str, address: str = CARD, code: str = "0x038000") -> None:
    for name, text in {"class": code, "vendor": "0x1002", "device": "0x1586"}.items():
        host.write(f"sys/bus/pci/devices/{address}/{name}", f"{text}\n")
    host.write(f"sys/bus/pci/devices/{address}/resource", ranges)


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
def test_a_picture_in_a_cards_memory_is_named(host: Folder, iomem: str, ranges: str, found: list[str] | None) -> None:
    host.write("proc/iomem", iomem)
    card(host, ranges)
    assert read(host).framebuffers == ({CARD: found} if found else {})


def test_of_two_cards_the_one_is_named_that_has_it_and_nothing_but_cards(host: Folder) -> None:
    host.write("proc/iomem", LOW)
    card(host, resource("d0000000", "dfffffff"))
    card(host, resource("e0000000", "efffffff"), "0000:01:00.0", "0x030000")
    card(host, resource("d0000000", "dfffffff"), "0000:00:01.0", "0x060400")
    assert read(host).framebuffers == {CARD: ["efifb"]}


def test_a_host_without_the_file_says_nothing(host: Folder) -> None:
    card(host, resource("d0000000", "dfffffff"))
    assert read(host).framebuffers == {}
