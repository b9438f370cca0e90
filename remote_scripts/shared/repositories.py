"""apt's repositories: what its lists have, and keys with a known fingerprint."""

from __future__ import annotations

import re

from remote_scripts.shared.packages import Packages
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_FOLDER = "/etc/apt/sources.list.d"
_FETCHED = "/var/lib/apt/lists"
_KEY = "/run/homelab/key"
_KEY_BYTES = 1 << 20
# apt's booleans (strutl.cc, StringToBool), and the names of files that it reads (fileutl.cc, GetListOfFilesInDir).
_OFF = re.compile("no|false|without|off|disable|0", re.IGNORECASE)
_UNCHECKED = re.compile(
    r"\b(trusted|allow-insecure|allow-weak|allow-downgrade-to-insecure)=(yes|true|with|on|enable|1)\b", re.IGNORECASE
)
_READ = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9_.:-]*\.(list|sources)")
_ENTRY = re.compile(r"^[ \t]*deb[ \t]+(?:\[([^]]*)\][ \t]*)?(\S+)[ \t]+(\S+)")
# Without a home of its own, which it would make files in.
_GPG = ("gpg", "--homedir", "/nonexistent", "--batch", "--quiet", "--no-tty", "--no-options")


def other_entries(system: System, url: str, suite: str, our_list: str) -> dict[str, bool]:
    """The files that have an entry for a repository, without homelab's list; each with whether apt takes packages
    without a good signature by it, which then counts for all entries.

    :raises OSError: a file of apt's can't be read.
    """
    names = (name for name in system.files.names(_FOLDER) if _READ.fullmatch(name))
    paths = ("/etc/apt/sources.list", *(f"{_FOLDER}/{name}" for name in names))
    return {
        path: any(map(_UNCHECKED.search, own))
        for path in paths
        if path != our_list
        and (own := [options for *place, options in entries(system, path) if place == [url.rstrip("/"), suite]])
    }


def entries(system: System, path: str) -> list[tuple[str, str, str]]:
    """Address, suite and options of each enabled entry for binary packages, in either of apt's formats.

    :raises OSError: the file can't be read.
    """
    text = system.files.need_text(path)
    listed = _of_sources(text) if path.endswith(".sources") else _of_list(text)
    if any("$(ARCH)" in word for entry in listed for word in entry):
        architecture = system.run.ask("dpkg", "--print-architecture").text
        listed = [
            (url.replace("$(ARCH)", architecture), suite.replace("$(ARCH)", architecture), options)
            for url, suite, options in listed
        ]
    return [(url.rstrip("/"), suite, options) for url, suite, options in listed]


def _of_list(text: str) -> list[tuple[str, str, str]]:
    matches = (_ENTRY.match(line.partition("#")[0]) for line in text.split("\n"))
    return [(match[2], match[3], match[1] or "") for match in matches if match]


def _of_sources(text: str) -> list[tuple[str, str, str]]:
    listed = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line.startswith("#"):
                continue
            field = re.match(r"([^ \t:]+):", line)
            name = field[1].lower() if field else name
            fields.setdefault(name, []).extend(line[field.end() if field else 0 :].split())
        if "deb" in fields.get("types", []) and not _OFF.fullmatch(" ".join(fields.get("enabled", []))):
            options = " ".join(f"{name}={' '.join(values)}" for name, values in fields.items())
            listed += [(url, suite, options) for url in fields.get("uris", []) for suite in fields.get("suites", [])]
    return listed


# What apt has fetched.


def has_lists(system: System, url: str) -> bool:
    """Whether apt has the lists of a repository."""
    return bool(_lists(system, url))


def remove_lists(system: System, url: str) -> None:
    """Takes them away."""
    system.files.remove(*_lists(system, url))


def _lists(system: System, url: str) -> list[str]:
    """By apt's way of making a file's name of an address."""
    start = url.partition("://")[2].replace("_", "%5f").replace("/", "_") + "_"
    return [f"{_FETCHED}/{name}" for name in system.files.names(_FETCHED) if name.startswith(start)]


# Keys.


def take_key(packages: Packages, url: str, fingerprint: str, keyring: str) -> None:
    """A repository's key: fetched, looked at, and put in place only if it is that key and no other.

    :raises Failure: it can't be had, or is another one.
    """
    system, files = packages.system, packages.system.files
    is_ours = files.of_layer(packages.layer).get(keyring) == "ok"
    if is_ours and _fingerprints(system, files.need(keyring, _KEY_BYTES) or b"") == [fingerprint]:
        return
    files.remove(_KEY, f"{_KEY}.part")
    packages.download(url, _KEY)
    key = files.need(_KEY, _KEY_BYTES) or b""
    fingerprints = _fingerprints(system, key)
    if fingerprints != [fingerprint]:
        raise Failure(
            f"the repository's key, with the fingerprint {fingerprint}",
            f"{url} has {' '.join(fingerprints) or 'no key at all'}",
            "the owner of another key could have anything installed here as root; so this key was refused",
            "if a mirror or a proxy is in between, have it pass the key on as it is; if NVIDIA has replaced its key, "
            "you need a newer release of this program",
        )
    binary = system.run.ask(*_GPG, "--dearmor", stdin=key)
    if binary.status != 0 or not binary.output:
        raise Failure(
            f"the key of {url} in binary form",
            f"gpg --dearmor failed: {binary.failure('gpg')}",
            "apt takes the key in that form",
            "see what gpg says of it, then run `pulumi up` again",
        )
    files.put(packages.layer, keyring, 0o644, binary.output)
    files.remove(_KEY)


def _fingerprints(system: System, key: bytes) -> list[str]:
    """Of every primary key."""
    shown = system.run.ask(*_GPG, "--no-keyring", "--trust-model", "always", "--show-keys", "--with-colons", stdin=key)
    fingerprints, is_primary = [], False
    for fields in (line.split(":") for line in shown.text.split("\n")):
        if fields[0] == "fpr" and is_primary and len(fields) > 9:
            fingerprints.append(fields[9])
            is_primary = False
        is_primary = is_primary or fields[0] == "pub"
    return fingerprints
