"""mount, umount, df and lsblk (util-linux, coreutils) of a lab host."""

from __future__ import annotations

import os
from typing import Any

from .program import Failure, Options, UsageError, logged
from .state import HostState
from .storage import mount, mounted_here, unmount

_MIB = 1 << 20


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the storage commands."""
    work = {
        "mount": _mount,
        "umount": _umount,
        "df": _df,
        "lsblk": _lsblk,
    }[name]
    return work(host, arguments)


def _mount(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "t:o:Brwnv", ("bind", "types=", "options=", "rbind", "make-private", "mkdir"))
    if not options.rest:
        for entry in host.machine["mounts"]:
            print(f"{entry['source']} on {entry['target']} type {entry['fstype']} ({entry['options']})")
        return 0
    extra = (options.value("o", "options") or "").split(",")
    bind = options.has("B", "bind", "rbind") or "bind" in extra
    if len(options.rest) != 2:
        raise Failure(f"mount: {options.rest[0]}: can't find in /etc/fstab.", 1)

    def work() -> int:
        mount(host, options.rest[0], options.rest[1], options.value("t", "types") or "", bind)
        return 0

    return logged(host, "mount", arguments, work)


def _umount(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "lfRrn", ("lazy", "force", "recursive"))
    if not options.rest:
        raise Failure("umount: bad usage\nTry 'umount --help' for more information.")

    def work() -> int:
        for target in options.rest:
            unmount(host, target)
        return 0

    return logged(host, "umount", arguments, work)


def _mount_of(host: HostState, path: str) -> dict[str, Any]:
    """The mount that a path lies on."""
    target = host.rooted(path)
    if not os.path.lexists(target):
        raise Failure(f"df: {path}: No such file or directory")
    name = host.unrooted(target if mounted_here(host, target) else target.resolve())
    esp = str(host.esp)
    if name.startswith(esp):
        return next(e for e in host.machine["mounts"] if e.get("covered"))
    best: dict[str, Any] = {}
    for entry in host.machine["mounts"]:
        point = entry["target"]
        if (name == point or name.startswith(point.rstrip("/") + "/")) and len(point) >= len(best.get("target", "")):
            best = entry
    return best


def _sizes(entry: dict[str, Any]) -> tuple[int, int]:
    """(size, free) in bytes."""
    if entry["fstype"] == "vfat":
        return 1024 * _MIB, 700 * _MIB
    return (96 * 1024 * _MIB, 80 * 1024 * _MIB) if entry["target"] == "/" else (32 * 1024 * _MIB, 32 * 1024 * _MIB)


def _df(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "PB:")
    if "P" not in options or options.value("B") != "1" or not options.rest:
        raise UsageError("the lab's df has -P -B1 PATH...")
    print("Filesystem 1-blocks Used Available Capacity Mounted on")
    for entry in (_mount_of(host, path) for path in options.rest):
        size, free = _sizes(entry)
        print(entry["source"], size, size - free, free, f"{(size - free) * 100 // size}%", entry["target"])
    return 0


def block_tree(host: HostState) -> list[dict[str, str]]:
    """Disks, partitions and volumes with lsblk's columns."""
    rows = []
    for device in host.machine["hardware"]["devices"]:
        for disk in device["blocks"]:
            rows.append(_row(disk["name"], ""))
            for part in disk["partitions"]:
                row = _row(part["name"], disk["name"])
                row |= {
                    "FSTYPE": part["fstype"] or "",
                    "UUID": part["uuid"] or "",
                    "MOUNTPOINT": part["mountpoint"] or "",
                }
                if part["fstype"] == "vfat":
                    row["PARTTYPE"] = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
                rows.append(row)
    for index, volume in enumerate(host.machine["hardware"]["volumes"]):
        row = _row(f"dm-{index}", volume["on"])
        mountpoint = volume["mountpoint"] or ("[SWAP]" if volume["fstype"] == "swap" else "")
        row |= {
            "NAME": volume["name"],
            "PATH": f"/dev/mapper/{volume['name']}",
            "FSTYPE": volume["fstype"],
            "UUID": volume["uuid"] or "",
            "MOUNTPOINT": mountpoint,
        }
        rows.append(row)
    for entry in host.machine["mounts"]:
        for row in rows:
            if entry.get("covered") and row["PATH"] == entry["source"]:
                row["MOUNTPOINT"] = entry["target"]
    return rows


def _row(name: str, parent: str) -> dict[str, str]:
    return {
        "NAME": name, "KNAME": name, "PKNAME": parent, "PATH": f"/dev/{name}", "FSTYPE": "", "MOUNTPOINT": "", "UUID": "",
        "PARTTYPE": "",
    }  # fmt: skip


def _lsblk(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "nrPo:")
    fields, rows = (options.value("o") or "").split(","), block_tree(host)
    if "n" not in options or not options.has("r", "P") or not set(fields) <= rows[0].keys():
        raise UsageError(f"the lab's lsblk has -nro and -Pno with {', '.join(rows[0])}")
    below = {row["KNAME"]: [child for child in rows if child["PKNAME"] == row["KNAME"]] for row in rows}

    def show(row: dict[str, str]) -> None:
        print(" ".join(f'{name}="{row[name]}"' if "P" in options else row[name] for name in fields))
        for child in below[row["KNAME"]]:
            show(child)

    for row in rows:
        if not row["PKNAME"]:
            show(row)
    return 0
