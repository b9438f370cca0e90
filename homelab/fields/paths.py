"""Files of the machine on which Pulumi runs: the paths that the settings name, their text, and how one is written."""

from __future__ import annotations

import codecs
import glob
import os
import shutil
import stat
import tempfile
from pathlib import Path

# Byte order marks and their encodings: Windows' editors write them; PowerShell 5's `>` and `Out-File` write UTF-16.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# The end of a temporary file's name; an editor has its own, such as .swp.
_SUFFIX = ".homelab-tmp"


def project() -> Path:
    """The folder of the Pulumi project that is being run: the nearest one with a Pulumi.yaml, from the working
    directory upwards. Pulumi runs a project's program, and its provider, there."""
    directory = Path.cwd()
    parents = (directory, *directory.parents)
    return next((folder for folder in parents if (folder / "Pulumi.yaml").is_file()), directory)


def resolved(text: str) -> Path:
    """The path that a setting names; a relative one counts from the project's folder, wherever `pulumi` is called."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else project() / path


def text_of(path: Path, *, with_mark: bool = False) -> str:
    """A file's text, decoded as UTF-8 or as its byte order mark says, with its own line ends.

    :param with_mark: UTF-8's byte order mark stays, as the text's first character.
    :raises OSError: it can't be read.
    :raises UnicodeDecodeError: it has no such text.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode("utf-8" if with_mark and encoding == "utf-8-sig" else encoding)


def replace_whole(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all; one that is there keeps its mode, and a new one is its owner's alone."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)  # of a run that was killed
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        # Windows removes no file that is read-only, as a copied mode may have it.
        temporary.chmod(stat.S_IWRITE | stat.S_IREAD)
        temporary.unlink(missing_ok=True)
        raise
