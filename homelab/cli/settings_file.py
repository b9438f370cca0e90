"""A stack's settings file as text: read and written so that nothing in it is lost."""

from __future__ import annotations

from pathlib import Path

from homelab.errors import HomelabError
from homelab.fields.paths import replace_whole, text_of


def read_settings(file: Path) -> str:
    """A settings file's text with its own ends of lines; empty: there is no file.

    :raises HomelabError: it can't be read, or isn't text.
    """
    try:
        return text_of(file, with_mark=True) if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise HomelabError(
            wanted=f"settings in {file}",
            found="it isn't a text in UTF-8" if isinstance(error, ValueError) else str(error),
            why="what is in it must not be lost",
            next="correct it, or choose another stack with --stack",
        ) from None


def write_settings(file: Path, text: str) -> None:
    """Writes a settings file in UTF-8, whole or not at all. A link stays a link, and the file keeps its mode.

    :raises HomelabError: the user may not write it; the file stays as it was.
    """
    target = file.resolve()
    try:
        replace_whole(target, text.encode())
    except PermissionError as error:
        raise HomelabError(
            wanted=f"to write the settings to {target}",
            found=str(error),
            why="they were not saved; what was in the file is there still",
            next="allow yourself to write the file and its folder; on Windows, also close the programs that have "
            "the file open",
        ) from error
