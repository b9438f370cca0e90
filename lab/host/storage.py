"""Mounts of a lab host. Mounting makes a folder show another one: the mount point is moved aside and a symbolic
link takes its place; unmounting puts it back. The table is machine.json's `mounts`, what is covered lies in
STATE/covered.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from .program import Failure
from .state import HostState

# A system has them from its start on; only an initramfs comes before.
_KERNELS_OWN = ("proc", "sysfs")


def _refused(text: str) -> Failure:
    """What mount and umount end with."""
    return Failure(text, 32)


def mounted_here(host: HostState, target: Path) -> dict[str, Any] | None:
    """The last mount made on a folder by `mount` (not those of boot)."""
    name = host.unrooted(target)
    for entry in reversed(host.machine["mounts"]):
        if entry["target"] == name and entry.get("covered"):
            found: dict[str, Any] = entry
            return found
    return None


def source_folder(host: HostState, device: Path) -> tuple[Path, str]:
    """The folder with a device's content and its file system type.

    Raises:
        Failure: no such device, or nothing on it that can be mounted.
    """
    if not device.exists():
        raise _refused(f"mount: special device {host.unrooted(device)} does not exist.")
    name = device.resolve().name
    for disk_device in host.machine["hardware"]["devices"]:
        for disk in disk_device["blocks"]:
            for part in disk["partitions"]:
                if part["name"] == name and part["fstype"] == "vfat":
                    return host.esp / part["uuid"], "vfat"
    raise _refused(f"mount: {host.unrooted(device)}: unknown filesystem type or not a file system the lab has.")


def mount(host: HostState, source: str, target: str, fstype: str, bind: bool) -> None:
    """Mount a device, or bind a folder, on a folder.

    Raises:
        Failure: as the real mount would refuse.
    """
    point = host.rooted(target)
    if not point.is_dir():
        raise _refused(f"mount: {target}: mount point does not exist.")
    if fstype in _KERNELS_OWN:
        _show(host, point, fstype)
        return
    if bind:
        folder = host.rooted(source)
        if not folder.is_dir():
            raise _refused(f"mount: {target}: special device {source} does not exist.")
        folder = folder.resolve()
        found = "none"
    else:
        folder, found = source_folder(host, host.rooted(source))
        if fstype not in ("", "auto", found):
            raise _refused(f"mount: {target}: wrong fs type, bad option, bad superblock on {source}.")
    with host.changing():
        _cover(host, point, folder, source, found, bind)
    _write_table(host)


def _show(host: HostState, point: Path, fstype: str) -> None:
    """Bring what the kernel shows into view, where it isn't yet: in an initramfs (STATE/unmounted holds it)."""
    kept = host.state / "unmounted" / fstype
    if kept.is_dir():
        point.rmdir()
        kept.rename(point)


def _cover(host: HostState, point: Path, folder: Path, source: str, fstype: str, bind: bool) -> None:
    (host.state / "covered").mkdir(exist_ok=True)
    taken = {path.name for path in (host.state / "covered").iterdir()}
    name = next(n for n in (f"{i}-{point.name}" for i in itertools.count()) if n not in taken)
    covered = host.state / "covered" / name
    point.rename(covered)
    point.symlink_to(folder)
    resolved = source if bind else f"/dev/{host.rooted(source).resolve().name}"
    host.machine["mounts"].append(
        {
            "source": host.unrooted(resolved),
            "target": host.unrooted(point),
            "fstype": fstype,
            "options": "rw,relatime",
            "covered": covered.name,
        }
    )


def unmount(host: HostState, target: str) -> None:
    """Unmount what was mounted last on a folder (or from a device).

    Raises:
        Failure: nothing is mounted there.
    """
    with host.changing():
        _undo(host, _entry_to_undo(host, target))
    _write_table(host)


def _entry_to_undo(host: HostState, target: str) -> dict[str, Any]:
    entry = mounted_here(host, host.rooted(target))
    if entry is None:
        name = f"/dev/{host.rooted(target).resolve().name}" if host.unrooted(target).startswith("/dev/") else ""
        entry = next((e for e in reversed(host.machine["mounts"]) if e.get("covered") and e["source"] == name), None)
    if entry is None:
        raise _refused(f"umount: {host.unrooted(target)}: not mounted.")
    return entry


def _undo(host: HostState, entry: dict[str, Any]) -> None:
    point = host.rooted(entry["target"])
    point.unlink()
    (host.state / "covered" / entry["covered"]).rename(point)
    host.machine["mounts"].remove(entry)


def unmount_all(host: HostState) -> None:
    """Undo every mount that a program made, latest first."""
    with host.changing() as machine:
        for entry in [e for e in reversed(machine["mounts"]) if e.get("covered")]:
            _undo(host, entry)
    host.remove_tree(host.state / "covered")


def _write_table(host: HostState) -> None:
    lines = (f"{m['source']} {m['target']} {m['fstype']} {m['options']} 0 0\n" for m in host.machine["mounts"])
    if (host.root / "proc").is_dir():
        host.write("/proc/mounts", "".join(lines), 0o444)
