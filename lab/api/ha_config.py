"""/etc/pve/ha/resources.cfg: which guests HA has, and what it is to make of them (PVE::HA::Config, PVE::HA::Resources). HA itself does nothing here."""

from __future__ import annotations

import re
from typing import Any

from .guest_config import Kind
from .guests import Guest

FILE = "/etc/pve/ha/resources.cfg"
_OF_KIND: dict[Kind, str] = {"qemu": "vm", "lxc": "ct"}


def shown(guest: Guest) -> dict[str, Any]:
    """`ha` of a guest's status. A start or a stop doesn't ask HA here: homelab touches no guest that it has."""
    text = guest.host.read(FILE, "")
    section = re.search(rf"(?m)^{_OF_KIND[guest.kind]}: *{guest.vmid}\n((?:\t.*\n)*)", text)
    if section is None:
        return {"managed": 0}
    state = re.search(r"(?m)^\tstate (\w+)$", section[1])
    wanted = "started" if state is None or state[1] == "enabled" else state[1]
    return {"managed": 0} if wanted == "ignored" else {"managed": 1, "state": wanted}
