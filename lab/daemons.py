"""Starts labs' daemons as forks of one process that has their modules: who starts many labs, as tests do, waits for the imports once.

The process makes the imports for the first lab, and ends with whoever started it. A daemon is no different for it: a session, environment, folder
and streams of its own, and reaped by init. Its command server is a fork, too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

#: What comes before each request, with its descriptors.
_FIRST = b"."
#: In the environment, for that of a command server, in which a state folder is named (lab.commands).
_ROOM = "." * 5000


class Daemons:
    """The process that is forked. A context manager: at the end no more daemons can be started; those that run, run on.

    Threads, and other processes of this user, may start daemons at the same time.

    Args:
        name: of the socket of one that another process has entered, to be used and not entered here.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"homelab-daemons-{os.getpid()}-{secrets.token_hex(8)}"

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
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{self.name}")
            socket.send_fds(connection, [_FIRST], list(descriptors))
            connection.sendall(request)

    def __enter__(self) -> Self:
        self._lifeline, its = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listener, its:
            listener.bind(f"\0{self.name}")
            listener.listen(128)
            descriptors = [listener.fileno(), its.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lab.daemons", *map(str, descriptors)],
                stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent, pass_fds=descriptors,
                start_new_session=True, env={**os.environ, "LAB_ROOM": _ROOM},
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._lifeline.close()
        self._process.wait()


def _serve(listener: socket.socket, lifeline: socket.socket) -> None:
    """Until whoever started this process has ended, or has no more use for it; it may have none at all."""
    if listener not in select.select([listener, lifeline], [], [])[0]:
        return
    from lab import commands, forks, server

    server.read_ahead()
    commands.read_ahead()
    gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
    while listener in select.select([listener, lifeline], [], [])[0]:
        # A request that ends half-way is none.
        with listener.accept()[0] as connection, contextlib.suppress(ConnectionError, ValueError):
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            _, descriptors, _, _ = socket.recv_fds(connection, len(_FIRST), 3)
            if user == os.geteuid():
                asked = json.load(connection.makefile("rb"))
                pid = os.fork()
                if pid == 0:
                    ours = [listener, lifeline, connection]
                    forks.end_with(lambda: _become(server.main, ours, descriptors, asked))  # noqa: B023  # at once
                os.waitpid(pid, 0)  # it forks once more, and ends
            for descriptor in descriptors:
                os.close(descriptor)


def _become(
    main: Callable[[], None], sockets: list[socket.socket], descriptors: list[int], asked: dict[str, Any]
) -> None:
    """The fork: what `python -m lab.server` would be."""
    for one in sockets:
        one.close()
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
    _serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
