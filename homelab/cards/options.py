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


def migratable(facts: HostFacts, name: str, gpu: Gpu, _slot: str) -> list[HomelabError]:
    """A gate: this Proxmox VE knows liveMigration, if it is set."""
    return refused(facts, f"gpus.{name}", LIVE_MIGRATION) if gpu.live_migration else []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0]))
