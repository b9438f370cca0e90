"""vfio-pci's option `ids`: `vendor:device[:subvendor[:subdevice[:class[:class_mask]]]]`, in hex, separated
by commas.

`ffffffff` is any (drivers/vfio/pci/vfio_pci.c, pci_match_one_device). Such as
`10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff`: each graphics card of NVIDIA's. remote_scripts/lib/vfio_ids.sh
does the same on a host.
"""

from __future__ import annotations

import re

_ANY = 0xFFFFFFFF
_ID = re.compile(r"(?:0x)?[0-9a-f]{1,8}(?::(?:0x)?[0-9a-f]{1,8}){1,5}")


def names(ids: str, device: str, subsystem: str, class_code: str) -> bool:
    """Whether the option names a function.

    :param ids: the option's value.
    :param device: `vendor:device`.
    :param subsystem: `subvendor:subdevice`.
    :param class_code: six hex digits.
    """
    entries = (entry for entry in ids.lower().split(",") if _ID.fullmatch(entry))
    return any(_matches(entry, device, subsystem, class_code) for entry in entries)


def _matches(entry: str, device: str, subsystem: str, class_code: str) -> bool:
    fields = [int(field, 16) for field in entry.split(":")]
    pattern = fields + [_ANY, _ANY, _ANY, _ANY, 0, 0][len(fields) :]
    actual = [int(part, 16) for part in f"{device}:{subsystem}".split(":")]
    alike = all(want in (_ANY, has) for want, has in zip(pattern[:4], actual, strict=True))
    return alike and not (pattern[4] ^ int(class_code, 16)) & pattern[5]
