"""The log of what was installed here: what long commands have said (update-initramfs, apt, dpkg, DKMS, NVIDIA's
installer); of a container it is on its host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import STEPS, STEPS_BYTES
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_HEADING = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} ")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`lines`: how many, of the end; `of`: such as `container 901`, whose part of the log is wanted; empty: all."""

    lines: int
    of: str = ""


@dataclass(frozen=True)
class Answer:
    """`log`: empty where nothing was installed."""

    log: str


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: it is there, and can't be read."""
    path = f"/{STEPS}"
    try:
        content = system.files.need(path, 2 * STEPS_BYTES) or b""
    except OSError as error:
        raise Failure(
            "the log of what was installed here",
            f"{path} can't be read",
            "it is what long commands have said",
            "look at it there as root",
        ) from error
    lines = as_text(content, 2 * STEPS_BYTES).rstrip("\n").split("\n")
    found = _part(lines, wanted.of) if wanted.of else lines
    return Answer("\n".join(found[max(0, len(found) - wanted.lines) :]))


def _part(lines: list[str], name: str) -> list[str]:
    """The headings that have the name, with the lines below them."""
    found, is_its = [], False
    for line in lines:
        if heading := _HEADING.match(line):
            is_its = line[heading.end() :].startswith(f"{name}: ")
        if is_its:
            found.append(line)
    return found
