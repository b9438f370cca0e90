"""A stack's settings file as text: read and written so that nothing in it is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from homelab.errors import HomelabError


def read_settings(file: Path) -> str:
    """A settings file's text with its own ends of lines; empty: there is none.

    :raises HomelabError: it can't be read, or isn't text.
    """
    try:
        return file.read_bytes().decode("utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise HomelabError(
            wanted=f"settings in {file}",
            found="it isn't UTF-8" if isinstance(error, ValueError) else str(error),
            why="what is in it must not be lost",
            next="correct it, or choose another stack with --stack",
        ) from None


def write_settings(file: Path, text: str) -> None:
    """Writes it, whole or not at all. A link stays one, and who may read the file stays as it was."""
    place = file.resolve()
    number, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    new = Path(name)
    try:
        with os.fdopen(number, "wb") as opened:
            opened.write(text.encode())
            opened.flush()
            os.fsync(opened.fileno())
        # mkstemp's file is its owner's alone, which a new one may well stay.
        if place.exists():
            shutil.copymode(place, new)
        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
