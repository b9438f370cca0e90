"""What a run says: a log for people on standard error, and the log of this system with all that its programs say."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from remote_scripts.tools import text
from remote_scripts.tools.errors import Failure

#: In memory, and root's alone: nothing of a step that failed stays on a disk.
STEPS = "run/homelab/steps"
STEPS_BYTES = 2097152
#: What steps note for the end of a run is the client's to tell (layers/run_guard.py), which makes this file.
NOTES = "run/homelab/notes"


class Log:
    """The logs of one run.

    :param root: before every path.
    :param proxy: of this run; its password is in no log.
    """

    def __init__(self, root: Path, proxy: str = "") -> None:
        self._folder = root / "run/homelab"
        self._steps = root / STEPS
        self._notes = root / NOTES
        self._proxy = proxy

    def say(self, line: str) -> None:
        """A line for a person; one that begins with `note: ` is among the messages at the end of the run, too."""
        clean = self.show(line)
        if clean.startswith("note: ") and self._is_ours(self._notes):
            with contextlib.suppress(OSError):
                self._append(self._notes, clean.replace("\n", " "))

    def show(self, line: str) -> str:
        """Words of another program for a person, which are never among those messages; returns what is shown."""
        clean = self.clean(line, text.LINE_BYTES)
        with contextlib.suppress(OSError, ValueError):  # there may be no reader
            sys.stderr.write(f"{clean}\n")
            sys.stderr.flush()
        return clean

    def clean(self, content: bytes | str, limit: int = text.LOG_BYTES) -> str:
        """The content as text without secrets."""
        return text.without_secrets(text.as_text(content, limit), self._proxy)

    def message(self, failure: Failure) -> str:
        """What a person gets to read of it."""
        return failure.text(lambda part: self.clean(part, text.LINE_BYTES))

    def heading(self, line: str) -> None:
        """A heading in this system's log, with the time."""
        self._note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.clean(line)}")

    def note(self, content: bytes | str) -> None:
        """Lines below the last heading."""
        lines = self.clean(content, text.ANSWER_BYTES).rstrip("\n").split("\n")
        self._note("\n".join(f"  {line}" for line in lines))

    def drop_steps(self) -> None:
        """Takes this system's log away."""
        for path in (self._steps, self._steps.with_name("steps.old")):
            path.unlink(missing_ok=True)

    def _note(self, content: str) -> None:
        """A full disk, or a folder of another user's, stops nothing."""
        with contextlib.suppress(OSError):
            if not is_own_folder(self._folder):
                return
            self._append(self._steps, content)
            self._shorten()

    def _shorten(self) -> None:
        size = self._steps.stat().st_size
        if size < STEPS_BYTES:
            return
        data = self._steps.read_bytes()[-STEPS_BYTES // 2 :].partition(b"\n")[2]
        old = self._steps.with_name("steps.old")
        old.write_bytes(data)
        old.replace(self._steps)

    def _append(self, path: Path, content: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            os.write(descriptor, content.encode() + b"\n")
        finally:
            os.close(descriptor)

    def _is_ours(self, path: Path) -> bool:
        return path.is_file() and not path.is_symlink() and is_own_folder(self._folder)


def is_own_folder(folder: Path) -> bool:
    """A folder, not a link, of the user that this process runs as."""
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
