"""Storages (/etc/pve/storage.cfg) and the volumes on them.

A directory's volumes are sparse files below the host's root; those of a thin pool or a dataset exist by the guests'
configurations alone, which is all that the host's own files say about them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.host.state import HostState

from .errors import Died
from .options import split_list

_FILE = "/etc/pve/storage.cfg"
_HEADER = re.compile(r"(\w+):\s*(\S+)\s*")
# What a node has when nothing is configured; it shows a priority then, which a written one hasn't.
_IMPLICIT = {"path": "/var/lib/vz", "content": "images,iso,snippets,rootdir,vztmpl,backup", "priority": "0"}
_SNAPSHOTS = frozenset({"lvmthin", "zfspool", "rbd", "btrfs"})
#: Where the files of a directory lie, by content.
FOLDERS = {
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "snippets": "snippets",
    "backup": "dump",
    "import": "import",
}
_TOTAL, _USED = 100 << 30, 20 << 30


@dataclass
class Storage:
    """One storage: `kind` is its type (`dir`, `lvmthin`, `zfspool`), `settings` as in the file."""

    name: str
    kind: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> set[str]:
        """What may lie on it: images, rootdir, iso, ..."""
        return set(split_list(self.settings.get("content", "images,rootdir")))

    @property
    def has_snapshots(self) -> bool:
        """Whether its (raw) volumes can be snapshotted."""
        return self.kind in _SNAPSHOTS


class Storages:
    """The storages of a host.

    Args:
        host: whose /etc/pve it is.
    """

    def __init__(self, host: HostState) -> None:
        self._host = host
        text = host.read(_FILE, "")
        self.digest = hashlib.sha1(text.encode()).hexdigest()
        self.all: dict[str, Storage] = {}
        current: Storage | None = None
        for line in text.splitlines():
            if match := _HEADER.fullmatch(line):
                current = self.all[match[2]] = Storage(match[2], match[1])
            elif current is not None and line.strip():
                key, _, value = line.strip().partition(" ")
                current.settings[key] = value.strip() or "1"
        self.all.setdefault("local", Storage("local", "dir", dict(_IMPLICIT)))

    def save(self) -> None:
        """Write storage.cfg."""
        parts = []
        for storage in self.all.values():
            settings = {key: value for key, value in storage.settings.items() if key != "priority"}
            parts.append(f"{storage.kind}: {storage.name}\n" + "".join(f"\t{k} {v}\n" for k, v in settings.items()))
        self._host.write(_FILE, "\n".join(parts), 0o640)

    def get(self, name: str) -> Storage:
        """A storage by name.

        Raises:
            ApiError: 500, there is none.
        """
        if name not in self.all:
            raise Died(f"storage '{name}' does not exist")
        return self.all[name]

    def status(self, storage: Storage) -> dict[str, Any]:
        """A storage's state on the node."""
        return {
            "storage": storage.name, "type": storage.kind, "content": storage.settings.get("content", "images,rootdir"),
            "active": 1, "enabled": 1, "shared": int(storage.settings.get("shared", "0")),
            "total": _TOTAL, "used": _USED, "avail": _TOTAL - _USED, "used_fraction": _USED / _TOTAL,
        }  # fmt: skip

    def has_file(self, volume: str) -> bool:
        """Whether a volume that is a file of a directory, such as `local:snippets/hook.sh`, is there."""
        name, _, rest = volume.partition(":")
        kind, _, file = rest.partition("/")
        path = self.all[name].settings.get("path") if name in self.all else None
        return path is not None and kind in FOLDERS and self._host.rooted(f"{path}/{FOLDERS[kind]}/{file}").exists()

    def files(self, storage: Storage) -> list[dict[str, Any]]:
        """The volumes of a directory that are files, as the API lists them."""
        found: list[dict[str, Any]] = []
        for kind in sorted(storage.content & set(FOLDERS)):
            folder = self._host.rooted(f"{storage.settings.get('path', '')}/{FOLDERS[kind]}")
            for path in sorted(folder.iterdir()) if "path" in storage.settings and folder.is_dir() else []:
                named = {
                    "volid": f"{storage.name}:{kind}/{path.name}",
                    "content": kind,
                    "format": path.suffix[1:] or "raw",
                }
                found.append({**named, "size": path.stat().st_size, "ctime": int(path.stat().st_mtime)})
        return found

    # -- volumes -----------------------------------------------------------------------------------------
    def require_volume(self, volume: str) -> None:
        """Refuse a file that isn't on its storage: an image of a CD, a container template.

        Raises:
            ApiError: 500 with the volume's name.
        """
        name, _, rest = volume.partition(":")
        self.get(name)
        if rest.partition("/")[0] in FOLDERS and not self.has_file(volume):
            raise Died(f"volume '{volume}' does not exist")

    def allocate(
        self, name: str, vmid: int, size: int, taken: set[str], log: Callable[[str], None], content: str = "images"
    ) -> str:
        """Make a volume and return its id, as in `local-lvm:vm-103-disk-0`.

        Args:
            size: bytes; 0 makes a container's folder instead of an image.
            taken: volume ids that the guest has already.
            log: gets what the storage's tools say.
            content: images or rootdir.

        Raises:
            ApiError: 500, no such storage, or it doesn't take such content.
        """
        storage = self.get(name)
        if content not in storage.content:
            raise Died(f"storage '{name}' does not support content-type '{content}'")
        number = 0
        while (volume := self._volume(storage, vmid, number, size)) in taken or self._file(volume, storage).exists():
            number += 1
        path = self._file(volume, storage)
        if storage.kind != "dir":
            log(f'  Logical volume "{path.name}" created.' if storage.kind == "lvmthin" else f"zfs create {path.name}")
        elif size:
            log(f"Formatting '{self._host.unrooted(path)}', fmt=raw size={size} preallocation=off")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as image:
                image.truncate(size)
        else:
            path.mkdir(parents=True)
        return volume

    def _volume(self, storage: Storage, vmid: int, number: int, size: int) -> str:
        if storage.kind != "dir":
            kind = "subvol" if storage.kind == "zfspool" and not size else "vm"
            return f"{storage.name}:{kind}-{vmid}-disk-{number}"
        name = f"vm-{vmid}-disk-{number}.raw" if size else f"subvol-{vmid}-disk-{number}.subvol"
        return f"{storage.name}:{vmid}/{name}"

    def _file(self, volume: str, storage: Storage) -> Any:
        folder = f"{storage.settings['path']}/images" if storage.kind == "dir" else f"/nowhere/{storage.name}"
        return self._host.rooted(f"{folder}/{volume.partition(':')[2]}")

    def free(self, volume: str) -> None:
        """Remove a volume; one of a storage that is gone, or that has no file, needs nothing."""
        storage = self.all.get(volume.partition(":")[0])
        if storage is None or storage.kind != "dir" or ":" not in volume:
            return
        path = self._file(volume, storage)
        if path.is_dir():
            for child in sorted(path.rglob("*"), reverse=True):
                child.rmdir() if child.is_dir() else child.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
