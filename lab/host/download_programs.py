"""curl and sha256sum of a lab's system, over what the lab's network has (`network`)."""

from __future__ import annotations

import sys
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


# -- curl ------------------------------------------------------------------------------------------------------
def _curl(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "fsSLo:O",
        ("output=", "remote-name", "silent", "show-error", "fail"),
    )
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
    content = debs.file_at(host, url)
    if content is None and options.has("f", "fail"):
        raise failed(22, "The requested URL returned error: 404")
    content = network.as_transferred(host, url, content or b"<html><head><title>404 Not Found</title></head></html>\n")
    if place is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    elif network.fault(host, "disk-full") is not None or not place.parent.is_dir():
        raise failed(23, "Failure writing output to destination")
    else:
        place.write_bytes(content)
    return 0


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
