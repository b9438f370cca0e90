"""mount, umount, df and lsblk (util-linux, coreutils) of a lab host."""

from __future__ import annotations

import os
from typing import Any

from .program import Failure, Options, UsageError, logged
from .state import HostState
from .storage import MountError, mount, mounted_here, unmount

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
        for entry in host.looked_at["mounts"]:
            print(f"{entry['source']} on {entry['target']} type {entry['fstype']} ({entry['options']})")
        return 0
    extra = (options.value("o", "options") or "").split(",")
    bind = options.has("B", "bind", "rbind") or "bind" in extra
    if len(options.rest) != 2:
        raise Failure(f"mount: {options.rest[0]}: can't find in /etc/fstab.", 1)

    def work() -> int:
        try:
            mount(host, options.rest[0], options.rest[1], options.value("t", "types") or "", bind)
        except MountError as error:
            raise Failure(str(error), error.status) from error
        return 0

    return logged(host, "mount", arguments, work)


def _umount(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "lfRrn", ("lazy", "force", "recursive"))
    if not options.rest:
        raise Failure("umount: bad usage\nTry 'umount --help' for more information.")

    def work() -> int:
        for target in options.rest:
            try:
                unmount(host, target)
            except MountError as error:
                raise Failure(str(error), error.status) from error
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
        return next(e for e in host.looked_at["mounts"] if e.get("covered"))
    best: dict[str, Any] = {}
    for entry in host.looked_at["mounts"]:
        point = entry["target"]
        if (name == point or name.startswith(point.rstrip("/") + "/")) and len(point) >= len(best.get("target", "")):
            best = entry
    return best


def _sizes(host: HostState, entry: dict[str, Any]) -> tuple[int, int]:
    """(size, free) in bytes. /boot and the ESPs obey the fault boot-free-mb."""
    fault = host.fault("boot-free-mb")
    if entry["fstype"] == "vfat":
        size, free = 1024 * _MIB, 700 * _MIB
    elif entry["target"] == "/":
        size, free = 96 * 1024 * _MIB, 80 * 1024 * _MIB
    else:
        return 32 * 1024 * _MIB, 32 * 1024 * _MIB
    return size, free if fault is None else int(fault) * _MIB


def _df(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "PkmhaTlB:",
        ("output=", "block-size=", "portability", "local", "human-readable", "print-type"),
    )
    block = options.value("B", "block-size")
    units = {"1": 1, "K": 1024, "1K": 1024, "M": _MIB, "1M": _MIB, "G": 1 << 30, "1G": 1 << 30, None: 1024}
    if "m" in options:
        block = "M"
    if block not in units or options.has("h", "human-readable"):
        raise UsageError("the lab's df prints blocks of 1, K, M or G (-B), not human-readable sizes")
    unit = units[block]
    entries = [_mount_of(host, p) for p in options.rest] or [
        e for e in host.looked_at["mounts"] if e["source"].startswith(("/", "rpool"))
    ]
    fields = (options.value("output") or "source,size,used,avail,pcent,target").split(",")
    heads = {
        "source": "Filesystem",
        "size": "1K-blocks" if unit == 1024 else f"{block}-blocks",
        "used": "Used",
        "avail": "Available" if "output" not in options else "Avail",
        "pcent": "Use%",
        "target": "Mounted on",
        "fstype": "Type",
        "file": "File",
    }
    if "P" in options or "portability" in options:
        heads |= {"size": f"{unit}-blocks", "pcent": "Capacity"}
    if any(f not in heads for f in fields):
        raise Failure(f"df: option --output: field '{next(f for f in fields if f not in heads)}' unknown")
    rows = [[heads[f] for f in fields]]
    for index, entry in enumerate(entries):
        size, free = _sizes(host, entry)
        values = {
            "source": entry["source"],
            "size": size // unit,
            "used": (size - free) // unit,
            "avail": free // unit,
            "pcent": f"{(size - free) * 100 // size}%",
            "target": entry["target"],
            "fstype": entry["fstype"],
            "file": options.rest[index] if options.rest else "-",
        }
        rows.append([str(values[f]) for f in fields])
    _table(rows, right={f for f in ("size", "used", "avail", "pcent") if f in fields}, fields=fields)
    return 0


def _table(rows: list[list[str]], right: set[str], fields: list[str]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(fields))]
    for row in rows:
        cells = [c.rjust(w) if f in right else c.ljust(w) for c, w, f in zip(row, widths, fields, strict=True)]
        print(" ".join(cells).rstrip())


_LSBLK = (
    "NAME",
    "KNAME",
    "PKNAME",
    "PATH",
    "FSTYPE",
    "MOUNTPOINT",
    "MOUNTPOINTS",
    "UUID",
    "SIZE",
    "TYPE",
    "RO",
    "PARTTYPE",
    "MODEL",
)


