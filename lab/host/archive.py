"""initrd.img as a file: a gzip-compressed "newc" cpio archive, the format that real initramfs images have.

The bytes depend on the content alone (no times, sorted names), so that rebuilding from the same
configuration gives the same file, and what an undo left behind shows as a difference.
Format: the Linux kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from .state import write_file

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class ArchiveError(ValueError):
    """The file isn't an initramfs image that this module can read."""


@dataclass(frozen=True)
class Member:
    """One entry of an image: its mode (with the file type bits) and its bytes (a link's target)."""

    mode: int
    data: bytes


def pack(members: dict[str, Member]) -> bytes:
    """The image of these members; names are relative, such as `conf/modules`."""
    out = bytearray()
    for number, name in enumerate(sorted(members), start=1):
        out += _entry(number, name, members[name])
    out += _entry(0, _TRAILER, Member(0, b""))
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(bytes(out)) + compressor.flush()


def _entry(inode: int, name: str, member: Member) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    body = header + encoded
    body += b"\0" * (-len(body) % 4)
    return body + member.data + b"\0" * (-len(member.data) % 4)


def unpack(image: bytes) -> dict[str, Member]:
    """The members of an image.

    Raises:
        ArchiveError: the bytes are not a gzip-compressed newc archive, or are cut short.
    """
    try:
        data = zlib.decompress(image, 31)
    except zlib.error as error:
        raise ArchiveError(f"not a gzip-compressed image: {error}") from error
    members: dict[str, Member] = {}
    offset = 0
    while True:
        header = data[offset : offset + 110]
        if len(header) < 110 or header[:6] != _MAGIC:
            raise ArchiveError(f"no cpio header at byte {offset}: the image is cut short or damaged")
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[offset + 110 : offset + 110 + name_size - 1].decode()
        offset += 110 + name_size
        offset += -offset % 4
        if name == _TRAILER:
            return members
        members[name] = Member(mode, data[offset : offset + size])
        offset += size
        offset += -offset % 4


def collect(folder: Path) -> dict[str, Member]:
    """Everything below a folder as members."""
    members: dict[str, Member] = {}
    for directory, subfolders, files in os.walk(folder):
        subfolders.sort()
        for name in sorted(subfolders + files):
            path = f"{directory}/{name}"  # as text: an image has hundreds of members
            members[path[len(str(folder)) + 1 :]] = _member(path)
    return members


def _member(path: str) -> Member:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return Member(stat.S_IFLNK | 0o777, os.fsencode(os.readlink(path)))  # noqa: PTH115
    if stat.S_ISDIR(mode):
        return Member(stat.S_IFDIR | 0o755, b"")
    with open(path, "rb") as file:  # noqa: PTH123
        return Member(stat.S_IFREG | stat.S_IMODE(mode), file.read())


def extract(members: dict[str, Member], folder: Path) -> None:
    """Write members below a folder, which may exist already."""
    for name in sorted(members):
        member = members[name]
        path = f"{folder}/{name}"
        if stat.S_ISDIR(member.mode):
            os.makedirs(path, exist_ok=True)  # noqa: PTH103
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        if stat.S_ISLNK(member.mode):
            os.symlink(member.data, path)  # noqa: PTH211
        else:
            write_file(path, member.data, stat.S_IMODE(member.mode))
