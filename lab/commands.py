"""Starts a command server (lab.host.command_server): simulated commands as forks of one process, not a Python start each."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from lab.host import command_server
from lab.host.state import COMMANDS

# sendmsg(2), from the kernel's headers, for command.pl; on other machines each command is a Python of its own.
_SENDMSG = {"x86_64": 46, "aarch64": 211, "riscv64": 211}
#: In the environment: there is to be no server, each command is a Python of its own.
NO_SERVER = "LAB_NO_COMMAND_SERVER"


class CommandServer:
    """A command server for those that this process starts: its name is in `os.environ` until `close`.

    It ends with this process, however that ends, and what runs in it does.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it. Who asks before it is ready waits; where this machine can't have one, nothing happens.

        Args:
            environment: its own; what the commands get is what those who ask have.
        """
        self._process: subprocess.Popen[bytes] | None = None
        #: What it ends with.
        self._lifeline = -1
        self._before: str | None = None
        number = _SENDMSG.get(platform.machine())
        if number is None or sys.maxsize < 2**32 or NO_SERVER in os.environ:
            return
        name = f"homelab-lab-{os.getpid()}-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0{name} {Path('/proc/self/ns/mnt').readlink()}")
            listener.listen(128)
            stdin, self._lifeline = os.pipe()
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", command_server.__file__, str(listener.fileno())],
                stdin=stdin,
                env={"LC_ALL": "C.UTF-8", **(environment or {})},
                cwd="/",
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
            os.close(stdin)
        self._before = os.environ.get(COMMANDS)  # one within another's time takes its place
        os.environ[COMMANDS] = f"{number}:{name}"

    @property
    def pid(self) -> int | None:
        """Its process; None where there is none."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End it, and every command that runs in it."""
        if self._process is None:
            return
        os.environ.pop(COMMANDS, None)
        if self._before is not None:
            os.environ[COMMANDS] = self._before
        os.close(self._lifeline)
        with contextlib.suppress(ChildProcessError):  # who reaps every child has reaped it
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
