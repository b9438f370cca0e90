"""Text that is safe for a terminal: output of a host without escape sequences and control characters.

A host's names, logs and errors may have any bytes: escape sequences that recolour or overwrite the screen, a carriage
return that hides the text before it, marks that turn the direction of writing. `HomelabError` cleans its parts; all
other output goes through `tell`, or through `clean` where it isn't printed. The agent cleans its own messages and logs
(remote_scripts/tools/text.py). Who installed the package has no docs folder: a page is named by what shows it.
"""

from __future__ import annotations

import codecs
import functools
import io
import re
import sys
from pathlib import Path
from typing import Protocol, TextIO

# ECMA-48: control sequences (colours, cursor), strings that end in BEL or ST (titles, links), and the shorter ones.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]+[0-~]|\x1b[=>78cDEHMNOZ]"
)
# Control characters but for tab and newline; what turns or hides writing (bidirectional marks, zero width, line
# separators, tags); halves of surrogate pairs, which can't be written at all.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# A page or an example, where a clone has it.
_DOCUMENT = re.compile(r"(?<![\w/])(?:docs|examples)/(?:[a-z_]+/)*([a-z_-]+)\.(?:md|yaml)\b(#[\w-]+)?")
_IN_A_CLONE = Path(__file__).resolve().parents[1].joinpath("docs", "config.schema.json").is_file()


def clean(text: str) -> str:
    """The text with escape sequences taken out, carriage returns as line ends, each other unsafe character as its
    number, and each document (`docs/settings.md`) as the command that shows it, where its path leads nowhere.
    """
    plain = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    safe = _UNSAFE.sub(_visible, plain)
    return safe if _IN_A_CLONE else _DOCUMENT.sub(r"`homelab docs \1\2`", safe)


def _visible(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class Show(Protocol):
    """Shows a text; `meanwhile`: only until the next one, or the end."""

    def __call__(self, text: str, *, meanwhile: bool) -> None: ...


# Characters of this program's texts beside ASCII, for terminals and files without them (Windows: code pages 437 and
# 1252).
_IN_ASCII = str.maketrans({"→": "->", "►": ">", "…": "...", "–": "-", "−": "-", "─": "-"})
_ERRORS = "homelab.in_ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(_IN_ASCII)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_ERRORS, _in_ascii)


def encodable(stream: TextIO) -> TextIO:
    """The stream, which writes characters that its encoding lacks in ASCII from now on, instead of ending the
    command.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)
    return stream


def _print(text: str, *, meanwhile: bool) -> None:
    print(text, file=encodable(sys.stdout))


@functools.cache
def _shown_by() -> list[Show]:
    # What shows a text; `tell` uses the last one.
    return [_print]


def tell(text: str) -> None:
    """Shows a cleaned text: prints it, or calls the last function given to `shown_by`."""
    _shown_by()[-1](clean(text), meanwhile=False)


def tell_meanwhile(text: str) -> None:
    """Shows a cleaned text that is replaced by the next one, such as progress; it isn't among the messages at the
    end.
    """
    _shown_by()[-1](clean(text), meanwhile=True)


def shown_by(show: Show) -> None:
    """Makes `tell` call this function from now on."""
    _shown_by().append(show)
