"""Waiting in tests for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How long a test waits for what has to come, in seconds. It is no measure of speed: it ends what hangs, with a word of where. A virtual machine
#: that runs tests can stand still for minutes while it is saved or moved, and its clock goes on.
PATIENCE = 400.0


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what another process does, where nothing tells of it.

    Raises:
        AssertionError: it hasn't done so in that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
