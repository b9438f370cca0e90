"""Files on a host's storages that guests are made of: what stands against them, and what failed downloads mean.
Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from homelab.errors import HomelabError
from homelab.settings import Container, Host, Vm

# What a content is called: to a person, in the web interface, and its folder below a directory storage's path.
_CALLED = {
    "iso": ("ISO image", "ISO Images", "template/iso"),
    "vztmpl": ("container template", "CT Templates", "template/cache"),
    "import": ("disk image", "Import", "import"),
}
_MIB = 1 << 20


def parts(volume: str) -> tuple[str, str, str]:
    """`local:iso/a.iso` as storage, content and name."""
    storage, _, rest = volume.partition(":")
    content, _, name = rest.partition("/")
    return storage, content, name


def sum_in(text: str, name: str) -> str | None:
    """A file's checksum from what sha256sum or sha512sum printed (`digits *name`), as `Download.checksum` has it; None:
    it isn't there."""
    match = re.search(rf"^([0-9a-f]{{64}}|[0-9a-f]{{128}}) [ *](?:\./)?{re.escape(name)}\r?$", text, re.MULTILINE)
    return None if match is None else f"{'sha256' if len(match[1]) == 64 else 'sha512'}:{match[1]}"


def users(volume: str, lines: str) -> list[str]:
    """The guests that a file is part of, as `qm` and `pct` know them: VM 103 on pve.

    :param lines: of guests' configurations (remote_scripts/storage_file.sh, users).
    """
    found = []
    for line in lines.splitlines():
        match = re.fullmatch(r"([^/]+)/(qemu-server|lxc)/(\d+)\.conf:[a-z]+\d+: *(.+)", line)
        if match and volume in {one.removeprefix("file=").removeprefix("volume=") for one in match[4].split(",")}:
            found.append(f"{'VM' if match[2] == 'qemu-server' else 'container'} {match[3]} on {match[1]}")
    return list(dict.fromkeys(found))


def wanted_volumes(vms: Mapping[str, Vm], containers: Mapping[str, Container]) -> dict[str, str]:
    """Volumes that guests with `create` are made of -> the setting that names each."""
    found: dict[str, str] = {}
    for section, guests in (("vms", vms), ("containers", containers)):
        for name, guest in guests.items():
            for volume in guest.volumes:
                found.setdefault(volume, f"{section}.{name}.create")
    return {volume: place for volume, place in found.items() if parts(volume)[1] in _CALLED}


def describe(host: Host) -> str:
    """The plan's lines for downloads."""
    lines = []
    for name, one in host.downloads.items():
        whence = f"from {one.address}" if one.address else "as Proxmox VE's list of templates has it"
        if one.template:
            checked = "with the list's checksum"
        elif one.checksum or one.sums:
            checked = f"with the {'checksum of the settings' if one.checksum else f'checksum of {one.sums}'}"
        else:
            checked = "not compared with a checksum: there is none"
        after = "kept on destroy" if one.keep else "removed on destroy, unless a guest uses it"
        lines.append(
            f"  {one.volume} ({name}): downloaded {whence}, {checked}; {after}. One that is there already is used, "
            "and stays"
        )
    return "\n".join(lines)


# -- what stands against it
# ---------------------------------------------------------------------------------------------
def against(
    name: str, volume: str, storages: Iterable[Mapping[str, object]], size: int | None = None
) -> HomelabError | None:
    """Why a file can't come to its storage; None: nothing is known.

    :param name: the download's, as in `hosts.pve.downloads.noble`.
    :param storages: as GET /nodes/NODE/storage lists them.
    :param size: of the file, in bytes; None: its server doesn't say.
    """
    storage, content, file = parts(volume)
    called, _, _ = _CALLED[content]
    rows = {str(row["storage"]): row for row in storages}
    wanted = f"{file} downloaded to the storage {storage}, for {name}"
    if storage not in rows or not rows[storage].get("enabled", 1):
        there = ", ".join(sorted(key for key, row in rows.items() if content in _contents(row))) or "none"
        return HomelabError(
            wanted=wanted,
            found=f"the node has no such storage, or it is switched off; for {called}s there are: {there}",
            why="the file has to lie where this node's guests can be made of it",
            next=f"set {name}.storage to one of them",
        )
    row = rows[storage]
    if not row.get("active"):
        return HomelabError(
            wanted=wanted,
            found="the storage is not active",
            why="nothing can be written to it now",
            next="see why (`pvesm status` on the host), then run `pulumi up` again",
        )
    if content not in _contents(row):
        old = " (from Proxmox VE 8.4 on)" if content == "import" else ""
        added = ",".join(sorted({*_contents(row), content}))
        return HomelabError(
            wanted=wanted,
            found=f"the storage takes {', '.join(sorted(_contents(row))) or 'nothing'}, and not `{content}`",
            why=f"Proxmox VE keeps a {called} only on a storage with that content{old}, and only on one of files: a "
            "directory, NFS, CIFS, CephFS",
            next=f"allow it (`pvesm set {storage} --content {added}` on the host), or set {name}.storage to another "
            "one",
        )
    avail = row.get("avail")
    if size is not None and isinstance(avail, int) and size > avail:
        return HomelabError(
            wanted=wanted,
            found=f"the file has {size // _MIB} MiB, and the storage has {avail // _MIB} MiB left",
            why="a download that fills it up would fail at its end, and until then nothing else could be written there",
            next=f"make room on {storage}, or set {name}.storage to another one",
        )
    return None


