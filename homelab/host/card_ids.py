"""Vendor and device ids in this program's data: one card, or a range of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from homelab.host.devices import Device

_RANGE = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})(?:-([0-9a-f]{4}))?")


def _ids(value: str) -> str:
    match = _RANGE.fullmatch(value)
    if match is None or (match[3] or match[2]) < match[2]:
        raise ValueError("expected vendor:device, or vendor:first-last, in lower case")
    return value


# `10de:2b85`, or `1002:67c0-67df`, the end included.
Ids = Annotated[str, AfterValidator(_ids)]


def names(ids: Iterable[str], device: Device) -> bool:
    """Whether a function has one of these ids."""
    for match in map(_RANGE.fullmatch, ids):
        if match and device.vendor == match[1] and match[2] <= device.device <= (match[3] or match[2]):
            return True
    return False
