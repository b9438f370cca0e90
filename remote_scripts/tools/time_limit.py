"""A time limit for calls of the kernel that may never return: in /etc/pve (a FUSE file system, which hangs if its
daemon pmxcfs does), and on a share or a disk that is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: As long as a question to a program may take, in seconds.
SECONDS = 20.0


class NoEndError(TimeoutError):
    """What was begun hasn't ended in its time."""


def within_limit(work: Callable[[], T], seconds: float | None = None) -> T:
    """What `work` returns; its errors are raised here. Where it hangs, its thread stays behind, and blocks no caller.

    :param seconds: by default SECONDS.
    :raises NoEndError: it hasn't ended in that time.
    """
    seconds = SECONDS if seconds is None else seconds
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NoEndError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
