"""curl, wget, gpg and sha256sum of a lab's system, over what the lab's network has (`network`)."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import debs, network
from .program import Failure, Options, UsageError, logged
from .state import HostState


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    work: dict[str, Callable[[HostState, list[str]], int]] = {
        "curl": _curl, "wget": _wget, "gpg": _gpg, "sha256sum": _sha256sum,
    }  # fmt: skip
    if name in ("curl", "wget"):
        return logged(host, name, arguments, lambda: work[name](host, arguments))
    return work[name](host, arguments)


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
    wrong = network.fault(host, "download-corrupt")
    if wrong is not None and wrong in url:
        content = network.corrupted(content)
    if value := network.fault(host, "apt-slow"):
        time.sleep(float(value))
    breaks = network.fault(host, "download-breaks")
    if breaks is not None and breaks in url and not offset:
        write(content[: len(content) // 2])
        raise _Broken(len(content) - len(content) // 2)
    write(content[offset:])
    return True


def _require_space(host: HostState, program: str, target: str) -> None:
    if network.fault(host, "disk-full") is None:
        return
    if program == "curl":
        raise Failure("curl: (23) Failure writing output to destination", 23)
    raise Failure(f"{target}: No space left on device\n\nCannot write to ‘{target}’ (No space left on device).", 3)


def _curl(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "fsSLo:OC:x:r:vkI4m:w:H:A:",
        (
            "fail", "silent", "show-error", "location", "output=", "remote-name", "continue-at=", "retry=", "retry-delay=",
            "retry-connrefused", "retry-all-errors", "retry-max-time=", "connect-timeout=", "max-time=", "proxy=", "proto=", "proto-redir=",
            "tlsv1.2", "create-dirs", "head", "write-out=", "compressed", "speed-limit=", "speed-time=", "no-progress-meter",
            "progress-bar", "ipv4", "header=", "user-agent=", "noproxy=",
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
        _require_space(host, "curl", str(target))
        if options.has("create-dirs"):
            place.parent.mkdir(parents=True, exist_ok=True)
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


def _wget(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "qO:cnvT:t:P:N4S",
        (
            "quiet", "output-document=", "continue", "no-verbose", "timeout=", "tries=", "directory-prefix=", "show-progress",
            "no-check-certificate", "retry-connrefused", "waitretry=", "progress=", "https-only", "no-clobber", "read-timeout=",
            "inet4-only",
        ),
    )  # fmt: skip
    if len(options.rest) != 1:
        raise UsageError("the lab's wget gets one URL at a time")
    url = options.rest[0]
    quiet = options.has("q", "quiet")
    if name := network.offline(host, url):
        raise Failure("" if quiet else f"wget: unable to resolve host address ‘{name}’", 4)
    if debs.file_at(host, url) is None:
        raise Failure(
            "" if quiet else f"--  {url}\nHTTP request sent, awaiting response... 404 Not Found\nERROR 404: Not Found.",
            8,
        )
    target = options.value("O", "output-document")
    if target == "-":
        _transfer(host, url, 0, _to(None, offset=0))
        return 0
    target = target or f"{options.value('P', 'directory-prefix') or '.'}/{url.rpartition('/')[2]}"
    place = _place(host, target)
    _require_space(host, "wget", target)
    offset = place.stat().st_size if options.has("c", "continue") and place.exists() else 0
    try:
        _transfer(host, url, offset, _to(place, offset=offset))
    except _Broken:
        # It tries again by itself, from where it was, 20 times unless told otherwise.
        if options.value("t", "tries") == "1":
            raise Failure("" if quiet else "Connection closed. Giving up.", 4) from None
        _transfer(host, url, place.stat().st_size, _to(place, offset=place.stat().st_size))
    return 0


# -- gpg -------------------------------------------------------------------------------------------------------
def _gpg(host: HostState, arguments: list[str]) -> int:
    options = Options(
        arguments,
        "o:qv",
        (
            "batch", "yes", "quiet", "no-tty", "dearmor", "show-keys", "with-colons", "with-fingerprint", "import-options=",
            "output=", "no-default-keyring", "homedir=", "import", "dry-run", "keyid-format=", "no-options", "fingerprint",
            "no-autostart", "armor", "keyring=", "list-keys", "no-keyring", "trust-model=",
        ),
    )  # fmt: skip
    content = _input(host, options)
    if options.has("dearmor"):
        binary = network.dearmored(content)
        if binary is None:
            raise Failure("gpg: no valid OpenPGP data found.\ngpg: dearmoring failed: Unknown system error", 2)
        return _write_out(host, options, binary)
    if options.has("show-keys", "import", "list-keys", "fingerprint"):
        keys = network.keys_in(content)
        if not keys:
            raise Failure("gpg: no valid OpenPGP data found.", 2)
        for key in keys:
            _show_key(key, colons=options.has("with-colons"))
        return 0
    raise UsageError("the lab's gpg has --dearmor and --show-keys [--with-colons]")


def _input(host: HostState, options: Options) -> bytes:
    name = options.rest[0] if options.rest else options.value("keyring")
    if name is None or name == "-":
        return sys.stdin.buffer.read()
    place = _place(host, name)
    if not place.is_file():
        raise Failure(f"gpg: can't open '{name}': No such file or directory", 2)
    return place.read_bytes()


def _write_out(host: HostState, options: Options, binary: bytes) -> int:
    target = options.value("o", "output")
    if target is None and options.rest:
        target = f"{options.rest[0]}.gpg"
    if target in (None, "-") or target is None:
        sys.stdout.buffer.write(binary)
        return 0
    place = _place(host, target)
    if place.exists() and not options.has("yes"):
        raise Failure(f"gpg: dearmoring failed: File exists\ngpg: '{target}' exists; not overwritten without --yes", 2)
    if not place.parent.is_dir():
        raise Failure(
            f"gpg: can't create '{target}': No such file or directory\ngpg: dearmoring failed: No such file or directory",
            2,
        )
    place.write_bytes(binary)
    return 0


def _show_key(key: network.Key, *, colons: bool) -> None:
    if colons:
        import hashlib

        print(f"pub:-:4096:1:{key.fingerprint[-16:]}:1649894400:::-:::scSC::::::23::0:")
        print(f"fpr:::::::::{key.fingerprint}:")
        print(
            f"uid:-::::1649894400::{hashlib.sha1(key.uid.encode(), usedforsecurity=False).hexdigest().upper()}::{key.uid}::::::::::0:"
        )
        return
    print(f"pub   rsa4096 2022-04-14 [SC]\n      {key.fingerprint}\nuid                      {key.uid}\n")


# -- sha256sum -------------------------------------------------------------------------------------------------
def _sha256sum(host: HostState, arguments: list[str]) -> int:
    """As coreutils', except that a whole stand-in of a real file has that one's checksum where it is known."""
    options = Options(
        arguments, "cbtwz", ("check", "status", "quiet", "strict", "ignore-missing", "warn", "binary", "text", "tag")
    )
    if options.has("c", "check"):
        return _check_sums(host, options)
    status = 0
    for name in options.rest or ["-"]:
        digest = _digest(host, name)
        if digest is None:
            print(f"sha256sum: {name}: No such file or directory", file=sys.stderr)
            status = 1
        else:
            print(f"{digest}  {name}")
    return status


def _digest(host: HostState, name: str) -> str | None:
    if name == "-":
        return network.known_digest(host, sys.stdin.buffer.read())
    place = Path(name) if name.startswith(str(host.root)) else _place(host, name)
    if not place.is_file() and Path(name).is_file():
        place = Path(name)
    return network.known_digest(host, place.read_bytes()) if place.is_file() else None


def _check_sums(host: HostState, options: Options) -> int:
    quiet, status_only = options.has("quiet"), options.has("status")
    failed = lines = 0
    for source in options.rest or ["-"]:
        text = sys.stdin.read() if source == "-" else _place(host, source).read_text(encoding="utf-8")
        for wanted, name in re.findall(r"^([0-9a-fA-F]{64}) [ *](.+)$", text, re.M):
            lines += 1
            digest = _digest(host, name)
            good = digest == wanted.lower()
            failed += not good
            if digest is None and not status_only:
                print(f"sha256sum: {name}: No such file or directory\n{name}: FAILED open or read")
            elif not status_only and not (good and quiet):
                print(f"{name}: {'OK' if good else 'FAILED'}")
    if not lines:
        raise Failure(f"sha256sum: {(options.rest or ['-'])[0]}: no properly formatted checksum lines found")
    if failed and not status_only:
        print(f"sha256sum: WARNING: {failed} computed checksum did NOT match", file=sys.stderr)
    return int(failed > 0)
