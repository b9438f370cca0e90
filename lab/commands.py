"""Starts a command server (lab.host.command_server): simulated commands as forks of one process, not a Python start each."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from lab import forks
from lab.host import command_server
from lab.host.state import COMMANDS

# sendmsg(2), from the kernel's headers, for command.pl; on other machines each command is a Python of its own.
_SENDMSG = {"x86_64": 46, "aarch64": 211, "riscv64": 211}
#: In the environment: there is to be no server, each command is a Python of its own.
NO_SERVER = "LAB_NO_COMMAND_SERVER"
#: Whether this process has what a command server imports, so that a fork of it is one.
_has_imports = False


def read_ahead() -> None:
    """Import what commands need, for the command servers of this process and of its forks: these are forks, too, not a Python start each.

    Who calls this has one thread and nothing open that a server mustn't have, and so have its forks when they start a server.
    """
    global _has_imports  # noqa: PLW0603
    command_server.read_ahead()
    _has_imports = True


class CommandServer:
    """A command server for those that this process starts: its name is in `os.environ` until `close`.

    It ends with this process, however that ends, and what runs in it does.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it. Who asks before it is ready waits; where this machine can't have one, nothing happens.

        Args:
            environment: its own; what the commands get is what those who ask have.
        """
        self.pid: int | None = None
        #: What it ends with, and how it is waited for.
        self._lifeline = -1
        self._wait: Callable[[], object] = lambda: None
        self._before: str | None = None
        number = _SENDMSG.get(platform.machine())
        if number is None or sys.maxsize < 2**32 or NO_SERVER in os.environ:
            return
        name = f"homelab-lab-{os.getpid()}-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0{name} {Path('/proc/self/ns/mnt').readlink()}")
            listener.listen(128)
            stdin, self._lifeline = os.pipe()
            start = self._fork if _has_imports else self._start
            start(listener, stdin, {"LC_ALL": "C.UTF-8", **(environment or {})})
            os.close(stdin)
        self._before = os.environ.get(COMMANDS)  # one within another's time takes its place
        os.environ[COMMANDS] = f"{number}:{name}"

    def _start(self, listener: socket.socket, stdin: int, environment: dict[str, str]) -> None:
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", command_server.__file__, str(listener.fileno())],
            stdin=stdin,
            env=environment,
            cwd="/",
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        self.pid, self._wait = process.pid, process.wait

    def _fork(self, listener: socket.socket, stdin: int, environment: dict[str, str]) -> None:
        pid = os.fork()
        if pid == 0:
            forks.end_with(lambda: _become(listener, stdin, environment))
        self.pid, self._wait = pid, lambda: os.waitpid(pid, 0)

    def close(self) -> None:
        """End it, and every command that runs in it."""
        if self.pid is None:
            return
        os.environ.pop(COMMANDS, None)
        if self._before is not None:
            os.environ[COMMANDS] = self._before
        os.close(self._lifeline)
        with contextlib.suppress(ChildProcessError):  # who reaps every child has reaped it
            self._wait()
        self.pid = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _take_environment(environment: dict[str, str]) -> None:
    """Have this environment, also for who looks into /proc, which shows the memory that the program was started with (lab/processes.py)."""
    os.environ.clear()
    os.environ.update(environment)
    memory = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49]  # env_start and env_end of proc(5)
    start, end = map(int, memory)
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    if len(text) > end - start:
        raise ValueError(f"no room for {len(text)} bytes of environment: this process was started with {end - start}")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def _become(listener: socket.socket, stdin: int, environment: dict[str, str]) -> None:
    """The fork: what `_start` starts."""
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(listener.fileno(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    _take_environment(environment)
    for stream in (sys.__stdin__, sys.__stdout__):
        # As Python makes them for LC_ALL=C.UTF-8: a command says the bytes of a name that isn't UTF-8.
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    command_server.serve(socket.socket(fileno=3))
