"""A stack's settings file as text: read and written so that nothing in it is lost."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
from pathlib import Path

from homelab.errors import HomelabError
from homelab.fields.paths import text_of

# The end of a temporary file's name; an editor has its own, such as .swp.
_SUFFIX = ".homelab-tmp"


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
        _replace(target, text.encode())
    except PermissionError as error:
        raise HomelabError(
            wanted=f"to write the settings to {target}",
            found=str(error),
            why="they were not saved; what was in the file is there still",
            next="allow yourself to write the file and its folder; on Windows, also close the programs that have "
            "the file open",
        ) from error


def _replace(target: Path, content: bytes) -> None:
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)  # of a run that was killed
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp's file is its owner's alone, which a new one may well stay.
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        # Windows removes no file that is read-only, as a copied mode may have it.
        temporary.chmod(stat.S_IWRITE | stat.S_IREAD)
        temporary.unlink(missing_ok=True)
        raise
