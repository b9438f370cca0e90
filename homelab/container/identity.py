"""The identity of a container, which tells it from another one of the same id, as it has no UUID."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ADDRESS = re.compile(r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}")


def identity(config: Mapping[str, str]) -> str:
    """A container's identity: the addresses of its network cards, which Proxmox VE generates; without any, its disk.

    :param config: its options.
    """
    cards = [value for key, value in config.items() if re.fullmatch(r"net\d+", key)]
    addresses = [match[1].upper() for card in cards if (match := re.search(r"\bhwaddr=([0-9A-Fa-f:]+)", card))]
    return " ".join(sorted(addresses)) or config.get("rootfs", "").partition(",")[0]


def is_another(before: str, current: str) -> bool:
    """Whether two identities of one id are of different containers: they have network cards, and none in common. Disks
    aren't compared, as moving one changes its name."""
    addresses_before, addresses_now = (set(_ADDRESS.findall(text)) for text in (before, current))
    return bool(addresses_before and addresses_now) and not addresses_before & addresses_now
