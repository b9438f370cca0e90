"""What a host says, on its way to a person: text without what a terminal would obey. The one place where that is done.

A name, a log, an error of a host may hold any bytes: escape sequences that recolour or overwrite the screen, a carriage return that
hides what came before it, marks that turn the direction of writing. `HomelabError` cleans its parts by itself; whatever else is shown
goes through `tell`, or through `clean` where it isn't printed. Scripts do the same before they say anything (lib/text.sh).
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from typing import Protocol, TextIO

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


class Show(Protocol):
    """Shows a text; `meanwhile`: only until the next one, or the end."""

    def __call__(self, text: str, *, meanwhile: bool) -> None: ...


# What the texts of this program have beside ASCII, for terminals and files that don't have it (Windows: code pages 437 and 1252).
_IN_ASCII = str.maketrans({"→": "->", "►": ">", "…": "...", "–": "-", "−": "-", "─": "-"})
_ERRORS = "homelab.in_ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(_IN_ASCII)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_ERRORS, _in_ascii)


def encodable(stream: TextIO) -> TextIO:
    """The stream, which from here on shows in ASCII what its encoding doesn't have: no character ends a command amid its work."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)
    return stream


def _print(text: str, *, meanwhile: bool) -> None:
    print(text, file=encodable(sys.stdout))


# The last of them shows what is told.
_SHOWN_BY: list[Show] = [_print]


def tell(text: str) -> None:
    """Shows it, clean: printed, or as `shown_by` says."""
    _SHOWN_BY[-1](clean(text), meanwhile=False)


def tell_meanwhile(text: str) -> None:
    """The same of what is true for a moment: where something is. It isn't among the messages at the end."""
    _SHOWN_BY[-1](clean(text), meanwhile=True)


def shown_by(show: Show) -> None:
    """From here on, what is told is shown in this way."""
    _SHOWN_BY.append(show)
