"""What a lab's host, VM or container finds on the network, and the faults that stand in the way.

STATE/network.json of the lab holds the data (`lab.network` writes it). A file's content is made here, the same every
time, so that its checksum is as good as a real one; where the real file's checksum is known it stands in the data.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .state import HostState

_WHERE = "true, `host` or a guest's id"
#: Faults of packages, downloads and the driver: what their value may be, and what it does. A value may be limited to one system: `103=30`.
FAULTS = {
    "apt-offline": f"{_WHERE}, or a part of an address: names can't be resolved, for apt, curl, wget and docker",
    "disk-full": f"{_WHERE}: nothing can be downloaded or installed",
    "package-missing": f"a name or pattern, also of NAME/VERSION, or {_WHERE}: repositories don't have it",
    "download-corrupt": f"{_WHERE}, or a part of an address: one byte of it is wrong",
    "download-breaks": f"{_WHERE}, or a part of an address: it ends half-way",
    "dkms-fails": f"{_WHERE}, or a part of DRIVER/KERNEL, such as 590.: the compiler gives up",
    "gpu-fails": f"{_WHERE}, an Xid, RmInitAdapter's code, or the start of a driver's version, such as 595., which alone fails: cards don't come up; the kernel's log says so",
}

_KEY_BEGIN, _KEY_END = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
_KEY_LINE = re.compile(rb"lab public key ([0-9A-F]{40}) (.+)\n")
_SIGNATURE = re.compile(rb"lab signature of ([0-9A-F]{40})\n")
#: The exit status of a failure to find a name, as curl has it.
NO_NAME = 6
# Enough that a transfer can be broken off half-way and gone on with.
_INSTALLER_LINES = 2000


def lab_of(system: HostState) -> tuple[HostState, str]:
    """The lab that a system is in, and the system's name for faults: `host`, or the guest's id."""
    if inside := system.machine.get("guest"):
        return HostState(Path(inside["lab"])), str(inside["vmid"])
    if inside := system.machine.get("container"):
        return HostState(Path(inside["host"])), str(inside["id"])
    return system, "host"


def fault(system: HostState, name: str) -> str | None:
    """What a fault of packages and downloads says for this system, None when it doesn't concern it.

    Its value is `true`, a system (`host`, or a guest's id), a value, or `SYSTEM=VALUE`.
    """
    lab, who = lab_of(system)
    value = lab.fault(name)
    if value is None or value is False:
        return None
    if value is True:
        return ""
    text = str(value)
    whose, equals, rest = text.partition("=")
    known = {"host", *(identifier for identifier in lab.machine["guests"])}
    if equals and whose in known:
        return rest if whose == who else None
    if text in known:
        return "" if text == who else None
    return text


def data(system: HostState) -> dict[str, Any]:
    """The network's data."""
    path = lab_of(system)[0].state / "network.json"
    about = path.stat()
    return _data(path, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=4)
def _data(path: Path, written: int, file: int) -> dict[str, Any]:
    return _parsed(path.read_bytes())


@lru_cache(maxsize=2)
def _parsed(text: bytes) -> dict[str, Any]:
    """Most labs have the same data: a process that does commands for several of them reads it once."""
    found: dict[str, Any] = json.loads(text)
    return found


def offline(system: HostState, url: str) -> str | None:
    """The name that can't be resolved when a system is off the network, None when it is on."""
    part = fault(system, "apt-offline")
    if part is None or part not in url:
        return None
    return re.sub(r"^[a-z]+://([^/:]+).*$", r"\1", url)


# -- keys ------------------------------------------------------------------------------------------------------
class Key(NamedTuple):
    """A public key: its fingerprint and whose it is."""

    fingerprint: str
    uid: str

    def binary(self) -> bytes:
        """The key as gpg --dearmor leaves it."""
        return f"lab public key {self.fingerprint} {self.uid}\n".encode()

    def armored(self) -> str:
        """The key as it is published."""
        import base64
        import textwrap

        body = textwrap.fill(base64.b64encode(self.binary()).decode(), 64)
        return f"{_KEY_BEGIN}\n\n{body}\n{_KEY_END}\n"


def key_named(system: HostState, name: str) -> Key:
    """A key by its name in the data."""
    return Key(**data(system)["keys"][name])


def dearmored(content: bytes) -> bytes | None:
    """The binary form of keys in either form; None when there is no key in it."""
    if content.startswith(_KEY_BEGIN.encode()):
        import base64

        text = content.decode("ascii", "replace")
        bodies = re.findall(f"{_KEY_BEGIN}\n(.*?){_KEY_END}", text, re.DOTALL)
        try:
            content = b"".join(base64.b64decode("".join(body.split()), validate=True) for body in bodies)
        except ValueError:
            return None
    return content if _KEY_LINE.match(content) else None


def keys_in(content: bytes) -> list[Key]:
    """The keys of a file, armored or not."""
    return [Key(m[1].decode(), m[2].decode()) for m in _KEY_LINE.finditer(dearmored(content) or b"")]


def signed(system: HostState, text: str, key: str) -> bytes:
    """A text with a signature of a key in it, in the form of gpg --clearsign."""
    signature = f"-----BEGIN PGP SIGNATURE-----\n\nlab signature of {key_named(system, key).fingerprint}\n-----END PGP SIGNATURE-----\n"
    return f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}{signature}".encode()


