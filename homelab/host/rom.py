"""A card's option ROM: is what was read one, and this card's? Where a processor's graphics have theirs. Pure.

An image begins with 55 AA; at 18h is the offset of its PCI data structure, "PCIR" (PCI Firmware Specification 3.0, 5.1): vendor at 4, device at 6, length
in 512 bytes at 10h, kind at 14h, last image at 15h, bit 7. The kernel finds a ROM's size by the same (drivers/pci/rom.c).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from homelab.errors import HomelabError
from homelab.host import gates
from homelab.host.classes import INTEL
from homelab.host.devices import Device
from homelab.host.facts import HostFacts

_KINDS = {0: "BIOS", 1: "Open Firmware", 3: "UEFI"}
_BIOS = 0
# VFCT: the ACPI header (36), a UUID (16), the offset of the first image; before each image its place, ids and length (atombios.h, VFCT_IMAGE_HEADER).
_VFCT_OFFSET = 52
_VFCT_IMAGE = struct.Struct("<IIIHHHHII")


@dataclass(frozen=True)
class Image:
    """One image of a ROM. `whole`: does a BIOS image's sum say that nothing of it was changed?"""

    vendor: str
    device: str
    kind: str
    length: int
    whole: bool


@dataclass(frozen=True)
class Rom:
    """A ROM that is this card's: its bytes, and the images in it."""

    content: bytes
    images: tuple[Image, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def has_uefi(self) -> bool:
        return any(image.kind == "UEFI" for image in self.images)


def images(content: bytes) -> tuple[Image, ...]:
    """The images from the first byte on, as far as each is one."""
    found: list[Image] = []
    at = 0
    while content[at : at + 2] == b"\x55\xaa" and at + 0x1A <= len(content):
        data = at + int.from_bytes(content[at + 0x18 : at + 0x1A], "little")
        if content[data : data + 4] != b"PCIR" or data + 0x18 > len(content):
            break
        vendor, device = struct.unpack_from("<HH", content, data + 4)
        length = int.from_bytes(content[data + 0x10 : data + 0x12], "little") * 512
        code, last = content[data + 0x14], content[data + 0x15] & 0x80
        if length == 0 or at + length > len(content):
            break
        whole = code != _BIOS or sum(content[at : at + length]) % 256 == 0
        found.append(Image(f"{vendor:04x}", f"{device:04x}", _KINDS.get(code, f"kind {code}"), length, whole))
        at += length
        if last:
            break
    return tuple(found)


def checked(content: bytes, device: Device, name: str) -> Rom:
    """What was read, without what follows the last image.

    :param name: the card, for messages.
    :raises HomelabError: it is no ROM, a part of one, or another card's.
    """
    found = images(content)
    wanted = f"the ROM of {name}"
    if not found:
        raise HomelabError(
            wanted=wanted,
            found=f"{len(content)} bytes that begin with {content[:4].hex(' ') or 'nothing'}, instead of 55 aa and a PCI data structure",
            why="QEMU gives a guest what is in the file, whatever it is: with this one the card wouldn't start in any guest",
            next="read it after the host was switched off and on, before any driver or VM has used the card; or take the file of the card's maker",
        )
    # Intel's has the id of another of its graphics, which QEMU corrects (hw/vfio/pci.c, vfio_pci_load_rom).
    others = [
        one for one in found if one.vendor != device.vendor or (one.device != device.device and one.vendor != INTEL)
    ]
    if len(others) == len(found):
        raise HomelabError(
            wanted=wanted,
            found=f"images for {', '.join(f'{one.vendor}:{one.device}' for one in others)}; the card is {device.id}",
            why="a guest's firmware and driver ignore another card's ROM, or fail with it",
            next="see whether the address is this card's; take the file of the card's maker otherwise",
        )
    return Rom(content[: sum(one.length for one in found)], found)


def of_vfct(table: bytes, device: Device) -> bytes:
    """The image that AMD's firmware has for a device in the table VFCT; empty where it has none.

    By its place on the bus, as amdgpu looks (amdgpu_bios.c, amdgpu_acpi_vfct_bios).
    """
    bus, slot = device.slot.split(":")[1:]
    place = (int(bus, 16), int(slot, 16), int(device.address[-1]))
    at = int.from_bytes(table[_VFCT_OFFSET : _VFCT_OFFSET + 4], "little")
    while at > 0 and at + _VFCT_IMAGE.size <= len(table):
        *where, vendor, number, _, _, _, length = _VFCT_IMAGE.unpack_from(table, at)
        content = table[at + _VFCT_IMAGE.size : at + _VFCT_IMAGE.size + length]
        if length == 0 or len(content) < length:
            return b""
        if tuple(where) == place and f"{vendor:04x}:{number:04x}" == device.id:
            return content
        at += _VFCT_IMAGE.size + length
    return b""


def refused(facts: HostFacts, name: str, slot: str, node: str) -> list[HomelabError]:
    """A card whose ROM can't be read now: a driver or a VM uses it.

    A driver may have changed what the card shows, and reading it takes the card's memory decoder from a guest that runs with it.

    :param name: for messages.
    :param node: the host's name in Proxmox VE.
    """
    wanted = f"{name} ({facts.card(slot)}) at rest, to read its ROM"
    functions = facts.functions(slot)
    shown = next((one for one in functions if one.is_display), None)
    if shown is None or shown.physfn:
        return [
            HomelabError(
                wanted=f"the ROM of {name}",
                found=f"{facts.card(slot)} is a virtual function (SR-IOV)" if shown else f"no graphics card at {slot}",
                why="only a card itself has a ROM",
                next="name the card",
            )
        ]
    if shown.address in facts.lost:
        return [
            HomelabError(
                wanted=wanted,
                found="the card doesn't answer: every bit of its configuration space is one",
                why="nothing can be read from it",
                next="switch the host off and on",
            )
        ]
    if unreadable := gates.readable(facts):
        return unreadable
    if "vm" in facts.guests.unlisted:
        return [
            HomelabError(
                wanted=wanted,
                found="`qm list` gave no answer: a VM may run with it",
                why="while its ROM is read, a card's memory may be out of reach: the guest would lose the card",
                next="see what `qm list` says on the host; when it answers, run this command again",
            )
        ]
    users = [user for user in facts.users_of(slot, node) if user.running]
    if users:
        return [
            HomelabError(
                wanted=wanted,
                found=f"{', '.join(map(str, users))} runs with it",
                why="while its ROM is read, a card's memory may be out of reach: the guest would lose the card",
                next="shut the VM down, and run this command again",
            )
        ]
    if shown.driver not in ("", "vfio-pci"):
        return [
            HomelabError(
                wanted=wanted,
                found=f"{shown.address} is on {shown.driver}",
                why="a driver that runs may have changed what the card shows, or use it while it is read",
                next="bind the card first (use: vm, `pulumi up`), and run this command again before a VM starts with it",
            )
        ]
    return []


def remarks(rom: Rom, device: Device) -> list[str]:
    """What is to be known of a ROM that was read: a sentence each."""
    said = []
    if not rom.has_uefi:
        said.append("it has no UEFI image: a VM with OVMF shows nothing on the card before its system's driver starts")
    if any(not one.whole for one in rom.images):
        said.append(
            "its sum is wrong: the host's firmware, or a driver, has changed it; better read it while another card is the host's screen"
        )
    elif device.boot_vga:
        said.append(
            "the card is the host's screen: the firmware may have changed what it shows; read it again while another card is, if a VM fails with it"
        )
    return said
