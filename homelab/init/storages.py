"""What a host's storages have for a new VM, from what `pvesh` prints: storages for its disk, images and CDs that it may start from. Pure.

What isn't of the known form is passed over with a sentence; an answer that is none is an error.
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
    """`content`: what may lie on it, such as images, iso, import."""

    name: str
    content: frozenset[str]


def listing(node: str) -> str:
    """The command that lists a node's storages."""
    return f"pvesh get {shlex.quote(f'/nodes/{node}/storage')} --enabled 1 {_FORM}"


def listing_of(node: str, storage: str, kind: str) -> str:
    """The command that lists the volumes of one kind on a storage."""
    return f"pvesh get {shlex.quote(f'/nodes/{node}/storage/{storage}/content')} --content {kind} {_FORM}"


def storages(printed: str) -> tuple[list[HostStorage], list[str]]:
    """Those that are active; and a sentence for each row that isn't of the known form.

    :raises HomelabError: it is no list.
    """
    odd: list[str] = []
    found = []
    for row in _rows(printed, "the host's storages", odd):
        name, content = row.get("storage"), row.get("content")
        if not isinstance(name, str) or not isinstance(content, str):
            odd.append(_odd("a storage", row))
        elif row.get("active") in (1, "1"):
            found.append(HostStorage(name, frozenset(content.replace(" ", ",").split(","))))
    return found, odd


def volumes(printed: str, kind: str) -> tuple[list[str], list[str]]:
    """The names of volumes, sorted; and a sentence for each row that isn't of the known form.

    :param kind: import or iso.
    :raises HomelabError: it is no list.
    """
    odd: list[str] = []
    found = []
    for row in _rows(printed, "what lies on a storage", odd):
        if not isinstance(volume := row.get("volid"), str):
            odd.append(_odd("a volume", row))
        elif kind != "import" or volume.lower().endswith(_DISKS):
            found.append(volume)
    return sorted(found), odd


@dataclass(frozen=True)
class Offered:
    """What a new VM may be made of. `disks`: storages that take its disk; `images`: volumes that a disk may be made of; `isos`: CDs;
    `into`: the storage that an image can be downloaded to, None where none takes any.
    """

    disks: list[str]
    images: list[str]
    isos: list[str]
    into: str | None

    @property
    def known(self) -> list[str]:
        """Known cloud images that can be downloaded, and aren't there."""
        there = {volume.rpartition("/")[2] for volume in self.images}
        return [name for name, one in cloud_images().items() if self.into is not None and one.file not in there]


def cloud_images() -> dict[str, KnownImage]:
    """Those of the known images that a VM's disk is made of; the others are CDs that help to install one."""
    return {name: one for name, one in known_images().items() if one.user}


def offered(node: str, ask: Callable[[str], str], tell: Callable[[Sequence[str]], None]) -> Offered:
    """What a new VM may be made of.

    :param ask: runs a command on the host, and gives what it prints.
    :param tell: takes sentences for the person.
    :raises HomelabError: an answer is none, or no storage takes disks.
    """
    there, odd = storages(ask(listing(node)))
    tell(odd)
    disks = [one.name for one in there if "images" in one.content]
    if not disks:
        raise HomelabError(
            wanted="a storage for the new VM's disk",
            found="none that is active and takes disks of VMs",
            why="the VM's system disk is made on it",
            next="add one in the web interface (Datacenter -> Storage, content: Disk image)",
        )
    found: dict[str, list[str]] = {"import": [], "iso": []}
    for kind, names in found.items():
        for storage in there:
            if kind in storage.content:
                have, odd = volumes(ask(listing_of(node, storage.name, kind)), kind)
                names.extend(have)
                tell(odd)
    takers = [one.name for one in there if "import" in one.content]
    into = "local" if "local" in takers else next(iter(takers), None)
    return Offered(disks, found["import"], found["iso"], into)


def user_of(image: str) -> str:
    """The user that a distribution's cloud image makes where nobody says another name; empty: it isn't known."""
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
    """The JSON of the last line; None: it is none. A login may print something of its own before."""
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
            next="run the command on the host, and see what keeps it from answering; or describe the VM in the settings yourself: docs/settings.md",
        )
    for row in listed:
        if isinstance(row, Mapping):
            yield row
        else:
            odd.append(_odd("a row", row))


def _odd(what: str, row: Any) -> str:
    return f"{what} that pvesh names is ignored, since its form isn't known: {json.dumps(row)[:120]}"
