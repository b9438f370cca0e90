"""This process's event loop, in a thread of its own: what is asked of hosts over SSH runs there, whoever asks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

# Between two looks at what is waited for, in seconds: on Windows, Ctrl-C doesn't end a wait.
LOOK_SECONDS = 1.0

# By the process's id: a fork has no thread of the process that it comes from.
_LOOPS: dict[int, asyncio.AbstractEventLoop] = {}
_MAKING = threading.Lock()


def of_process() -> asyncio.AbstractEventLoop:
    """The loop; it is made on first use, and ends with the process."""
    with _MAKING:
        process = os.getpid()
        if process not in _LOOPS:
            _LOOPS[process] = asyncio.new_event_loop()
            threading.Thread(target=_LOOPS[process].run_forever, daemon=True, name="SSH").start()
        return _LOOPS[process]


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begins the work. Messages of it are those of the resource that this thread works on."""
    return asyncio.run_coroutine_threadsafe(work, of_process())


def run(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns or raises. It ends where this thread stops waiting, as by Ctrl-C."""
    future = submit(work)
    try:
        while not wait((future,), LOOK_SECONDS).done:
            pass  # on Windows, Ctrl-C ends no wait that has no limit
        return future.result()
    finally:
        future.cancel()