def signer_of(content: bytes) -> str:
    """The fingerprint of the key that has signed a text; empty where none has."""
    match = _SIGNATURE.search(content)
    return match[1].decode() if match else ""


# -- files -----------------------------------------------------------------------------------------------------
_INSTALLER_LINE = re.compile(rb"#!/bin/sh\n# NVIDIA Accelerated Graphics Driver for Linux-x86_64 ([0-9.]+)\n")


def installer(version: str) -> bytes:
    """NVIDIA-Linux-x86_64-VERSION.run: a script that hands itself to the lab's nvidia-installer."""
    head = f'#!/bin/sh\n# NVIDIA Accelerated Graphics Driver for Linux-x86_64 {version}\nexec nvidia-installer --archive "$0" {version} "$@"\n'
    line = _digest(version.encode())
    return (head + f"{line}\n" * _INSTALLER_LINES).encode()


def known_digest(system: HostState, content: bytes) -> str:
    """The SHA-256 of a file: the real one's where the data knows it, else that of the lab's stand-in."""
    known = _INSTALLER_LINE.match(content)
    if known and content == installer(version := known[1].decode()):
        return str(data(system)["installers"]["versions"].get(version) or _digest(content))
    return _digest(content)


def file_at(system: HostState, url: str) -> bytes | None:
    """What a URL leads to that isn't a repository's (debs.file_at), None when there is nothing."""
    known = data(system)
    for entry in known["files"]:
        if entry["url"] == url:
            return entry["text"].encode() if "text" in entry else key_named(system, entry["key"]).armored().encode()
    if match := re.fullmatch(r"(.+)/([\d.]+)/NVIDIA-Linux-x86_64-([\d.]+)\.run(\.sha256sum)?", url):
        address, folder, version = match[1], match[2], match[3]
        installers = known["installers"]
        if address in installers["addresses"] and folder == version and version in installers["versions"]:
            content = installer(version)
            if match[4]:
                return f"{known_digest(system, content)}  NVIDIA-Linux-x86_64-{version}.run\n".encode()
            return content
    return None


def groups_of(repository: dict[str, Any], components: tuple[str, ...]) -> list[str]:
    """A repository's groups of packages in some of its components; what stands under `groups` is in all but contrib and
    non-free, also of a repository without components."""
    of_main = [] if components and set(components) <= {"contrib", "non-free"} else repository["groups"]
    return [*of_main, *(repository.get("non-free", []) if "non-free" in components else [])]


def record_for_kernel(template: str, body: dict[str, Any], kernel: str) -> tuple[str, dict[str, Any]]:
    """A kernel's package by its template in packages.yaml: name and record."""
    version = re.split(r"-(?:generic|amd64|pve)", kernel)[0]
    values = {"version": version, "architecture": "amd64"} | _filled(body, kernel)
    return template.replace("{k}", kernel), values


def _filled(value: Any, kernel: str) -> Any:
    if isinstance(value, str):
        return value.replace("{k}", kernel)
    if isinstance(value, dict):
        return {name: _filled(item, kernel) for name, item in value.items()}
    return value


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def as_transferred(system: HostState, url: str, content: bytes) -> bytes:
    """A file as it comes from there: under the fault download-corrupt as long as it should be, and one byte differs."""
    wrong = fault(system, "download-corrupt")
    if wrong is None or wrong not in url:
        return content
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :]
