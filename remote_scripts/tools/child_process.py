"""Looks that may hang so that no signal ends them: what lies on a share that is gone, or on a file system of a program
(FUSE). Not even SIGKILL ends a process, or a process one of whose threads waits so; and it keeps what it has open.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
#: As long as a question to a program may take, in seconds.
SECONDS = 20.0
_PART_BYTES = 1 << 20
# Above all descriptors that this program opens.
_DESCRIPTORS = 4096


def in_child(work: Callable[[], T]) -> T:
    """What `work` returns; an OSError of it is raised here. A process of its own does it, without this one's locks and
    connections, and is left behind where it hangs.

    :param work: changes nothing, and returns what `marshal` takes: texts, bytes, numbers, lists.
    :raises TimeoutError: it hasn't ended after SECONDS.
    """
    answer, into = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, into)
    os.close(into)
    try:
        content = _read(answer, time.monotonic() + SECONDS)
    finally:
        os.close(answer)
    if content is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)
        raise TimeoutError(f"no answer within {SECONDS:g} s")
    os.waitpid(child, 0)
    if not content:
        raise OSError("the process that looked at it was killed")
    is_well, *result = marshal.loads(content)
    if not is_well:
        raise OSError(*result)
    return result[0]  # type: ignore[no-any-return]


def _answer(work: Callable[[], Any], into: int) -> None:
    """The process that looks, to its end."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.dup2(into, 3)
        os.closerange(4, _DESCRIPTORS)
        try:
            answer = marshal.dumps((True, work()))
        except OSError as error:
            answer = marshal.dumps(
                (False, error.errno or 0, error.strerror or str(error), os.fspath(error.filename or ""))
            )
        view = memoryview(answer)
        while view:
            view = view[os.write(3, view) :]
    finally:
        os._exit(0)


def _read(answer: int, until: float) -> bytes | None:
    """All that comes; None: it doesn't end in time."""
    content = bytearray()
    while (left := until - time.monotonic()) > 0 and select.select([answer], [], [], left)[0]:
        data = os.read(answer, _PART_BYTES)
        if not data:
            return bytes(content)
        content += data
    return None
