"""What tells a container from another one of the same id: it has no UUID, as a VM has."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ADDRESS = re.compile(r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}")


def identity(config: Mapping[str, str]) -> str:
    """What a container keeps: its network cards' addresses, which Proxmox VE makes up; without any, its disk."""
    cards = [value for key, value in config.items() if re.fullmatch(r"net\d+", key)]
    addresses = [found[1].upper() for card in cards if (found := re.search(r"\bhwaddr=([0-9A-Fa-f:]+)", card))]
    return " ".join(sorted(addresses)) or config.get("rootfs", "").partition(",")[0]


def is_another(before: str, now: str) -> bool:
    """By the identities of two containers of one id: none of the one's network cards is the other's. A disk may have
    got another name as it moved."""
    known, found = (set(_ADDRESS.findall(one)) for one in (before, now))
    return bool(known and found) and not known & found
