"""Files of the machine on which Pulumi runs: where a path in the settings leads, and what is written there."""

from __future__ import annotations

import codecs
from pathlib import Path

# What a text of Windows may begin with: of its editors, and of PowerShell 5, whose `>` and `Out-File` write UTF-16.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def project() -> Path:
    """The folder of the Pulumi project that is being run: the nearest one with a Pulumi.yaml, from where we are
    upwards. Pulumi runs a project's program, and its provider, there."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "Pulumi.yaml").is_file()), here)


def resolved(text: str) -> Path:
    """Relative paths count from the project's folder, wherever `pulumi` is called."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else project() / path


def text_of(path: Path, *, with_mark: bool = False) -> str:
    """A text that a person has written, or a command's output that was kept: in UTF-8, or as its byte order mark says;
    with the ends of lines that it has.

    :param with_mark: UTF-8's byte order mark stays, as the text's first character.
    :raises OSError: it can't be read.
    :raises UnicodeDecodeError: it isn't such a text.
    """
    written = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if written.startswith(mark)), "utf-8")
    return written.decode("utf-8" if with_mark and encoding == "utf-8-sig" else encoding)
