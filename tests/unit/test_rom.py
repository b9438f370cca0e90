"""A card's option ROM (homelab/host/rom.py): what is one, whose it is, where a processor's graphics have theirs, when none is read."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.host import rom
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from tests.unit.hosts import desktop, device


def image(ids: str = "10de:2b85", kind: int = 0, *, last: bool = True, blocks: int = 2, at: int = 0x40) -> bytes:
    """One image, as the PCI firmware specification has it; a BIOS image's sum is 0."""
    vendor, number = (int(part, 16) for part in ids.split(":"))
    content = bytearray(blocks * 512)
    content[:2], content[0x18:0x1A] = b"\x55\xaa", at.to_bytes(2, "little")
    content[at : at + 4] = b"PCIR"
    struct.pack_into("<HH", content, at + 4, vendor, number)
    content[at + 0x10 : at + 0x12] = blocks.to_bytes(2, "little")
    content[at + 0x14], content[at + 0x15] = kind, 0x80 if last else 0
    content[-1] = -sum(content) % 256
    return bytes(content)


BOTH = image(last=False) + image(kind=3, blocks=4)


def card(ids: str = "10de:2b85", **changes: Any) -> Device:
    (found,) = desktop(devices=[device("0000:01:00.0", ids, "030000", 16, **changes)]).devices
    return found


def test_the_images_are_told_and_what_follows_them_is_left_out() -> None:
    found = rom.checked(BOTH + b"\xff" * 100, card(), "the card")
    assert [(one.kind, one.length, one.whole) for one in found.images] == [("BIOS", 1024, True), ("UEFI", 2048, True)]
    assert found.content == BOTH and found.has_uefi and len(found.sha256) == 64
    assert rom.remarks(found, card()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 4096,
        b"\x00" * 4096,
        b"NVGI" + b"\x00" * 60 + BOTH,  # a vendor's file to be flashed, with its header
        b"\x55\xaa",
        b"\x55\xaa" + b"\xff" * 60,
        BOTH[:1000],  # not all of the first image
        image().replace(b"PCIR", b"PCIX"),
        b"\x55\xaa" + b"\x00" * 22 + b"\x1c\x00\x00\x00PCIR" + b"\x00" * 40,  # an image of no length
        image(at=0x3EA),  # its structure ends behind it
    ],
)
def test_what_is_no_rom_is_refused(content: bytes) -> None:
    with pytest.raises(HomelabError, match="instead of 55 aa and a PCI data structure"):
        rom.checked(content, card(), "the card")


@pytest.mark.parametrize("ids", ["10de:2684", "1002:2b85", "ffff:ffff"])
def test_another_cards_rom_is_refused(ids: str) -> None:
    with pytest.raises(HomelabError, match=f"images for {ids}; the card is 10de:2b85"):
        rom.checked(image(ids), card(), "the card")


def test_intels_has_the_id_of_another_of_its_graphics() -> None:
    assert rom.checked(image("8086:0406"), card("8086:4680"), "the card").images
    with pytest.raises(HomelabError):
        rom.checked(image("10de:0406"), card("8086:4680"), "the card")


def test_of_a_rom_that_was_cut_off_the_whole_images_are_kept() -> None:
    found = rom.checked(BOTH[:-1], card(), "the card")
    assert [one.kind for one in found.images] == ["BIOS"]
    assert "no UEFI image" in rom.remarks(found, card())[0]


def test_a_rom_that_was_changed_since_it_was_made_is_said() -> None:
    changed = bytearray(BOTH)
    changed[0x100] ^= 1
    assert "its sum is wrong" in "".join(rom.remarks(rom.checked(bytes(changed), card(), "x"), card()))
    assert "the host's screen" in "".join(rom.remarks(rom.checked(BOTH, card(), "x"), card(boot_vga=1)))


# -- the firmware's table -------------------------------------------------------------------------------------------------
def vfct(*entries: tuple[tuple[int, int, int], str, bytes], first: int = 76) -> bytes:
    table = bytearray(first)
    table[:4], table[52:56] = b"VFCT", first.to_bytes(4, "little")
    for place, ids, content in entries:
        vendor, number = (int(part, 16) for part in ids.split(":"))
        table += struct.pack("<IIIHHHHII", *place, vendor, number, 0, 0, 0, len(content)) + content
    return bytes(table)


IGPU = "1002:1900"


def processor() -> Device:
    (found,) = desktop(devices=[device("0000:c6:00.0", IGPU, "030000", 17)]).devices
    return found


def test_a_processors_graphics_have_theirs_in_the_firmwares_table() -> None:
    other, own = image("1002:744c"), image(IGPU)
    assert rom.of_vfct(vfct(((3, 0, 0), "1002:744c", other), ((0xC6, 0, 0), IGPU, own)), processor()) == own


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"VFCT",
        vfct(),
        vfct(((0xC7, 0, 0), IGPU, image(IGPU))),
        vfct(((0xC6, 0, 0), "1002:15bf", image(IGPU))),
        vfct(((0xC6, 0, 0), IGPU, image(IGPU)))[:-1],
        vfct(((0xC6, 0, 0), IGPU, b"")),
        vfct(((0xC6, 0, 0), IGPU, image(IGPU)), first=0)[:40] + b"\xff" * 40,
        b"\xff" * 100,
    ],
)
def test_a_table_without_it_or_broken_gives_nothing(table: bytes) -> None:
    assert rom.of_vfct(table, processor()) == b""


# -- when none is read ----------------------------------------------------------------------------------------------------
def refused(facts: HostFacts, slot: str = "0000:01:00") -> list[str]:
    return [error.found for error in rom.refused(facts, "gpus.g", slot, "pve")]


def bound(**changes: Any) -> HostFacts:
    return desktop(
        devices=[device("0000:01:00.0", "10de:2b85", "030000", 16, driver=changes.pop("driver", "vfio-pci"))], **changes
    )


def test_a_card_at_rest_is_read() -> None:
    assert refused(bound()) == refused(bound(driver="")) == []


def test_a_card_that_a_driver_or_a_vm_uses_isnt() -> None:
    assert refused(bound(driver="nvidia")) == ["0000:01:00.0 is on nvidia"]
    config = {"kind": "vm", "id": 103, "lines": "name: Sandbox\nhostpci0: 0000:01:00"}
    guests = {"running": [103], "configs": [config], "mappings": "", "reservations": ""}
    assert refused(bound(guests=guests)) == ["VM 103 (Sandbox) runs with it"]
    assert refused(bound(guests=guests | {"running": []})) == []
    unknown = guests | {"running": [], "unlisted": ["vm"]}
    assert refused(bound(guests=unknown)) == ["`qm list` gave no answer: a VM may run with it"]
    assert refused(bound(guests=unknown | {"unlisted": ["lxc"]})) == []


def test_neither_is_one_that_is_gone_nor_a_virtual_function() -> None:
    assert "every bit" in refused(bound(lost=["0000:01:00.0"]))[0]
    virtual = desktop(devices=[device("0000:41:00.1", "8086:46a6", "030000", 31, physfn="0000:41:00.0")])
    assert "virtual function" in refused(virtual, "0000:41:00.1")[0]
    assert refused(bound(), "0000:99:00") == ["no graphics card at 0000:99:00"]
