"""homelab/host/acpi.py: for which devices the firmware's tables want memory mapped 1:1, whatever is in them."""

from __future__ import annotations

import random
import struct

import pytest

from homelab.host import acpi
from lab.host.acpi import device_id, dmar, ivrs, table

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
START, END = 0x9D800000, 0x9FFFFFFF


def ivmd(kind: int, flags: int, first: int = 0, last: int = 0, segment: int = 0, size: int = 32) -> bytes:
    return struct.pack("<BBHHHH6xQQ", kind, flags, size, first, last, segment, START, END - START + 1)


@pytest.mark.parametrize(
    ("structure", "named"),
    [
        (ivmd(0x20, 0x07), {GPU, AUDIO}),  # all devices
        (ivmd(0x21, 0x07, device_id(GPU)), {GPU}),
        (ivmd(0x22, 0x07, device_id(GPU), device_id(AUDIO)), {GPU, AUDIO}),
        # As boards with B650 and X870E have it: buses 0 to 15.
        (ivmd(0x22, 0x07, 0x0000, 0x0FFF), {GPU, AUDIO}),
        (ivmd(0x22, 0x07, 0x0200, 0x0FFF), set()),
        (ivmd(0x22, 0x07, device_id(AUDIO), device_id(GPU)), set()),  # the wrong way round
        (ivmd(0x21, 0x08, device_id(GPU)), {GPU}),  # an exclusion range is mapped like one
        (ivmd(0x21, 0x06, device_id(GPU)), set()),  # neither: readable and writable alone mean nothing
        (ivmd(0x21, 0x07, device_id(GPU), segment=1), set()),
        (ivmd(0x23, 0x07, device_id(GPU)), set()),  # no such type
        (ivmd(0x21, 0x07, device_id(GPU), size=16), set()),  # too short to say of which memory
    ],
)
def test_a_memory_definition_of_amds_table_is_for_the_devices_that_it_names(structure: bytes, named: set[str]) -> None:
    found = acpi.unity_maps(table(b"IVRS", b"", structure))
    assert {address for address in (GPU, AUDIO) for one in found if one.names(address)} == named
    assert {str(one.memory) for one in found} <= {"0x9d800000-0x9fffffff"}


@pytest.mark.parametrize(
    ("scopes", "chain", "named"),
    [
        ([["0000:00:14.0"]], ["0000:00:14.0"], True),
        ([["0000:00:14.0"]], ["0000:00:14.1"], False),
        # A path through bridges holds whatever numbers the buses have now.
        ([["0000:00:01.0", "0000:01:00.0"]], ["0000:00:01.0", "0000:07:00.0"], True),
        ([["0000:00:01.0", "0000:01:00.0"]], ["0000:00:02.0", "0000:01:00.0"], False),
        # A bridge stands for all that is behind it.
        ([["0000:00:01.0"]], ["0000:00:01.0", "0000:01:00.0"], True),
        ([["0000:00:02.0"], ["0000:00:01.0"]], ["0000:00:01.0", "0000:01:00.1"], True),
        # Broken firmware: a path of one device, with the number of the bus that it is on.
        ([["0000:01:00.0"]], ["0000:00:01.0", "0000:01:00.0"], True),
        ([["0000:00:01.0"]], ["0001:00:01.0"], False),  # another segment
        ([["0000:05:01.0", "0000:01:00.0"]], ["0000:00:01.0", "0000:01:00.0"], False),  # from another bus on
        ([["0000:01:00.0", "0000:02:03.0"]], ["0000:00:01.0", "0000:01:00.0"], False),  # something behind it
    ],
)
def test_a_reserved_region_of_intels_table_is_for_the_devices_on_its_paths(
    scopes: list[list[str]], chain: list[str], named: bool
) -> None:
    (found,) = acpi.reserved_memory(dmar([(scopes, START, END)]))
    assert found.names(chain) is named and str(found.memory) == "0x9d800000-0x9fffffff"


def test_a_scope_of_another_kind_names_no_pci_device() -> None:
    whole = bytearray(dmar([([["0000:00:14.0"]], START, END)]))
    at = whole.index(struct.pack("<Q", END)) + 8
    assert whole[at] == 1
    for kind in (0, 3, 4, 5):  # reserved, IOAPIC, HPET, ACPI namespace device
        whole[at] = kind
        (found,) = acpi.reserved_memory(bytes(whole))
        assert not found.names(["0000:00:14.0"])
    whole[at : at + 2] = b"\x01\x20"  # longer than its region
    (found,) = acpi.reserved_memory(bytes(whole))
    assert not found.names(["0000:00:14.0"])


@pytest.mark.parametrize("header", [struct.pack("<HH", 2, 32), struct.pack("<HH", 1, 16)], ids=["ATSR", "too short"])
def test_another_structure_reserves_no_memory(header: bytes) -> None:
    whole = dmar([([["0000:00:14.0"]], START, END)])
    at = whole.index(struct.pack("<Q", START)) - 8
    assert whole[at : at + 2] == b"\x01\x00"
    assert acpi.reserved_memory(whole[:at] + header + whole[at + 4 :]) == []


@pytest.mark.parametrize(("flag", "said"), [(True, True), (False, False)])
def test_that_interrupts_can_be_remapped_is_a_flag_of_intels_table(flag: bool, said: bool) -> None:
    assert acpi.remaps_interrupts(dmar([], remaps_interrupts=flag)) is said


@pytest.mark.parametrize("short", [b"", b"DMAR", b"DMAR" * 10, ivrs([])])
def test_what_is_no_dmar_says_nothing_of_interrupts(short: bytes) -> None:
    assert acpi.remaps_interrupts(short) is None


WHOLE = [
    ivrs([("0000:00:00.0", "0000:0f:1f.7", START, END)] * 3),
    dmar([([["0000:00:01.0", "0000:01:00.0"], ["0000:00:14.0"]], START, END)] * 3),
]


def read(text: bytes) -> int:
    """Everything is read of it, and asked of it."""
    unity, reserved = acpi.unity_maps(text), acpi.reserved_memory(text)
    acpi.remaps_interrupts(text)
    chain = ["0000:00:01.0", GPU]
    return sum(one.names(GPU) for one in unity) + sum(one.names(chain) for one in reserved)


@pytest.mark.parametrize("whole", WHOLE, ids=["IVRS", "DMAR"])
def test_of_a_table_that_is_cut_off_what_is_whole_counts(whole: bytes) -> None:
    found = [read(whole[:length]) for length in range(len(whole) + 1)]
    assert found == sorted(found) and found[-1] == 3 and set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize("whole", WHOLE, ids=["IVRS", "DMAR"])
@pytest.mark.parametrize("value", [0, 1, 0xFF])
def test_no_byte_that_is_wrong_makes_reading_fail_or_go_on_for_ever(whole: bytes, value: int) -> None:
    for at in range(len(whole)):
        read(whole[:at] + bytes([value]) + whole[at + 1 :])


def test_neither_does_garbage() -> None:
    chance = random.Random(21)
    for _ in range(300):
        read(chance.choice([b"IVRS", b"DMAR", b""]) + chance.randbytes(chance.randrange(200)))


def test_a_length_beyond_the_table_is_cut_to_it() -> None:
    whole = WHOLE[0]
    assert read(whole[:4] + b"\xff\xff\xff\xff" + whole[8:]) == 3
    assert read(whole[:4] + b"\x00\x00\x00\x00" + whole[8:]) == 0