def block_tree(host: HostState) -> list[dict[str, Any]]:
    """Disks, partitions and volumes: dictionaries with lsblk's columns and `parent` (a kernel name or None)."""
    rows = []
    for device in host.looked_at["hardware"]["devices"]:
        for disk in device["blocks"]:
            rows.append(_row(disk["name"], None, disk["size"], "disk"))
            for part in disk["partitions"]:
                row = _row(part["name"], disk["name"], part["size"], "part")
                row |= {
                    "FSTYPE": part["fstype"] or "",
                    "UUID": part["uuid"] or "",
                    "MOUNTPOINT": part["mountpoint"] or "",
                }
                if part["fstype"] == "vfat":
                    row["PARTTYPE"] = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
                rows.append(row)
    for index, volume in enumerate(host.looked_at["hardware"]["volumes"]):
        row = _row(f"dm-{index}", volume["on"], volume["size"], "lvm")
        mountpoint = volume["mountpoint"] or ("[SWAP]" if volume["fstype"] == "swap" else "")
        row |= {
            "NAME": volume["name"],
            "PATH": f"/dev/mapper/{volume['name']}",
            "FSTYPE": volume["fstype"],
            "UUID": volume["uuid"] or "",
            "MOUNTPOINT": mountpoint,
        }
        rows.append(row)
    for entry in host.looked_at["mounts"]:
        for row in rows:
            if entry.get("covered") and row["PATH"] == entry["source"]:
                row["MOUNTPOINT"] = entry["target"]
    for row in rows:
        row["MOUNTPOINTS"] = row["MOUNTPOINT"]
    return rows


def _row(name: str, parent: str | None, size: int, kind: str) -> dict[str, Any]:
    return {
        "NAME": name,
        "KNAME": name,
        "PKNAME": parent or "",
        "PATH": f"/dev/{name}",
        "FSTYPE": "",
        "MOUNTPOINT": "",
        "UUID": "",
        "SIZE": size,
        "TYPE": kind,
        "RO": "0",
        "PARTTYPE": "",
        "MODEL": "",
        "parent": parent,
    }


def _lsblk(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "no:rsdpbPlfaJ",
        ("noheadings", "output=", "raw", "inverse", "nodeps", "paths", "bytes", "pairs", "list", "all"),
    )
    fields = [f.upper() for f in (options.value("o", "output") or "NAME,SIZE,TYPE,MOUNTPOINTS").split(",")]
    if "f" in options:
        fields = ["NAME", "FSTYPE", "UUID", "MOUNTPOINTS"]
    unknown = [f for f in fields if f not in _LSBLK]
    if unknown or "J" in options:
        raise Failure(f"lsblk: unknown column: {unknown[0] if unknown else 'JSON output is not simulated'}")
    rows = block_tree(host)
    chosen = _ordered(host, rows, options)
    out = []
    for row, depth in chosen:
        values = {**row, "NAME": row["PATH"] if options.has("p", "paths") else row["NAME"]}
        values["SIZE"] = row["SIZE"] if options.has("b", "bytes") else _human(row["SIZE"])
        plain = options.has("r", "raw", "l", "list", "P", "pairs", "d", "nodeps")
        cells = [str(values[f]) for f in fields]
        if not plain and "NAME" in fields and depth:
            position = fields.index("NAME")
            cells[position] = "  " * (depth - 1) + "└─" + cells[position]
        out.append(cells)
    if options.has("P", "pairs"):
        print("\n".join(" ".join(f'{f}="{c}"' for f, c in zip(fields, cells, strict=True)) for cells in out))
        return 0
    if not options.has("n", "noheadings"):
        out.insert(0, fields)
    if options.has("r", "raw"):
        print("\n".join(" ".join(cells) for cells in out))
    else:
        _table(out, {"SIZE"}, fields)
    return 0


def _ordered(host: HostState, rows: list[dict[str, Any]], options: Options) -> list[tuple[dict[str, Any], int]]:
    by_name = {row["KNAME"]: row for row in rows}
    inverse, alone = options.has("s", "inverse"), options.has("d", "nodeps")

    def walk(row: dict[str, Any], depth: int) -> list[tuple[dict[str, Any], int]]:
        found = [(row, depth)]
        if alone:
            return found
        if inverse:
            return found + (walk(by_name[row["parent"]], depth + 1) if row["parent"] else [])
        for child in rows:
            if child["parent"] == row["KNAME"]:
                found += walk(child, depth + 1)
        return found

    if options.rest:
        starts = []
        for wanted in options.rest:
            name = host.rooted(wanted).resolve().name
            if name not in by_name:
                raise Failure(f"lsblk: {wanted}: not a block device", 32)
            starts.append(by_name[name])
    elif inverse:
        parents = {row["parent"] for row in rows}
        starts = [row for row in rows if row["KNAME"] not in parents]
    else:
        starts = [row for row in rows if row["parent"] is None]
    return [item for start in starts for item in walk(start, 0)]


def _human(size: int) -> str:
    value, unit = float(size), "B"
    for unit in "BKMGT":
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}{unit}".replace(".0", "")