def _contents(row: Mapping[str, object]) -> set[str]:
    return {one for one in str(row.get("content", "")).split(",") if one}


def missing(place: str, volume: str, found: Iterable[str]) -> HomelabError:
    """A file that a guest is to be made of, that isn't there, and that nobody downloads.

    :param place: the setting that names it.
    :param found: volumes of that content on the storage.
    """
    storage, content, name = parts(volume)
    called, tab, folder = _CALLED[content]
    step = (
        f"upload it (web interface: {storage} -> {tab} -> Upload; or copy it into the folder {folder} of the "
        "storage), or name one that is there"
    )
    if content == "iso" and re.match(r"(?i)win|.*windows|.*server_eval", name):
        step += (
            ". Microsoft gives its ISO images out by hand alone: "
            "https://www.microsoft.com/software-download/windows11, with an address that holds "
            "for a day"
        )
    elif content == "vztmpl":
        step += (
            f"; or let Proxmox VE download it: hosts.NAME.downloads.ct: {{template: {name}, storage: {storage}}}, "
            "and name `ct` here"
        )
    else:
        step += "; or let Proxmox VE download it, with hosts.NAME.downloads (docs/settings.md), and name that here"
    return HomelabError(
        wanted=f"{volume}, as {place} names it",
        found=f"it is not on the storage; there are: {', '.join(sorted(found)) or 'none'}",
        why=f"the guest is to be made of this {called}",
        next=step,
    )


def unpublished(name: str, file: str, sums: str) -> HomelabError:
    """The maker's list of checksums hasn't the file."""
    return HomelabError(
        wanted=f"the checksum of {file}, for {name}",
        found=f"{sums} doesn't name that file",
        why="an image that nothing can be compared with is not downloaded; nothing was changed",
        next=f"look at that list: the image may be called otherwise by now; set {name}.url and checksum instead of "
        "image",
    )


def of_failed(name: str, url: str | None, reason: str) -> tuple[str, str] | None:
    """Why a download failed and what to do, from its task's exit status (PVE::Tools::download_file_from_url); None: it
    isn't known.

    :param name: the download's in the settings.
    :param url: where it came from, None: Proxmox VE's list of templates says.
    """
    if "aborting" in reason and "mismatch" in reason:
        return (
            "a different file of that name is on the storage already; it was not touched",
            f"remove it or rename it there, or give {name} another file name; without a checksum it would be used "
            "as it is",
        )
    if "checksum mismatch" in reason:
        return (
            "what came isn't the file that its maker means: it was damaged, replaced, or renewed a moment ago. It "
            "was thrown away",
            "run `pulumi up` again: a known image's checksum is read anew. "
            f"If it differs again, compare {name}.checksum with what the maker publishes",
        )
    if "No space left" in reason:
        return (
            "the storage has become full; what had come was thrown away",
            f"make room there, or set {name}.storage to another one, then run `pulumi up` again",
        )
    if "404" in reason:
        return (
            "the server has no such file; nothing was kept",
            f"correct {name}.url" if url else "run `pveam update` on the host and see what `pveam available` lists now",
        )
    if reason.startswith("download failed"):
        return (
            "the host couldn't get it, or not all of it; what had come was thrown away",
            f"see whether the host reaches {url or 'download.proxmox.com'} (a proxy: Datacenter -> Options -> HTTP "
            "proxy), then run `pulumi up` again",
        )
    if "interrupt" in reason or "unexpected status" in reason:
        return (
            "someone stopped the task, or the host went down meanwhile; what had come was thrown away",
            "run `pulumi up` again: it starts anew",
        )
    return None
