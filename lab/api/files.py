"""Files that a node downloads onto a storage, and removes from it: ISO images, disk images, templates of containers.

What is on the network says `lab.host.network`; its faults hold here too (`download-breaks`, `download-corrupt`, `disk-full`,
`apt-offline`). As on a node, a download is written beside its place and moved there once it is whole and its checksum is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from lab.host import debs, network
from lab.host.state import HostState

from .call import Call
from .errors import Died, bad_parameters
from .storage import FOLDERS, Storage, Storages
from .tasks import TaskLog, Work

_EXTENSIONS = {
    "iso": (r"[^/]+\.(?:iso|img)", "wrong file extension"),
    "vztmpl": (r"[^/]+\.tar\.(?:gz|xz|zst|bz2)", "wrong file extension"),
    "import": (r"[a-zA-Z0-9.+=_-]+\.(?:ova|qcow2|raw|vmdk)", "invalid filename or wrong extension"),
}
_ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")


def download(call: Call) -> str:
    """POST /nodes/{node}/storage/{storage}/download-url.

    Raises:
        ApiError: no such storage, not one of files, not for such content; a file name that the content hasn't.
    """
    asked = call.parameters
    content = asked["content"]
    storage = Storages(call.host).get(asked["storage"])
    if "path" not in storage.settings:
        raise Died(f"can't upload to storage type '{storage.kind}', not a file based storage!")
    if content not in storage.content:
        raise Died(f"storage '{storage.name}' is not configured for content-type '{content}'")
    name = _name(asked["filename"], content)
    checksum = (asked["checksum-algorithm"], asked["checksum"]) if "checksum" in asked else None
    target = f"{storage.settings['path']}/{FOLDERS[content]}/{name}"
    return call.start("download", name, lambda log: _fetched(call.host, asked["url"], target, checksum, log))


def remove(call: Call) -> str:
    """DELETE /nodes/{node}/storage/{storage}/content/{volume}.

    Raises:
        ApiError: no such storage, or the volume is another one's.
    """
    volume, storage = _volume(call)
    path = _path(storage, volume)

    def work(log: TaskLog) -> Work:
        file = call.host.rooted(path)
        if file.with_name(f"{file.name}.protected").exists():
            raise Died(f"cannot remove protected volume '{volume.partition(':')[2]}' on '{storage.name}'")
        if not file.exists():
            log(f"disk image '{path}' does not exist")
        file.unlink(missing_ok=True)
        log(f"Removed volume '{volume}'")
        yield from ()

    return call.start("imgdel", storage.name, work)


def _name(given: str, content: str) -> str:
    """A file's name as a node makes it.

    Raises:
        ApiError: 400, files with such content are named otherwise.
    """
    name = re.sub(r"[^a-zA-Z0-9_.-]", "_", re.sub(r"^.*[/\\]", "", given))
    pattern, refusal = _EXTENSIONS[content]
    if not re.fullmatch(pattern, name, re.IGNORECASE if content == "iso" else re.NOFLAG):
        raise bad_parameters({"filename": refusal})
    return name


def _volume(call: Call) -> tuple[str, Storage]:
    name, given = call.parameters["storage"], call.parameters["volume"]
    volume = given if ":" in given else f"{name}:{given}"
    owner = volume.partition(":")[0]
    if owner != name:
        raise bad_parameters({"volume": f"storage ID mismatch ({owner} != {name})\n"})
    return volume, Storages(call.host).get(name)


def _path(storage: Storage, volume: str) -> str:
    kind, _, file = volume.partition(":")[2].partition("/")
    if kind not in FOLDERS or "path" not in storage.settings or not file or "/" in file:
        raise Died(f"unable to parse directory volume name '{volume.partition(':')[2]}'")
    return f"{storage.settings['path']}/{FOLDERS[kind]}/{file}"


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _fetched(
    host: HostState, url: str, target: str, checksum: tuple[str, str] | None, log: Callable[[str], None]
) -> Work:
    """The course of a download, as PVE::Tools::download_file_from_url has it."""
    log(f"downloading {url} to {target}")
    place = host.rooted(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        _require_same(place.read_bytes(), target, checksum, log)
        return
    partly = place.with_name(f"{place.name}.tmp_dwnl.{os.getpid()}")
    try:
        log(f"--{time.strftime('%Y-%m-%d %H:%M:%S')}--  {url}")
        content = network.as_transferred(host, url, _content(host, url))
        partly.write_bytes(content[: len(content) // 2])
        yield float(host.fault("download-seconds") or 0)
        breaks = network.fault(host, "download-breaks")
        if breaks is not None and breaks in url:
            raise Died(
                f"download failed: Read error at byte {len(content) // 2}/{len(content)} (Connection reset by peer). Giving up."
            )
        if network.fault(host, "disk-full") is not None:
            raise Died(f"download failed: Cannot write to ‘{partly.name}’ (No space left on device).")
        partly.write_bytes(content)
        if checksum is not None:
            _require_sum(*checksum, content, log)
        partly.rename(place)
    finally:
        partly.unlink(missing_ok=True)
    log(f"download of '{url}' to '{target}' finished")


def _content(host: HostState, url: str) -> bytes:
    """What somebody at an address answers; nobody does at one without a name."""
    name = urlsplit(url).hostname or ""
    if re.fullmatch(r"[\d.]+", name):
        raise Died(f"download failed: Connecting to {_server(url)}... failed: Connection refused.")
    if network.offline(host, url):
        raise Died(f"download failed: wget: unable to resolve host address ‘{name}’")
    content = debs.file_at(host, url)
    if content is None:
        raise Died(f"download failed: {time.strftime('%Y-%m-%d %H:%M:%S')} ERROR 404: Not Found.")
    return content


def _require_same(content: bytes, target: str, checksum: tuple[str, str] | None, log: Callable[[str], None]) -> None:
    if checksum is None:
        raise Died(f"refusing to override existing file '{target}'")
    _require_sum(*checksum, content, log, " of existing file")


def _require_sum(algorithm: str, wanted: str, content: bytes, log: Callable[[str], None], of: str = "") -> None:
    got = _sum(algorithm, content)
    if got != wanted.lower():
        log(f"calculating checksum{of}...")
        raise Died(f"checksum mismatch: got '{got}' != expect '{wanted}'{', aborting' if of else ''}")
    right = "got correct file already, no need to download" if of else "checksum verified"
    log(f"calculating checksum{of}...OK, {right}")


def _sum(algorithm: str, content: bytes) -> str:
    assert algorithm in _ALGORITHMS
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
