"""This process's event loop, in a thread of its own: what is asked of hosts over SSH runs there, whoever asks."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from homelab.text import clean

T = TypeVar("T")

# Between two looks at what is waited for, in seconds: on Windows, Ctrl-C doesn't end a wait.
LOOK_SECONDS = 1.0
# After so long a person at a terminal is told what is waited for.
QUIET_SECONDS = 5.0

_MAKING = threading.Lock()


def of_process() -> asyncio.AbstractEventLoop:
    """The loop; it is made on first use, and ends with the process."""
    with _MAKING:
        return _started(os.getpid())


@functools.cache
def _started(_process: int) -> asyncio.AbstractEventLoop:
    """A loop of a process; a fork has no thread of the process that it comes from."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="SSH").start()
    return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begins the work. Messages of it are those of the resource that this thread works on."""
    return asyncio.run_coroutine_threadsafe(work, of_process())


def run(work: Coroutine[Any, Any, T], awaited: str = "") -> T:
    """What the work returns or raises. It ends where this thread stops waiting, as by Ctrl-C.

    :param awaited: who is to answer, as said to a person at a terminal after QUIET_SECONDS; empty: nothing is said.
    """
    future, until = submit(work), time.monotonic() + QUIET_SECONDS
    try:
        while not wait((future,), LOOK_SECONDS).done:  # on Windows, Ctrl-C ends no wait that has no limit
            if awaited and time.monotonic() > until and sys.stderr.isatty():
                sys.stderr.write(f"Waiting for {clean(awaited)} ...\n")
                awaited = ""
        return future.result()
    finally:
        future.cancel()
