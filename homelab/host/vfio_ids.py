"""What vfio-pci's option `ids` names: `vendor:device[:subvendor[:subdevice[:class[:class_mask]]]]`, in hex, separated
by commas.

`ffffffff` is any (drivers/vfio/pci/vfio_pci.c, pci_match_one_device). Such as
`10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff`: each graphics card of NVIDIA's. remote_scripts/lib/vfio_ids.sh
tells the same on a host.
"""

from __future__ import annotations

import re

_ANY = 0xFFFFFFFF
_ID = re.compile(r"(?:0x)?[0-9a-f]{1,8}(?::(?:0x)?[0-9a-f]{1,8}){1,5}")


def names(ids: str, device: str, subsystem: str, class_code: str) -> bool:
    """Is a function among them?

    :param device: `vendor:device`.
    :param subsystem: `subvendor:subdevice`.
    :param class_code: six hex digits.
    """
    given = (one for one in ids.lower().split(",") if _ID.fullmatch(one))
    return any(_is(one, device, subsystem, class_code) for one in given)


def _is(one: str, device: str, subsystem: str, class_code: str) -> bool:
    fields = [int(field, 16) for field in one.split(":")]
    wanted = fields + [_ANY, _ANY, _ANY, _ANY, 0, 0][len(fields) :]
    have = [int(part, 16) for part in f"{device}:{subsystem}".split(":")]
    alike = all(want in (_ANY, has) for want, has in zip(wanted[:4], have, strict=True))
    return alike and not (wanted[4] ^ int(class_code, 16)) & wanted[5]
