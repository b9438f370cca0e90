"""A named pipe that a program writes into: its reader learns of each line, and of the program's end, at once."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # on Windows, where the program has the types of layers alone
    import fcntl

# What fits into it without a reader: the log of a boot, of up to 100 KiB, while the program that starts it works.
_BYTES = 1 << 20
_SET_SIZE = 1031  # F_SETPIPE_SZ


class Pipe:
    """A pipe that is made at a path, for root alone.

    :param path: nothing is there yet.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # a limit of this system's
            fcntl.fcntl(self._descriptor, _SET_SIZE, _BYTES)

    def close(self) -> None:
        """A program that still writes into it gets an error."""
        os.close(self._descriptor)

    def read(self, is_all: Callable[[bytes], bool], ends: float, limit: int, go_on: Callable[[], None]) -> bytes:
        """What comes until it is all, the writer has ended, or the time is up.

        :param is_all: told by what has come so far.
        :param ends: as of time.monotonic.
        :param limit: in bytes; more isn't read.
        :param go_on: called once a second; it may raise.
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        content = b""
        while (left := ends - time.monotonic()) > 0 and len(content) < limit and not is_all(content):
            go_on()
            # There is no writer yet: no event. The writer has ended: POLLHUP.
            if not poll.poll(min(left, 1.0) * 1000):
                continue
            part = os.read(self._descriptor, 65536)
            if not part:
                break
            content += part
        return content
