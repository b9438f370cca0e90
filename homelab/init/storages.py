"""What a new VM can be made of, from the output of `pvesh`: storages for its disk, images and CDs. Pure.

A row of an unexpected form is skipped with a sentence; output that isn't JSON is an error.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homelab.errors import HomelabError
from homelab.settings.download import KnownImage
from homelab.settings.download import images as known_images

_FORM = "--output-format json"
# Formats of a disk that can be imported; an .ova or .ovf is a whole VM.
_DISKS = (".qcow2", ".raw", ".vmdk", ".img")


@dataclass(frozen=True)
class HostStorage:
    """A storage of a node. `content`: its content types, such as images, iso, import."""

    name: str
    content: frozenset[str]


def listing(node: str) -> str:
    """The command that lists a node's storages."""
    return f"pvesh get {shlex.quote(f'/nodes/{node}/storage')} --enabled 1 {_FORM}"


def listing_of(node: str, storage: str, kind: str) -> str:
    """The command that lists the volumes of one kind on a storage."""
    return f"pvesh get {shlex.quote(f'/nodes/{node}/storage/{storage}/content')} --content {kind} {_FORM}"


def storages(printed: str) -> tuple[list[HostStorage], list[str]]:
    """The active storages, and a sentence for each row of an unexpected form.

    :raises HomelabError: the output isn't a list.
    """
    odd: list[str] = []
    active = []
    for row in _rows(printed, "the host's storages", odd):
        name, content = row.get("storage"), row.get("content")
        if not isinstance(name, str) or not isinstance(content, str):
            odd.append(_odd("a storage", row))
        elif row.get("active") in (1, "1"):
            active.append(HostStorage(name, frozenset(content.replace(" ", ",").split(","))))
    return active, odd


def volumes(printed: str, kind: str) -> tuple[list[str], list[str]]:
    """The names of volumes, sorted, and a sentence for each row of an unexpected form.

    :param kind: import or iso.
    :raises HomelabError: the output isn't a list.
    """
    odd: list[str] = []
    names = []
    for row in _rows(printed, "what lies on a storage", odd):
        if not isinstance(volume := row.get("volid"), str):
            odd.append(_odd("a volume", row))
        elif kind != "import" or volume.lower().endswith(_DISKS):
            names.append(volume)
    return sorted(names), odd


@dataclass(frozen=True)
class Offered:
    """What a new VM can be made of. `disks`: storages for its disk; `images`: volumes with the content of a disk;
    `isos`: CDs; `into`: the storage for downloaded images, None: no storage accepts them.
    """

    disks: list[str]
    images: list[str]
    isos: list[str]
    into: str | None

    @property
    def downloadable(self) -> list[str]:
        """Names of known cloud images that can be downloaded, and aren't there yet."""
        files = {volume.rpartition("/")[2] for volume in self.images}
        return [name for name, image in cloud_images().items() if self.into is not None and image.file not in files]


def cloud_images() -> dict[str, KnownImage]:
    """The known images that become a VM's disk; the others are CDs for an installation."""
    return {name: image for name, image in known_images().items() if image.user}


def offered(node: str, ask: Callable[[str], str], tell: Callable[[Sequence[str]], None]) -> Offered:
    """What a new VM can be made of on a node.

    :param ask: runs a command on the host, and returns its output.
    :param tell: shows sentences to the user.
    :raises HomelabError: an output isn't a list, or no storage takes disks.
    """
    active, odd = storages(ask(listing(node)))
    tell(odd)
    disks = [storage.name for storage in active if "images" in storage.content]
    if not disks:
        raise HomelabError(
            wanted="a storage for the new VM's disk",
            found="none that is active and takes disks of VMs",
            why="the VM's system disk is made on it",
            next="add one in the web interface (Datacenter -> Storage, content: Disk image)",
        )
    listed: dict[str, list[str]] = {"import": [], "iso": []}
    for kind, names in listed.items():
        for storage in active:
            if kind in storage.content:
                volume_names, odd = volumes(ask(listing_of(node, storage.name, kind)), kind)
                names.extend(volume_names)
                tell(odd)
    takers = [storage.name for storage in active if "import" in storage.content]
    into = "local" if "local" in takers else next(iter(takers), None)
    return Offered(disks, listed["import"], listed["iso"], into)


def user_of(image: str) -> str:
    """The default user of a distribution's cloud image; empty: not known."""
    if image in cloud_images():
        return cloud_images()[image].user
    names = {
        "ubuntu": "ubuntu",
        "noble": "ubuntu",
        "resolute": "ubuntu",
        "jammy": "ubuntu",
        "server-cloudimg": "ubuntu",
        "debian": "debian",
        "rocky": "rocky",
    }
    names |= {"almalinux": "almalinux", "fedora": "fedora", "centos": "cloud-user"}
    return next((user for part, user in names.items() if part in image.lower()), "")


def last_json(printed: str) -> Any:
    """The JSON of the last line, since a login may print other lines before it; None: the line isn't JSON."""
    try:
        return json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        return None


def _rows(printed: str, what: str, odd: list[str]) -> Iterator[Mapping[str, Any]]:
    listed = last_json(printed)
    if not isinstance(listed, list):
        raise HomelabError(
            wanted=f"{what}, as a list from pvesh",
            found=printed.strip()[-300:] or "nothing",
            why="what a new VM is made of is chosen from it",
            next="run the command on the host, and see what keeps it from answering; or describe the VM in the "
            "settings yourself: docs/settings.md",
        )
    for row in listed:
        if isinstance(row, Mapping):
            yield row
        else:
            odd.append(_odd("a row", row))


def _odd(what: str, row: Any) -> str:
    return f"{what} that pvesh names is ignored, since its form isn't known: {json.dumps(row)[:120]}"
