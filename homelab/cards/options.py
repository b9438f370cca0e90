"""Options of cards that only newer versions of Proxmox VE know: refused before anything is changed. Pure."""

from __future__ import annotations

import re

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.settings import Gpu

# Option -> the package that knows it, and since when (changelogs of qemu-server and pve-guest-common).
_SINCE = {
    "liveMigration (live-migration-capable)": ("libpve-guest-common-perl", "5.1.7", "8.4"),
    "driver: keep": ("qemu-server", "9.0.25", "9.1"),
}
LIVE_MIGRATION, KEEP = _SINCE


def refused(facts: HostFacts, name: str, option: str) -> list[HomelabError]:
    """The refusal of an option that this host's Proxmox VE doesn't know, or whose version is unknown.

    :param name: of the card or use that has the option, for messages.
    :param option: LIVE_MIGRATION or KEEP.
    """
    package, oldest, release = _SINCE[option]
    version = facts.packages.get(package, "")
    if _numbers(version) >= _numbers(oldest):
        return []
    return [
        HomelabError(
            wanted=f"{name}: {option}",
            found=f"{package} {version}" if version else f"the version of {package} can't be told",
            why=f"Proxmox VE knows it since {package} {oldest} ({release}); an older one refuses the change",
            next="update the host (`apt full-upgrade`), or take the option out",
        )
    ]


def migratable(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: liveMigration is set for a virtual function, and this Proxmox VE knows it."""
    if not gpu.live_migration:
        return []
    device = facts.by_address.get(slot)
    if device is not None and device.physfn:
        return refused(facts, f"gpus.{name}", LIVE_MIGRATION)
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with liveMigration",
            found="it is a card as a whole",
            why="only some drivers of virtual functions can hand their state over; with a whole card the migration "
            "would fail half-way",
            next=f"take gpus.{name}.liveMigration out: a VM that is off can be moved to another node that has such "
            "a mapping",
        )
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0]))
