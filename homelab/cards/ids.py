"""Vendor and device ids in this program's data: one card, or a range of them, and rows about such cards. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from homelab import tables
from homelab.facts.devices import Device

_RANGE = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})(?:-([0-9a-f]{4}))?")


def _ids(value: str) -> str:
    match = _RANGE.fullmatch(value)
    if match is None or (match[3] or match[2]) < match[2]:
        raise ValueError("expected vendor:device, or vendor:first-last, in lower case")
    return value


# `10de:2b85`, or `1002:67c0-67df`, the end included.
Ids = Annotated[str, AfterValidator(_ids)]


class CardRow(tables.SourcedRow):
    """Cards of one kind, by their ids."""

    name: str
    ids: tuple[Ids, ...] = Field(min_length=1)

    def has(self, device: Device) -> bool:
        """Whether the row is for this function."""
        for match in map(_RANGE.fullmatch, self.ids):
            if match and device.vendor == match[1] and match[2] <= device.device <= (match[3] or match[2]):
                return True
        return False
