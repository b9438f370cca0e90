"""Python runs this at its start, wherever the tests' engine has put this folder on PYTHONPATH: see server.py.

The processes that the engine starts in each run, the program and its provider, spend most of their time with imports. Where a server
runs that has made them, such a process hands its streams over, passes signals on, and ends as the server's fork did.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SERVER = os.environ.get("QUICK_PYTHON")
_OURS = ("homelab.provider", "pulumi-language-python-exec")


def _handed_over(name: str) -> int | None:
    """How the fork ended, as wait(2) says it; None where no server answered."""
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"\0{name}")
            socket.send_fds(connection, [b"1"], [0, 1, 2])  # before the words there is `python`
        except OSError:
            return None
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: connection.send(bytes([number])))
        answer = connection.recv(4)
    return int.from_bytes(answer, sys.byteorder) if answer else signal.SIGKILL


def _end(status: int) -> None:
    import signal

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if _SERVER and Path(__file__).parents[2] == Path.cwd():
    _word = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "")
    if Path(_word).name in _OURS and (_status := _handed_over(_SERVER)) is not None:
        _end(_status)
