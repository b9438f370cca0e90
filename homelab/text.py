"""What a host says, on its way to a person: text without what a terminal would obey. The one place where that is done.

A name, a log, an error of a host may hold any bytes: escape sequences that recolour or overwrite the screen, a carriage return that
hides what came before it, marks that turn the direction of writing. `HomelabError` cleans its parts by itself; whatever else is shown
goes through `tell`, or through `clean` where it isn't printed. Scripts do the same before they say anything (lib/text.sh).
"""

from __future__ import annotations

import re
from collections.abc import Callable

# ECMA-48: control sequences (colours, cursor), strings that end in BEL or ST (titles, links), and the shorter ones.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)|\x1b[ -/]+[0-~]|\x1b[=>78cDEHMNOZ]"
)
# Control characters but for tab and newline; what turns or hides writing (bidirectional marks, zero width, line separators, tags);
# halves of surrogate pairs, which can't be written at all.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    """The text with escape sequences taken out, carriage returns as line ends, and each other unsafe character as its number."""
    plain = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub(_visible, plain)


def _visible(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


# The last of them shows what is told.
_SHOWN_BY: list[Callable[[str], None]] = [print]


def tell(text: str) -> None:
    """Shows it, clean: printed, or as `shown_by` says."""
    _SHOWN_BY[-1](clean(text))


def shown_by(show: Callable[[str], None]) -> None:
    """From here on, what is told is shown in this way."""
    _SHOWN_BY.append(show)
