"""A stack's settings file as text: read and written so that nothing in it is lost."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
from pathlib import Path

from homelab.errors import HomelabError
from homelab.settings.paths import text_of

# Of a file that is half written; an editor's own (.swp) are none of ours.
_SUFFIX = ".homelab-tmp"


def read_settings(file: Path) -> str:
    """A settings file's text with its own ends of lines; empty: there is none.

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
    """Writes it in UTF-8, whole or not at all. A link stays one, and who may read the file stays as it was.

    :raises HomelabError: it isn't allowed; what was there stays.
    """
    place = file.resolve()
    try:
        _replace(place, text.encode())
    except PermissionError as error:
        raise HomelabError(
            wanted=f"to write the settings to {place}",
            found=str(error),
            why="they were not saved; what was in the file is there still",
            next="allow yourself to write the file and its folder; on Windows, also close the programs that have "
            "the file open",
        ) from error


def _replace(place: Path, written: bytes) -> None:
    for half in place.parent.glob(f".{glob.escape(place.name)}.*{_SUFFIX}"):
        half.unlink(missing_ok=True)  # of a run that was killed
    number, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=_SUFFIX)
    new = Path(name)
    try:
        with os.fdopen(number, "wb") as opened:
            opened.write(written)
            opened.flush()
            os.fsync(opened.fileno())
        # mkstemp's file is its owner's alone, which a new one may well stay.
        if place.exists():
            shutil.copymode(place, new)
        new.replace(place)
    except BaseException:
        # Windows removes no file that is read-only, as a copied mode may have it.
        new.chmod(stat.S_IWRITE | stat.S_IREAD)
        new.unlink(missing_ok=True)
        raise
