"""What the guest agents run: commands in the guests' own trees (`guest_system`), as root, known by their process ids."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

from lab.processes import Processes

from .guest_system import booted, environment_of
from .guests import Guest

_OUTPUT_MAX = 1 << 20


@dataclass
class _Command:
    """A command in a guest: which one, in which of its boots, the output so far, the exit status once it has ended."""

    vmid: int
    started: float
    exit: int | None = None
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)


class AgentCommands:
    """What the guest agents of a host's VMs were asked to run.

    Args:
        processes: what runs on the host; the guests' commands end with it.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._commands: dict[int, _Command] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """The host went down, and all guests with it."""
        self._commands.clear()

    def start(self, guest: Guest, command: list[str], stdin: str) -> int:
        """Start a command in a guest and return its process id."""
        system = booted(guest)
        read_in, write_in = os.pipe()
        with os.fdopen(write_in, "wb") as feed:
            # agent/exec takes 64 KiB at most, which is what a pipe holds.
            feed.write(stdin.encode()[:65536])
        out, errors = os.pipe(), os.pipe()
        try:
            process, ended = self._processes.start(
                _command_line(command), environment_of(system, "root"), system.root, read_in, out[1], errors[1]
            )
        finally:
            for descriptor in (read_in, out[1], errors[1]):
                os.close(descriptor)
        found = self._commands[process.pid] = _Command(guest.vmid, guest.system_started)
        for descriptor, parts in ((out[0], found.output), (errors[0], found.errors)):
            self._collect(descriptor, parts)
        task = asyncio.get_running_loop().create_task(self._wait(found, ended))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return process.pid

    @staticmethod
    async def _wait(command: _Command, ended: asyncio.Future[int]) -> None:
        command.exit = await ended

    @staticmethod
    def _collect(descriptor: int, parts: list[bytes]) -> None:
        """Take a pipe's content as it comes, up to what the agent gives back."""
        loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)

        def read() -> None:
            data = os.read(descriptor, 65536)
            if not data:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            elif sum(map(len, parts)) < _OUTPUT_MAX:
                parts.append(data)

        loop.add_reader(descriptor, read)

    def status(self, guest: Guest, pid: int) -> dict[str, Any] | None:
        """Whether a command has ended, and with what output; None when the guest has no such process."""
        command = self._commands.get(pid)
        if command is None or (command.vmid, command.started) != (guest.vmid, guest.system_started):
            return None
        if command.exit is None:
            return {"exited": 0}
        found: dict[str, Any] = {"exited": 1}
        found |= {"exitcode": command.exit} if command.exit >= 0 else {"signal": -command.exit}
        for name, parts in (("out-data", command.output), ("err-data", command.errors)):
            if parts:
                found[name] = b"".join(parts).decode("utf-8", "replace")
        return found


def _command_line(command: list[str]) -> list[str]:
    """The command, found on the guest's PATH, whatever path it was named by."""
    return ["/usr/bin/env", "--", command[0], *command[1:]]
