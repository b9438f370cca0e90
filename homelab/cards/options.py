"""Options of cards that Proxmox VE may not know: refused before anything is changed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts

# The first qemu-server with hostpci's driver=keep (its changelog), of Proxmox VE 9.1.
_KEEPS_SINCE = (9, 0, 25)


def keep_refused(facts: HostFacts, name: str) -> Iterator[HomelabError]:
    """The refusal of `driver: keep` where this host's Proxmox VE doesn't know it, or its version is unknown.

    :param name: of the card or use that has the option, for messages.
    """
    version = facts.packages.get("qemu-server", "")
    if tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])) < _KEEPS_SINCE:
        yield HomelabError(
            wanted=f"{name}: driver: keep",
            found=f"qemu-server {version}" if version else "the version of qemu-server can't be told",
            why=f"Proxmox VE knows it since qemu-server {'.'.join(map(str, _KEEPS_SINCE))} (9.1); an older one refuses "
            "the change",
            next="update the host (`apt full-upgrade`), or take the option out",
        )
