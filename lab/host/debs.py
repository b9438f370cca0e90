"""The lab's packages as apt and dpkg have them: each row of packages.yaml as a .deb, and the lists that repositories have of them."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import contents, network
from .program import Failure
from .state import HostState

_WHEN = "1767225600"  # the files of a package are of 1 January 2026, as its list is
_RELATIONS = ("Replaces", "Provides", "Depends", "Recommends", "Conflicts")
#: Of components all but these have what stands under `groups`; one of them lists it.
_MAIN = ("main", "pve-enterprise", "pve-no-subscription")
COMPONENTS = (*_MAIN, "contrib", "non-free", "non-free-firmware", "restricted", "universe", "multiverse")


class Member(NamedTuple):
    """What lies at a path of a package: a file, or a link whose target is its content."""

    content: bytes
    mode: int = 0o644
    is_link: bool = False


class _Unpacked(HostState):
    """A system of which what is written is remembered, and not written."""

    def __init__(self, system: HostState) -> None:
        super().__init__(system.state)
        self.members: dict[str, Member] = {}

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Remember a file."""
        self.members[path] = Member(content.encode() if isinstance(content, str) else content, mode)

    def symlink(self, path: str, target: str) -> None:
        """Remember a link."""
        self.members[path] = Member(target.encode(), 0o777, True)


def members(system: HostState, name: str, record: dict[str, Any]) -> dict[str, Member]:
    """The files of a package, by their paths."""
    found = _Unpacked(system)
    contents.unpack(found, name, record.get("gives", {}))
    return found.members


def with_folders(paths: dict[str, Member]) -> list[str]:
    """The paths of a package and the folders that they are in, these first."""
    folders = {path[:end] for path in paths for end in (match.start() for match in re.finditer("/", path)) if end}
    return sorted({*paths, *folders})


def fields(name: str, record: dict[str, Any]) -> dict[str, str]:
    """A package's fields, in dpkg's order."""
    found = {
        "Package": name,
        "Installed-Size": str(int(float(record.get("size", 0.01)) * 1000)),
        "Maintainer": "the lab <lab@example.org>",
        "Architecture": str(record["architecture"]),
        "Version": str(record["version"]),
    }
    related = {key: str(record[key.lower()]) for key in _RELATIONS if record.get(key.lower())}
    if "Conflicts" in related:
        related.setdefault("Replaces", related["Conflicts"])
    return {**found, **{key: related[key] for key in _RELATIONS if key in related}, "Description": name}


def text_of(paragraph: dict[str, str]) -> str:
    """A paragraph of a control file."""
    return "".join(f"{key}: {value}\n" for key, value in paragraph.items())


def control_files(name: str, record: dict[str, Any]) -> dict[str, Member]:
    """What dpkg keeps of a package besides its files: conffiles, and the scripts of one whose installation does more than to put files there."""
    gives = record.get("gives", {})
    found = {"md5sums": Member(b"")}
    if configured := gives.get("files"):
        found["conffiles"] = Member("".join(f"{path}\n" for path in configured).encode())
    if kept := {key: value for key, value in gives.items() if key in contents.DONE}:
        about = json.dumps({**kept, "version": gives.get("version")})
        script = f'#!/bin/sh\nexec "$LAB_STATE/bin/lab-package" "$DPKG_MAINTSCRIPT_NAME" "$1" \'{about}\'\n'
        found |= dict.fromkeys(("postinst", "prerm", "postrm"), Member(script.encode(), 0o755))
    return found


def deb(system: HostState, name: str, record: dict[str, Any]) -> bytes:
    """A package's .deb; the same bytes every time."""
    control = {"/control": Member(text_of(fields(name, record)).encode())}
    control |= {f"/{path}": member for path, member in control_files(name, record).items()}
    return packed(control, members(system, name, record))


def packed(control: dict[str, Member], files: dict[str, Member]) -> bytes:
    """A .deb of these (deb(5))."""
    parts = {"debian-binary": b"2.0\n", "control.tar": _tar(control), "data.tar": _tar(files)}
    found = b"!<arch>\n"
    for part, content in parts.items():
        found += (
            f"{part:<16}{_WHEN:<12}0     0     100644  {len(content):<10}`\n".encode()
            + content
            + b"\n"[: len(content) % 2]
        )
    return found


def _tar(paths: dict[str, Member]) -> bytes:
    found = [_entry("./", b"5", 0o755)]
    for path in with_folders(paths):
        member = paths.get(path)
        if member is None:
            found.append(_entry(f".{path}/", b"5", 0o755))
        elif member.is_link:
            found.append(_entry(f".{path}", b"2", 0o777, link=member.content))
        else:
            content = member.content + bytes(-len(member.content) % 512)
            found.append(_entry(f".{path}", b"0", member.mode, len(member.content)) + content)
    return b"".join(found) + bytes(1024)


