"""What a run says: a log for people on standard error, and the log of this system with all that its programs say."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from remote_scripts.tools import disk, text
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
        self._steps = root / STEPS
        self._notes = root / NOTES
        self._proxy = proxy

    def say(self, line: str) -> None:
        """A line for a person; one that begins with `note: ` is among the messages at the end of the run, too."""
        clean = self.show(line)
        if clean.startswith("note: ") and self._notes.exists():
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

    def _note(self, content: str) -> None:
        """A full disk stops nothing."""
        with contextlib.suppress(OSError):
            self._append(self._steps, content)
            if self._steps.stat().st_size >= STEPS_BYTES:
                shorter = self._steps.read_bytes()[-STEPS_BYTES // 2 :].partition(b"\n")[2]
                self._steps.write_bytes(shorter)

    def _append(self, path: Path, content: str) -> None:
        with disk.opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
            os.write(descriptor, content.encode() + b"\n")
