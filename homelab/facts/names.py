"""Cards' names for messages: from the host's pci.ids (as its lspci reads them), else from a small table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# Cards that are newer than the pci.ids of the Debian releases that Proxmox VE 8 and 9 stand on (NVIDIA's README of
# branch 580, "Supported NVIDIA Products").
NEWER = {
    "10de:2b85": "RTX 5090", "10de:2b87": "RTX 5090 D", "10de:2c02": "RTX 5080", "10de:2c05": "RTX 5070 Ti",
    "10de:2f04": "RTX 5070", "10de:2d04": "RTX 5060 Ti", "10de:2d05": "RTX 5060",
}  # fmt: skip
# `01:00.0 VGA compatible controller [0300]: NVIDIA Corporation AD102 [GeForce RTX 4090] [10de:2684] (rev a1)`
LINE = re.compile(r"^(\S+) .*?\[[0-9a-f]{4}\]: (.+) \[([0-9a-f]{4}:[0-9a-f]{4})\]", re.MULTILINE)
# A marketing name, behind the chip's.
_BRACKETS = re.compile(r"\[([^\[\]]+)\]\s*$")
# The beginnings of names that all cards of a maker share, which are left out.
_MAKERS = re.compile(
    r"^(?:NVIDIA Corporation|Intel Corporation|Advanced Micro Devices, Inc\. \[AMD(?:/ATI)?\]|GeForce|NVIDIA)\s+"
)
_LONGEST = 48


def of_lspci(lspci: str) -> dict[str, str]:
    """PCI address -> the card's name, from lines of `lspci -Dnn`; without those that pci.ids doesn't know
    (`Device`)."""
    return {address: name for address, text, _ in LINE.findall(lspci) if (name := short(text))}


def short(text: str) -> str:
    """`RTX 4090` for pci.ids' `NVIDIA Corporation AD102 [GeForce RTX 4090]`; empty for a device that it doesn't
    know."""
    marketed = _BRACKETS.search(text)
    name = (marketed[1] if marketed and not marketed[1].startswith("AMD") else text).strip()
    while (cut := _MAKERS.sub("", name)) != name:
        name = cut
    if name == "Device" or name.endswith(" Device"):
        return ""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def model(ids: str, listed_as: str = "") -> str:
    """The name of a card's model, `RTX 5090`; empty: unknown.

    :param ids: vendor:device.
    :param listed_as: its short name in pci.ids, empty: none.
    """
    return listed_as or NEWER.get(ids.lower(), "")


def card(ids: str, place: str, listed_as: str = "", kind: str = "graphics card") -> str:
    """A card's name in every message, plan and table: `RTX 5090 [10de:2b85] at 0000:01:00`.

    :param kind: takes the place of an unknown name.
    """
    return f"{model(ids, listed_as) or kind} [{ids}] at {place}"


def told_apart(cards: Sequence[tuple[str, str | None]]) -> list[str]:
    """The names of cards that one message has: `RTX 5090`; with its place, `RTX 3090 at 0000:1d:00`, where another one
    has the same name.

    :param cards: of each its name, and its place where that is known.
    """
    number = Counter(name for name, _ in cards)
    return [f"{name} at {place}" if place and number[name] > 1 else name for name, place in cards]


def models_of_outputs(gpus: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each card's model, or its kind if that is unknown, for one message (`told_apart`); of the cards in the outputs of
    HostProbe or a stack, by their names there."""
    cards = [(of_output(gpu).partition(" [")[0], str(gpu["slot"])) for gpu in gpus.values()]
    return dict(zip(gpus, told_apart(cards), strict=True))


def of_output(gpu: Mapping[str, Any]) -> str:
    """`RTX 5090 [10de:2b85] at 0000:01:00`, of a card in the outputs of HostProbe or a stack."""
    functions = gpu.get("functions") or [{}]
    display = next(
        (function for function in functions if str(function.get("class", "")).startswith(("03", "12"))), functions[0]
    )
    return card(str(display.get("id", "?")), str(gpu["slot"]), str(gpu["name"]))
