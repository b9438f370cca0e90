"""The log of what was installed here: what long commands have said (update-initramfs, apt, dpkg, DKMS, NVIDIA's
installer); of a container it is on its host.
"""

from __future__ import annotations

import re

from remote_scripts.both.read_log import Answer, Wanted
from remote_scripts.tools.log import STEPS, STEPS_BYTES
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_HEADING = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} ")


def read(system: System, wanted: Wanted) -> Answer:
    """:raises OSError: it is there, and can't be read."""
    content = system.files.need(f"/{STEPS}", 2 * STEPS_BYTES) or b""
    lines = as_text(content, 2 * STEPS_BYTES).rstrip("\n").split("\n")
    excerpt = _part(lines, wanted.of) if wanted.of else lines
    return Answer("\n".join(excerpt[max(0, len(excerpt) - wanted.lines) :]))


def _part(lines: list[str], name: str) -> list[str]:
    """The headings that have the name, with the lines below them."""
    part, is_its = [], False
    for line in lines:
        if heading := _HEADING.match(line):
            is_its = line[heading.end() :].startswith(f"{name}: ")
        if is_its:
            part.append(line)
    return part
