"""Files on a host's storages that guests are created from: and refusals of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from homelab.errors import HomelabError
from homelab.settings import Container, Host, Vm

# Content -> its name in messages, its tab in the web interface, another way to get one.
_CONTENTS = {
    "iso": ("ISO image", "ISO Images", "; Windows': https://www.microsoft.com/software-download/windows11, by hand"),
    "vztmpl": (
        "container template",
        "CT Templates",
        "; or `pveam available`, then `pveam download {} NAME` on the host",
    ),
    "import": ("disk image", "Import", ""),
}


def parts(volume: str) -> tuple[str, str, str]:
    """The storage, the content and the name in a volume such as `local:iso/a.iso`."""
    storage, _, rest = volume.partition(":")
    content, _, name = rest.partition("/")
    return storage, content, name


def users(volume: str, lines: str) -> list[str]:
    """The guests whose configuration has a file, such as `VM 103 on pve`, each once.

    :param volume: the file's.
    :param lines: of guests' configurations, as the layer volume_users answers them.
    """
    guests = []
    for line in lines.splitlines():
        match = re.fullmatch(r"([^/]+)/(qemu-server|lxc)/(\d+)\.conf:[a-z]+\d+: *(.+)", line)
        if match and volume in {part.removeprefix("file=").removeprefix("volume=") for part in match[4].split(",")}:
            guests.append(f"{'VM' if match[2] == 'qemu-server' else 'container'} {match[3]} on {match[1]}")
    return list(dict.fromkeys(guests))


def wanted_volumes(guests: Mapping[str, Vm | Container]) -> dict[str, str]:
    """Volumes that guests, by their places in the settings, are created from -> the setting that names each."""
    places: dict[str, str] = {}
    for place, guest in guests.items():
        for volume in guest.volumes:
            places.setdefault(volume, f"{place}.create")
    return {volume: place for volume, place in places.items() if parts(volume)[1] in _CONTENTS}


def describe(host: Host) -> str:
    """The plan's lines for a host's downloads."""
    lines = []
    for name, download in host.downloads.items():
        checked = (
            "and compared with the checksum" if download.checksum else "not compared with a checksum: there is none"
        )
        lines.append(
            f"  {download.volume(name)}: downloaded from {download.url}, {checked}; removed on destroy, unless a guest "
            "uses it. One that is there already is used, and stays"
        )
    return "\n".join(lines)


# -- refusals ---------------------------------------------------------------------------------------------------------
def storage_refusal(name: str, volume: str, storages: Iterable[Mapping[str, object]]) -> HomelabError | None:
    """The refusal of a download that its storage can't take; None: it can, as far as that is known.

    :param name: the download's place in the settings, such as `hosts.pve.downloads.noble.qcow2`.
    :param volume: the file's.
    :param storages: as GET /nodes/NODE/storage lists them.
    """
    storage, content, file = parts(volume)
    kind = _CONTENTS[content][0]
    contents = {str(row["storage"]): contents_of(row) for row in storages if row.get("enabled", 1)}
    takes = contents.get(storage, set())
    if content in takes:
        return None
    others = sorted(key for key in contents if content in contents[key])
    unfit = f"{storage} takes {', '.join(sorted(takes))}, and not `{content}`"
    found = unfit if takes else "the node has no such storage, or it is switched off"
    allowed = ",".join(sorted({*takes, content}))
    ways = [f"set {name}.storage to one of them"] if others else []
    ways += [f"allow it (`pvesm set {storage} --content {allowed}` on the host)"] if takes else []
    old = " (from Proxmox VE 8.4 on)" if content == "import" else ""
    return HomelabError(
        wanted=f"{file} downloaded to the storage {storage}, for {name}",
        found=f"{found}; for {kind}s there are: {', '.join(others) or 'none'}",
        why=f"Proxmox VE keeps a {kind} only on a storage with that content{old}, and only on one of files: a "
        "directory, NFS, CIFS, CephFS",
        next=", or ".join(ways) or f"switch on, or add, a storage of files that takes `{content}`",
    )


def contents_of(row: Mapping[str, object]) -> set[str]:
    """What a storage takes, as GET /nodes/NODE/storage says it."""
    return {content for content in str(row.get("content", "")).split(",") if content}


def missing(place: str, volume: str, volumes: Iterable[str]) -> HomelabError:
    """The refusal of a guest whose file is neither on its storage nor a download.

    :param place: the setting that names the file.
    :param volume: the file's.
    :param volumes: those of the same content on the storage.
    """
    storage, content, _ = parts(volume)
    kind, tab, by_hand = _CONTENTS[content]
    return HomelabError(
        wanted=f"{volume}, as {place} names it",
        found=f"it is not on the storage; there are: {', '.join(sorted(volumes)) or 'none'}",
        why=f"the guest is to be made of this {kind}",
        next=f"upload it (web interface: {storage} -> {tab} -> Upload{by_hand.format(storage)}); or let Proxmox VE "
        "download it, with hosts.NAME.downloads (docs/settings-host.md); or name one that is there",
    )
