"""curl and sha256sum of a lab's system, over what the lab's network has (`network`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import debs, network
from .program import Failure, Options, UsageError, logged
from .state import HostState


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    return (
        logged(host, name, arguments, lambda: _curl(host, arguments)) if name == "curl" else _sha256sum(host, arguments)
    )


def _place(host: HostState, path: str) -> Path:
    return host.rooted(path) if path.startswith("/") else Path.cwd() / path


# -- transfers -------------------------------------------------------------------------------------------------
class _Broken(Exception):
    """The connection ended before the file did; `left` bytes were to come."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


def _transfer(host: HostState, url: str, offset: int, write: Callable[[bytes], None]) -> bool:
    """Fetch a file from an offset on; False when there is none.

    Raises:
        _Broken: under the fault download-breaks, half-way, unless it goes on with a broken one.
    """
    content = debs.file_at(host, url)
    if content is None:
        return False
    content = network.as_transferred(host, url, content)
    if value := network.fault(host, "apt-slow"):
        time.sleep(float(value))
    breaks = network.fault(host, "download-breaks")
    if breaks is not None and breaks in url and not offset:
        write(content[: len(content) // 2])
        raise _Broken(len(content) - len(content) // 2)
    write(content[offset:])
    return True


def _curl(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "fsSLo:OC:x:",
        (
            "output=", "remote-name", "continue-at=", "retry=", "retry-all-errors", "retry-max-time=", "connect-timeout=", "max-time=",
            "proto=", "proto-redir=", "proxy=", "silent", "show-error", "fail",
        ),
    )  # fmt: skip
    if len(options.rest) != 1:
        raise UsageError("the lab's curl gets one URL at a time")
    url = options.rest[0]
    target = options.value("o", "output") or (url.rpartition("/")[2] if options.has("O", "remote-name") else None)
    quiet = options.has("s", "silent") and not options.has("S", "show-error")

    def failed(number: int, text: str) -> Failure:
        return Failure("" if quiet else f"curl: ({number}) {text}", number)

    if name := network.offline(host, url):
        raise failed(6, f"Could not resolve host: {name}")
    place = _place(host, target) if target not in (None, "-") and target is not None else None
    offset = place.stat().st_size if place is not None and options.value("C", "continue-at") and place.exists() else 0
    if debs.file_at(host, url) is None:
        if options.has("f", "fail"):
            raise failed(22, "The requested URL returned error: 404")
        _to(place, offset=0)(b"<html><head><title>404 Not Found</title></head></html>\n")
        return 0
    if place is not None:
        if network.fault(host, "disk-full") is not None:
            raise Failure("curl: (23) Failure writing output to destination", 23)
        if not place.parent.is_dir():
            raise failed(23, "Failure writing output to destination")
    try:
        _transfer(host, url, offset, _to(place, offset=offset))
    except _Broken as broken:
        # A retry begins where this curl began, not where the last try ended (seen of curl 7.88), and breaks as well.
        raise failed(18, f"transfer closed with {broken.left} bytes remaining to read") from broken
    return 0


def _to(place: Path | None, *, offset: int) -> Callable[[bytes], None]:
    """Where a transfer goes: a file, from an offset on, or stdout."""

    def write(content: bytes) -> None:
        if place is None:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return
        with place.open("ab" if offset else "wb") as file:
            file.write(content)

    return write


# -- sha256sum -------------------------------------------------------------------------------------------------
def _sha256sum(host: HostState, arguments: list[str]) -> int:
    """As coreutils', except that a whole stand-in of a real file has that one's checksum where it is known."""
    status = 0
    for name in Options(arguments, "b").rest:
        digest = _digest(host, name)
        if digest is None:
            print(f"sha256sum: {name}: No such file or directory", file=sys.stderr)
            status = 1
        else:
            print(f"{digest}  {name}")
    return status


def _digest(host: HostState, name: str) -> str | None:
    place = Path(name) if name.startswith(str(host.root)) else _place(host, name)
    if not place.is_file() and Path(name).is_file():
        place = Path(name)
    return network.known_digest(host, place.read_bytes()) if place.is_file() else None
