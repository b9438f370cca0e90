"""The control socket's server side: what is asked for in JSON lines, checked and handed to the daemon.

lab/control.py lists the requests and is the client's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lab.guests import Guests
from lab.host.state import PVEDAEMON
from lab.machine import MachineError
from lab.scenario import ScenarioError
from lab.ssh import Server
from lab.state import LabError
from lab.timers import Timers

_LOG = logging.getLogger("lab.requests")
_WAIT_SECONDS = 300.0

T = TypeVar("T")


class Request:
    """One request's arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def get(self, name: str, kind: type[T]) -> T:
        """Return an argument.

        Raises:
            LabError: it isn't there, or of another type.
        """
        value = self.arguments.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            raise LabError(
                f"Unable to serve `{self.arguments.get('do')}`: wanted `{name}` as {kind.__name__}, found "
                f"{value!r}. lab/control.py lists the requests and their arguments."
            )
        return value

    def find(self, name: str, kind: type[T], default: T) -> T:
        """Return an argument that may be left out."""
        return default if self.arguments.get(name) is None else self.get(name, kind)


Answer = dict[str, Any]


class Served(Protocol):
    """What is asked of a daemon (lab.server.Daemon says what each does)."""

    phase: str
    boots: int
    guests: Guests
    timers: Timers

    @property
    def ssh(self) -> Server: ...

    @property
    def settled(self) -> bool: ...

    def status(self) -> Answer: ...

    def end(self) -> None: ...

    def guests_changed(self) -> None: ...

    def begin_reboot(self) -> None: ...

    def begin_power_off(self) -> None: ...

    def begin_power_on(self) -> None: ...

    def start_timer(self, unit: str, command: str, seconds: float, *, since_boot: bool = False) -> None: ...

    def port_inside(self, address: str, port: int) -> int | None: ...

    async def wait(self, condition: Callable[[], bool], seconds: float) -> bool: ...

    async def set_fault(self, name: str, value: object) -> dict[str, Any]: ...

    async def reset(self, wanted: str | None) -> None: ...

    async def save(self) -> None: ...

    async def restore(self) -> None: ...