def _entry(path: str, kind: bytes, mode: int, size: int = 0, link: bytes = b"") -> bytes:
    """A header of a tar file (tar(5), ustar)."""
    head = f"{mode:07o}\0{0:07o}\0{0:07o}\0{size:011o}\0{int(_WHEN):011o}\0".encode()
    before, after = path.encode().ljust(100, b"\0") + head, kind + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(247)
    total = sum(before) + sum(after) + 8 * ord(" ")
    return before + f"{total:06o}\0 ".encode() + after


# -- repositories ----------------------------------------------------------------------------------------------
def offered(
    system: HostState, repository: dict[str, Any], components: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The packages of a repository, in some of its components: headers and precompiled modules for the kernels that the system has, too.

    The fault package-missing keeps some away.
    """
    value = network.fault(system, "package-missing")
    missing = None if value is None else value or "*"
    for group in network.groups_of(repository, components):
        about = network.data(system)["groups"][group]
        for name, record in _rows(system, about):
            if missing is None or not fnmatch.fnmatchcase(
                f"{name}/{record['version']}" if "/" in missing else name, missing
            ):
                yield name, record


def _rows(system: HostState, group: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, records in group["packages"].items():
        yield from ((name, record) for record in records)
    if "kernels" in group:
        running = system.read("/proc/sys/kernel/osrelease", "").strip()
        for kernel in sorted({*system.kernels(), running}):
            if re.fullmatch(group["kernels"], kernel):
                more = (network.record_for_kernel(name, body, kernel) for name, body in group["templates"].items())
                yield from (row for row in more if row[0] not in group["packages"])


def package_list(system: HostState, repository: dict[str, Any], component: str) -> bytes:
    """The list of the packages of a repository's component, `main` of one without components."""
    if component not in (*_MAIN, "non-free"):
        return b""
    return "\n".join(
        _paragraph(system.state, name, json.dumps(record)) for name, record in offered(system, repository, (component,))
    ).encode()


@functools.lru_cache(maxsize=4096)
def _paragraph(state: Any, name: str, about: str) -> str:
    record = json.loads(about)
    content = deb(HostState(state), name, record)
    where = {"Filename": f"pool/{file_name(name, record)}", "Size": str(len(content))}
    return text_of({**fields(name, record), **where, "SHA256": hashlib.sha256(content).hexdigest()})


def file_name(name: str, record: dict[str, Any]) -> str:
    """What a package's file is called."""
    return f"{name}_{record['version'].replace(':', '%3a')}_{record['architecture']}.deb"


def file_at(system: HostState, url: str) -> bytes | None:
    """What a URL leads to, below a repository its signed list of lists, a list, a package; None when there is nothing.

    Raises:
        Failure: the repository wants a subscription.
    """
    for repository in network.data(system)["repositories"]:
        if not url.startswith(f"{repository['url']}/"):
            continue
        if repository.get("subscription"):
            raise Failure("401  Unauthorized")
        rest, suite = url.removeprefix(f"{repository['url']}/").removeprefix("./"), repository["suite"]
        folder = "" if suite == "/" else f"dists/{suite}/"
        if rest == f"{folder}InRelease":
            return _release(system, repository)
        if listed := re.fullmatch(f"{folder}(?:(\\S+)/binary-amd64/)?Packages", rest):
            return package_list(system, repository, listed[1] or "main")
        for name, record in offered(system, repository, ("main", "non-free")) if rest.endswith(".deb") else ():
            if rest.rpartition("/")[2] in (file_name(name, record), file_name(name, record).replace("%3a", ":")):
                return deb(system, name, record)
    return network.file_at(system, url)


def _release(system: HostState, repository: dict[str, Any]) -> bytes:
    suite, places = repository["suite"], {"main": "Packages"}
    text = f"Origin: {repository['origin']}\nLabel: {repository['origin']}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: amd64\n"
    if suite != "/":
        text += f"Suite: {suite}\nCodename: {suite}\nComponents: {' '.join(COMPONENTS)}\n"
        places = {component: f"{component}/binary-amd64/Packages" for component in COMPONENTS}
    text += "SHA256:\n"
    for component, place in places.items():
        content = package_list(system, repository, component)
        text += f" {hashlib.sha256(content).hexdigest()} {len(content)} {place}\n"
    return network.signed(system, text, repository["key"])
