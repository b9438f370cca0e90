"""How cards' functions can be reset, how they sleep, whether they are divided among guests, what of the kernel's
console lies in their memory, and whether they are there at all.
"""

from __future__ import annotations

import re

from remote_scripts.notes import value_notes
from remote_scripts.reading.answer import CardState
from remote_scripts.reading.source import Source
from remote_scripts.tools.pci import DEVICES

# Displays and accelerators; and what may belong to a card: audio, USB and USB-C controllers, security processors.
CARDS = ("0x03", "0x12")
_MAY_BE_PARTS = (*CARDS, "0x0403", "0x0480", "0x0c03", "0x0c80", "0x1080")
_ATTRIBUTES = ("reset_method", "d3cold_allowed", "power/control")
_FRAMEBUFFER = re.compile(
    r" *([0-9a-f]{1,15})-([0-9a-f]{1,15}) : "
    r"(BOOTFB|efifb|vesafb|simplefb|simple-framebuffer|simpledrm|efidrm|vesadrm)"
)
_RANGE = re.compile(r"\s*(0x[0-9a-f]{1,16})\s+(0x0*[1-9a-f][0-9a-f]{0,14})(?:\s|$)")
_CONFIG_BYTES = 16
_CONFIG_SECONDS = 5.0
_ONES = b"\xff" * _CONFIG_BYTES
# It goes on asking to be asked again (PCIe: CRS Software Visibility).
_NOT_READY = b"\x01\x00\xff\xff"


def records(source: Source) -> list[value_notes.Record]:
    """The values that this program has set."""
    parsed = []
    for name in source.names(value_notes.FOLDER):
        path = f"{value_notes.FOLDER}/{name}"
        if source.files.is_file(path) and (record := value_notes.parse(name, source.needed(path) or "")):
            parsed.append(record)
    return parsed


def card_states(source: Source, set_values: list[value_notes.Record]) -> dict[str, CardState]:
    """Of every function that may belong to a card, by its address.

    :param set_values: the values that this program has set.
    """
    states = {}
    for address in source.functions():
        if not source.class_of(address).startswith(_MAY_BE_PARTS):
            continue
        folder = f"{DEVICES}/{address}"
        divided = "mdev" if source.files.is_folder(f"{folder}/mdev_supported_types") else ""
        values = {attribute: source.word(f"{folder}/{attribute}") for attribute in _ATTRIBUTES}
        had = {
            record.attribute.rpartition("/")[2]: record.before
            for record in set_values
            if record.address == address and record.attribute in values and values[record.attribute] == record.ours
        }
        states[address] = CardState(
            divided="vgpu" if source.files.is_folder(f"{folder}/nvidia") else divided,
            reset_method=values["reset_method"],
            d3cold_allowed=values["d3cold_allowed"],
            control=values["power/control"],
            had=had,
        )
    return states


def lost_values(source: Source, set_values: list[value_notes.Record]) -> list[str]:
    """The values that were changed since, a sentence each; none of a function that isn't there."""
    values = ((record, source.word(f"{DEVICES}/{record.address}/{record.attribute}")) for record in set_values)
    return [
        f"{record.attribute} of {record.address} is {value}, not {record.ours}"
        for record, value in values
        if value not in (None, record.ours)
    ]


def framebuffers(source: Source) -> dict[str, list[str]]:
    """Of each card, what of the kernel's console lies in its memory: BOOTFB, and who draws into it. By the ranges,
    since the one line of /proc/iomem isn't always below the other. To others than root the file shows zeros.
    """
    matches = map(_FRAMEBUFFER.fullmatch, (source.needed("/proc/iomem") or "").split("\n"))
    held = [(int(match[1], 16), int(match[2], 16), match[3]) for match in matches if match and int(match[2], 16)]
    by_address = {}
    for address in source.functions() if held else []:
        if not source.class_of(address).startswith(CARDS):
            continue
        ranges = map(_RANGE.match, source.lines(f"{DEVICES}/{address}/resource"))
        names = [
            name
            for memory in ranges
            if memory
            for first, last, name in held
            if first <= int(memory[2], 16) and last >= int(memory[1], 16)
        ]
        if names:
            by_address[address] = [*dict.fromkeys(names)]
    return by_address


def lost(source: Source) -> list[str]:
    """The functions of cards, and what vfio-pci has, whose configuration space can't be read, or reads as none."""
    return [
        address
        for address in source.functions()
        if (
            source.class_of(address).startswith((*CARDS, "0x0403"))
            or source.linked(f"{DEVICES}/{address}/driver") == "vfio-pci"
        )
        and source.files.exists(f"{DEVICES}/{address}/config")
        and _is_lost(source, address)
    ]


def _is_lost(source: Source, address: str) -> bool:
    """By a program: reading a card that is gone can take long. A virtual function has no ids there, but a class."""
    config = str(source.files.at(f"{DEVICES}/{address}/config"))
    done = source.run.ask("head", "-c", str(_CONFIG_BYTES), config, seconds=_CONFIG_SECONDS)
    return done.status != 0 or done.output == _ONES or done.output.startswith(_NOT_READY)
