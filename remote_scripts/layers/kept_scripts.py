"""The folder of a stack on this system, /var/lib/homelab/scripts/OWNER: scripts in bash that it keeps, and the agent.

Scripts are files NAME.SUM, where SUM begins the SHA-256 of the content: which is whole can be told from its name.
Earlier versions stay for what was made by them, the latest of each name. `revert` takes the folder away.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import time
import zlib
from dataclasses import dataclass

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

# So many versions of one script stay.
_VERSIONS = 5
_NAME = re.compile(r"([A-Za-z0-9_.-]+)\.([0-9a-f]{16})")
_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`owner`: the folder's name, of a project and a stack; `content`: of `apply`: a tar archive of the scripts,
    compressed by gzip, in base64; empty: none are put.
    """

    owner: str
    content: str = ""

    @property
    def folder(self) -> str:
        """The folder's path.

        :raises Failure: the name would lead elsewhere.
        """
        if re.fullmatch(r"[A-Za-z0-9_-]+", self.owner):
            return f"{HOME}/scripts/{self.owner}"
        raise Failure(
            "the name of a stack's folder of scripts",
            f"{self.owner!r}",
            "what is in the folder of that name is removed with the stack",
            "run `pulumi up --refresh`, which names it",
        )


@dataclass(frozen=True)
class Answer:
    """`kept`: how many there are."""

    kept: int


def apply(system: System, wanted: Wanted) -> Answer:
    """Puts the scripts there, if there are any to put.

    :raises Failure: they aren't whole, or there is no room; those that were there are as they were.
    """
    if not wanted.content:
        return Answer(sum(bool(_NAME.fullmatch(name)) for name in system.files.names(wanted.folder)))
    scripts = _unpacked(wanted)
    try:
        return system.changing(lambda: _put(system, wanted.folder, scripts))
    except OSError as error:
        raise _incomplete(wanted, f"{error.strerror}: {error.filename}") from error


def revert(system: System, wanted: Wanted) -> Answer:
    """Takes the folder away, with all that is in it."""
    return system.changing(lambda: _remove(system, wanted.folder))


def _put(system: System, folder: str, scripts: dict[str, bytes]) -> Answer:
    files = system.files
    files.need_folder(files.at(folder))
    for name, content in sorted(scripts.items()):
        path = f"{folder}/{name}"
        if files.read(path, _BYTES) != content:
            files.remember(path)
            files.write(path, content, 0o644)
        else:  # again the latest of its name
            disk.touch(files.at(path), time.time())
    # The clock may have been wrong: those that were put just now stay.
    by_name: dict[str, list[tuple[float, str]]] = {}
    for name in files.names(folder):
        found = _NAME.fullmatch(name)
        if found and name not in scripts:
            when = files.at(f"{folder}/{name}").stat().st_mtime
            by_name.setdefault(found[1], []).append((when, f"{folder}/{name}"))
    current = {name.rpartition(".")[0] for name in scripts}
    for name, versions in by_name.items():
        most = _VERSIONS - (name in current)
        files.remove(*(path for _, path in sorted(versions, reverse=True)[most:]))
    return Answer(len(scripts))


def _remove(system: System, folder: str) -> Answer:
    system.files.drop_work_folder(folder)
    return Answer(0)


def _unpacked(wanted: Wanted) -> dict[str, bytes]:
    """Name -> content, each as its name says.

    :raises Failure: the archive, or one of them, isn't whole.
    """
    scripts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(wanted.content, validate=True)), mode="r:gz") as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                scripts[entry.name] = file.read() if file else b""
    except (ValueError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _incomplete(wanted, f"the archive can't be unpacked: {error}") from error
    for name, content in scripts.items():
        found = _NAME.fullmatch(name)
        if not found or hashlib.sha256(content).hexdigest()[:16] != found[2]:
            raise _incomplete(wanted, f"{name} is not what it was")
    if not scripts:
        raise _incomplete(wanted, "nothing is in it")
    return scripts


def _incomplete(wanted: Wanted, found: str) -> Failure:
    return Failure(
        f"this program's scripts in {wanted.folder}",
        found,
        "every later step runs one of them; nothing else was changed",
        "make room below /var, then run `pulumi up` again",
    )
