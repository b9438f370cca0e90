"""Waiting in tests for what another process does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep  # the real ones: tests put others in the place of the module's
from typing import TextIO

from tests.plain import PLAIN

#: How long a test waits for what has to come, in seconds. It is no measure of speed: it ends what hangs, with a word of where. A virtual machine
#: that runs tests can stand still for minutes while it is saved or moved, and its clock goes on. Without what makes the suite quick, an `up` with
#: NVIDIA's software in several containers takes as long by itself.
PATIENCE = 1200.0 if PLAIN else 400.0


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what another process does, where nothing tells of it.

    To look may cost a command of a simulated host: who has waited longer looks less often, and is a tenth of that time late at most.

    Raises:
        AssertionError: it hasn't done so in that time.
    """
    began = monotonic()
    while not condition():
        waited = monotonic() - began
        assert waited < seconds, "waited in vain"
        sleep(min(max(0.02, waited / 10), 0.5))


def writer_of(pipe: Path) -> TextIO:
    """A named pipe, opened for writing once another process reads it. A plain `open` would wait for ever for one that has ended.

    Raises:
        AssertionError: nobody reads it in time.
    """
    opened: list[int] = []

    def is_read() -> bool:
        try:
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        return bool(opened)

    wait_until(is_read)
    os.set_blocking(opened[0], True)
    return os.fdopen(opened[0], "w")