class ControlServer:
    """Serves the control socket of one daemon."""

    def __init__(self, daemon: Served) -> None:
        self._daemon = daemon
        self._server: asyncio.Server | None = None
        self._kept: list[asyncio.StreamWriter] = []
        self._requests: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "status": self._status,
            "reboot": self._go_down,
            "poweroff": self._go_down,
            "power-on": self._power_on,
            "timer-start": self._timer_start,
            "timer-stop": self._timer_stop,
            "timers": self._timers,
            "guests": self._guests,
            "guest": self._guest,
            "pvedaemon": self._pvedaemon,
            "wait": self._wait,
            "fault": self._fault,
            "reset": self._reset,
            "save": self._save,
            "restore": self._restore,
            "stop": self._stop,
        }

    async def listen(self, path: Path) -> None:
        """Accept connections on a Unix socket, in place of one that a killed daemon left there."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._server = await asyncio.start_unix_server(self._converse, path)
        path.chmod(0o600)

    def close(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # the other side may go away at any time
            while line := await reader.readline():
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
                if answer.get("stopping"):
                    # Left open: the other side sees by its end when the daemon has ended.
                    self._kept.append(writer)
                    self._daemon.end()
                    return
        writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            return {"ok": True, **await self._serve(line)}
        except (LabError, MachineError, ScenarioError) as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:
            # The daemon outlives a request that failed; who asked is told, and the log has the trace.
            _LOG.exception("request %r failed", line)
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def _serve(self, line: bytes) -> Answer:
        try:
            arguments = json.loads(line)
        except ValueError:
            arguments = None
        serve = self._requests.get(str(arguments.get("do"))) if isinstance(arguments, dict) else None
        if serve is None:
            raise LabError(
                f"Unable to serve {line.decode(errors='replace').strip()!r}: wanted a JSON object whose "
                f"`do` is one of {', '.join(self._requests)}. lab/control.py describes them."
            )
        return await serve(Request(arguments))

    async def _status(self, _: Request) -> Answer:
        return self._daemon.status()

    async def _go_down(self, request: Request) -> Answer:
        is_reboot = request.get("do", str) == "reboot"
        if vmid := request.find("guest", int, 0):
            self._daemon.guests.begin_power(vmid, "reboot" if is_reboot else "poweroff")
        elif is_reboot:
            self._daemon.begin_reboot()
        else:
            self._daemon.begin_power_off()
        return self._daemon.status()

    async def _power_on(self, _: Request) -> Answer:
        self._daemon.begin_power_on()
        return self._daemon.status()

    async def _pvedaemon(self, request: Request) -> Answer:
        return {"port": None if request.find("guest", int, 0) else self._daemon.port_inside(*PVEDAEMON)}

    async def _timer_start(self, request: Request) -> Answer:
        unit, command = request.get("unit", str), request.get("command", str)
        seconds, since_boot = request.get("seconds", float), request.find("since_boot", bool, False)
        if vmid := request.find("guest", int, 0):
            self._daemon.guests.running(vmid).start_timer(unit, command, seconds, since_boot=since_boot)
        else:
            self._daemon.start_timer(unit, command, seconds, since_boot=since_boot)
        return {}

    async def _timer_stop(self, request: Request) -> Answer:
        return {"stopped": self._timers_of(request).stop(request.get("unit", str))}

    async def _timers(self, request: Request) -> Answer:
        return {"timers": self._timers_of(request).listing()}

    def _timers_of(self, request: Request) -> Timers:
        vmid = request.find("guest", int, 0)
        return self._daemon.guests.running(vmid).timers if vmid else self._daemon.timers

    async def _guests(self, _: Request) -> Answer:
        self._daemon.guests_changed()
        return {}

    async def _guest(self, request: Request) -> Answer:
        return {"connection": self._daemon.guests.connection(request.get("id", int))}

    async def _wait(self, request: Request) -> Answer:
        daemon = self._daemon
        boots, text = request.find("boots", int, 0), request.find("text", str, "")
        vmid = request.find("guest", int, 0)
        ssh = daemon.guests.server(vmid) if vmid else daemon.ssh
        conditions: dict[str, Callable[[], bool]] = {
            "settled": lambda: daemon.boots >= boots and daemon.settled,
            "idle": lambda: not ssh.commands,
            "disconnected": lambda: ssh.disconnected,
            "command": lambda: any(command.mentions(text) for command in ssh.commands),
            "answering": lambda: ssh.answering,
        }
        condition = conditions.get(request.get("for", str))
        if condition is None:
            raise LabError(f"Unable to wait for {request.get('for', str)!r}: wanted one of {', '.join(conditions)}.")
        seconds = request.find("seconds", float, _WAIT_SECONDS)
        if not await daemon.wait(condition, seconds):
            raise LabError(
                f"Waited {seconds:g} seconds in vain for {json.dumps(request.arguments)}: found the host "
                f"{daemon.phase!r} after {daemon.boots} boots, with {len(ssh.commands)} commands "
                "running. `python -m lab log` says what happened."
            )
        return daemon.status()

    async def _fault(self, request: Request) -> Answer:
        return {"faults": await self._daemon.set_fault(request.get("name", str), request.arguments.get("value"))}

    async def _reset(self, request: Request) -> Answer:
        await self._daemon.reset(request.find("scenario", str, "") or None)
        return self._daemon.status()

    async def _save(self, _: Request) -> Answer:
        await self._daemon.save()
        return {}

    async def _restore(self, _: Request) -> Answer:
        await self._daemon.restore()
        return self._daemon.status()

    async def _stop(self, _: Request) -> Answer:
        return {"stopping": True}
