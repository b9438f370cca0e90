"""dpkg's database of a system: what the lab's own programs ask of it, and what they put there without dpkg."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from .state import HostState

if TYPE_CHECKING:  # who only asks what is there makes no package
    from .debs import Member

FOLDER = "/var/lib/dpkg"
STATUS = f"{FOLDER}/status"
_BETWEEN = re.compile(r"\n\s*\n")  # paragraphs


class Package(NamedTuple):
    """A package whose files are there."""

    name: str
    version: str


def installed(system: HostState) -> dict[str, Package]:
    """The packages whose files are there, by name."""
    return _installed(system.read(STATUS, ""))


# A process that does commands reads the same database many times.
@functools.lru_cache(maxsize=8)
def _installed(text: str) -> dict[str, Package]:
    found = {}
    for block in _BETWEEN.split(text):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.M))
        if fields.get("Status", "").endswith((" installed", " half-configured", " unpacked")):
            found[fields["Package"]] = Package(fields["Package"], fields["Version"])
    return found


def note(
    system: HostState,
    paragraph: dict[str, str],
    paths: dict[str, Member] | None = None,
    control: dict[str, Member] | None = None,
) -> None:
    """Have a package in the database whose files are there already.

    Args:
        paragraph: its fields, in dpkg's order.
        paths: its files.
        control: its scripts.
    """
    name, *rest = paragraph.items()
    from .debs import Member, text_of, with_folders

    text = text_of(dict([name, ("Status", "install ok installed"), *rest]))
    _write(system, {**_paragraphs(system), paragraph["Package"]: text})
    listed = "".join(f"{path}\n" for path in ("/.", *with_folders(paths or {})))
    system.write(f"{FOLDER}/info/{paragraph['Package']}.list", listed)
    for kind, member in (control or {"md5sums": Member(b"")}).items():
        system.write(f"{FOLDER}/info/{paragraph['Package']}.{kind}", member.content, member.mode)


def forget(system: HostState, name: str) -> None:
    """Take a package out of the database."""
    _write(system, {key: text for key, text in _paragraphs(system).items() if key != name})
    for path in system.rooted(f"{FOLDER}/info").glob(f"{name}.*"):
        path.unlink()


def _paragraphs(system: HostState) -> dict[str, str]:
    """The paragraphs of the database, by the packages' names."""
    blocks = filter(None, _BETWEEN.split(system.read(STATUS, "").strip()))
    return {block.partition("\n")[0].removeprefix("Package: "): f"{block}\n" for block in blocks}


def _write(system: HostState, paragraphs: dict[str, str]) -> None:
    system.write(STATUS, "".join(f"{text}\n" for _, text in sorted(paragraphs.items())))
