"""Starts labs' daemons as forks of one process that has their modules: who starts many labs, as tests do, waits for the imports once.

The process starts with the first lab, and ends with whoever started it. A daemon is no different for it: a session, environment, folder
and streams of its own, and reaped by init. Its command server is a fork, too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

#: What comes before each request, with its descriptors: how many bytes it has.
_LENGTH = struct.Struct("I")
#: In the environment, for that of a command server, in which a state folder is named (lab.commands).
_ROOM = "." * 5000


class Daemons:
    """The process that is forked. A context manager: at the end no more daemons can be started; those that run, run on.

    Several threads may start daemons at the same time.
    """

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: A request is several writes on one connection: those of two threads mustn't mix.
        self._asking = threading.Lock()

    def start(self, arguments: Sequence[str], descriptors: Sequence[int], environment: dict[str, str]) -> None:
        """Start a daemon. It answers by its own means.

        Args:
            arguments: those of `python -m lab.server`, but for descriptors.
            descriptors: for its output, to say that it is ready, and perhaps its lifeline; they may be closed afterwards.
            environment: its own.

        Raises:
            OSError: the process has ended.
        """
        request = json.dumps({"arguments": list(arguments), "environment": environment}).encode()
        with self._asking:
            if self._connection is None:
                self._connection, its = socket.socketpair()
                with its:
                    command = [sys.executable, "-m", "lab.daemons", str(its.fileno())]
                    self._process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent, pass_fds=[its.fileno()],
                        start_new_session=True, env={**os.environ, "LAB_ROOM": _ROOM},
                    )  # fmt: skip
            socket.send_fds(self._connection, [_LENGTH.pack(len(request))], list(descriptors))
            self._connection.sendall(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.wait()
            self._connection = self._process = None


def _serve(connection: socket.socket) -> None:
    """Until whoever started this process has ended, or has no more use for it."""
    from lab import commands, forks, server

    server.read_ahead()
    commands.read_ahead()
    gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
    while True:
        with contextlib.suppress(ConnectionError):
            head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
            if head:
                asked = json.loads(_exactly(connection, _LENGTH.unpack(head)[0]))
                pid = os.fork()
                if pid == 0:
                    forks.end_with(lambda: _become(server.main, connection, descriptors, asked))  # noqa: B023  # at once
                for descriptor in descriptors:
                    os.close(descriptor)
                os.waitpid(pid, 0)  # it forks once more, and ends
                continue
        return


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        more = connection.recv(length - len(found))
        if not more:
            raise ConnectionResetError("the request ends half-way")
        found += more
    return found


def _become(main: Callable[[], None], connection: socket.socket, descriptors: list[int], asked: dict[str, Any]) -> None:
    """The fork: what `python -m lab.server` would be."""
    connection.close()
    os.setsid()
    output, *others = descriptors
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir("/")
    sys.argv[1:] = [*asked["arguments"]]
    for name, descriptor in zip(("--ready-fd", "--lifeline-fd"), others, strict=False):
        sys.argv += [name, str(descriptor)]
    main()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
