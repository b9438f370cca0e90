"""systemd's timers on the simulated host: what runs when, while it is up.

A timer belongs to one boot. One with OnUnitInactiveSec= runs its service again that long after its end, while its unit is there and wasn't stopped. It runs a service's ExecStart in bash in the host's environment, with the host's
paths found in the host's tree.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host import units
from lab.host.state import HostState
from lab.processes import Processes
from lab.state import append_log, now

_OUTPUT_KEPT = 4096


@dataclass(frozen=True)
class _Armed:
    command: str
    due: float
    handle: asyncio.TimerHandle


class Timers:
    """The timers of the running host. To be used in the daemon's event loop only."""

    def __init__(self, state: Path, processes: Processes, environment: Callable[[], dict[str, str]]) -> None:
        self._state = state
        self._processes = processes
        self._environment = environment
        self._armed: dict[str, _Armed] = {}
        self._services: set[asyncio.Task[None]] = set()
        self._stopped: set[str] = set()
        self._boot = 0

    def start(self, unit: str, command: str, seconds: float) -> None:
        """Run command in that many seconds; a timer of the same name is replaced."""
        self.stop(unit)
        self._stopped.discard(unit)
        loop = asyncio.get_running_loop()
        handle = loop.call_later(max(0.0, seconds), self._elapsed, unit)
        self._armed[unit] = _Armed(command, handle.when(), handle)

    def stop(self, unit: str) -> bool:
        """Forget a timer; return whether it was there. A service that it has started runs on."""
        self._stopped.add(unit)
        armed = self._armed.pop(unit, None)
        if armed is not None:
            armed.handle.cancel()
        return armed is not None

    def stop_all(self) -> None:
        """Forget all timers: the host goes down."""
        self._boot += 1
        for unit in list(self._armed):
            self.stop(unit)

    def listing(self) -> list[dict[str, Any]]:
        """Return the armed timers, the next one first, with the seconds left."""
        time = asyncio.get_running_loop().time()
        armed = sorted(self._armed.items(), key=lambda item: item[1].due)
        return [{"unit": unit, "command": one.command, "left": round(one.due - time, 3)} for unit, one in armed]

    def _elapsed(self, unit: str) -> None:
        armed = self._armed.pop(unit)
        task = asyncio.get_running_loop().create_task(self._serve(unit, armed.command))
        self._services.add(task)
        task.add_done_callback(self._services.discard)

    async def _serve(self, unit: str, command: str) -> None:
        started, boot = now(), self._boot
        environment, host = self._environment(), HostState(self._state)
        service = f"{unit.removesuffix('.timer')}.service"
        if units.find(host, service) is not None:
            units.note_state(host, service, "activating")
        output = self._state / "log" / f"{unit}.out"
        with output.open("wb") as file:
            _, ended = self._processes.start(
                ["bash", "-c", units.rooted_command(host, command)],
                environment,
                Path(environment["HOME"]),
                subprocess.DEVNULL,
                file.fileno(),
                file.fileno(),
            )
        status = await ended
        said = output.read_bytes()[-_OUTPUT_KEPT:].decode(errors="replace")
        output.unlink()
        entry = {"unit": unit, "command": command, "started": started, "ended": now()}
        exit_status = status if status >= 0 else 128 - status
        append_log(self._state, "timers", {**entry, "exit": exit_status, "output": said})
        if boot != self._boot:
            return
        if units.state(host, service) == "activating":
            units.note_state(host, service, "inactive")
        again = units.repeats_after(host, unit)
        if again is not None and unit not in self._armed and unit not in self._stopped:
            self.start(unit, command, again / float(host.fault("timers-run-fast") or 1))

    async def wait_services_ended(self) -> None:
        """Wait until no service that a timer started runs any more."""
        if self._services:
            await asyncio.wait(list(self._services))
