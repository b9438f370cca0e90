"""The API's server in the lab's daemon, pvedaemon, and the daemon's side of tasks and of commands in guests.

aiohttp is what serves: it is maintained, its tests are thorough, and unlike ASGI servers it lets the status line's text
be chosen, in which Proxmox VE says what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs

from aiohttp import web

from lab import ports
from lab.host import units
from lab.host.state import HostState

from .guests import exclusively
from .responses import Api, Request, Response
from .tasks import Work

_LOG = logging.getLogger("lab.api")
_PREFIX = "/api2/json"
_HOLD_SECONDS = 0.05  # how often it is looked whether an answer may go
# PVE::APIServer::AnyEvent: a connection that does nothing is closed after this long.
_KEEPALIVE_SECONDS = 5.0


class Owner(Protocol):
    """What the server needs from the daemon."""

    state: Path

    def guests_changed(self) -> None:
        """Look anew which guests run, and how they are connected."""


class ApiServer:
    """The API of one host: listens or not, on a port of 127.0.0.1 that stays the daemon's all the time.

    Args:
        owner: the daemon.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        # As lab.ssh.Server does: a socket that keeps the port for the daemon's life; another listens.
        self._holder = ports.bind(0)
        self.port = int(self._holder.getsockname()[1])
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._api = Api(owner.state, self._run)

    # -- up and down -------------------------------------------------------------------------------------
    async def listen(self) -> None:
        """Serve, on a host that has just come up."""
        # One resource for all paths: which there are is the reference's business.
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            handle_signals=False,
            # A host that goes down waits for no request; to aiohttp 0 would mean for ever.
            shutdown_timeout=0.01,
        )
        await self._runner.setup()
        listener = ports.bind(self.port)
        listener.listen(128)
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop serving, break every connection, end every task."""
        if self._runner is not None:
            await self._runner.cleanup()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def port_inside(self) -> int | None:
        """Where pvedaemon answers; None while it is stopped."""
        return self.port if units.runs(HostState(self._owner.state), "pvedaemon.service") else None

    # -- requests ----------------------------------------------------------------------------------------
    async def _serve(self, request: web.Request) -> web.Response:
        """Answer as pvedaemon: nothing is handed on to another node, and an error ends the connection."""
        answer = await self._answer(request)
        if answer.status >= 400:
            answer.force_close()
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        host = HostState(self._owner.state)
        if not request.path.startswith(f"{_PREFIX}/"):
            return _encoded(Response(501, f"Method '{request.method} {request.path}' not implemented", None))
        asked = Request(
            request.method,
            request.path.removeprefix(_PREFIX).rstrip("/"),
            await _parameters(request),
            request.cookies.get("PVEAuthCookie"),
        )
        if seconds := host.fault("api-seconds"):
            await asyncio.sleep(float(seconds))  # with the body read: who goes away meanwhile has asked
        if _is_lost(host, f"{asked.method} {asked.path}") and request.transport is not None:
            request.transport.abort()
            return _encoded(Response(500, "nobody reads it", None))
        try:
            response = self._api.respond(asked)
        except Exception as error:
            # The daemon outlives a request that failed; who asked is told, and the log has the trace.
            _LOG.exception("%s %s failed", asked.method, asked.path)
            text = f"the lab's API failed: {type(error).__name__}: {error}"
            response = Response(500, text.replace("\n", " "), {"data": None, "message": f"{text}\n"})
        if asked.method != "GET":
            self._owner.guests_changed()
        host.reload()
        while (held := host.fault("api-holds")) is not None and str(held) in f"{asked.method} {asked.path}":
            await asyncio.sleep(_HOLD_SECONDS)  # faults are a file, which tells nobody
            host.reload()
        dropped = host.fault("api-drops")
        if dropped is not None and str(dropped) in f"{asked.method} {asked.path}" and request.transport is not None:
            request.transport.abort()  # what was asked for is done: the answer alone is lost
        return _encoded(response)

    # -- tasks -------------------------------------------------------------------------------------------
    def _run(self, host: HostState, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._follow(host, work))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    async def _follow(self, host: HostState, work: Work) -> None:
        try:
            while True:
                with exclusively(host):
                    seconds = next(work, None)
                self._owner.guests_changed()
                if seconds is None:
                    return
                await asyncio.sleep(seconds)
        finally:
            with exclusively(host):
                work.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a task failed", exc_info=error)


def _is_lost(host: HostState, asked: str) -> bool:
    """Whether the fault api-loses, `PART=NUMBER`, has this request lost; it counts down."""
    part, _, left = str(host.fault("api-loses") or "").rpartition("=")
    if not part or part not in asked or int(left) < 1:
        return False
    with exclusively(host), host.changing() as machine:
        machine["faults"]["api-loses"] = f"{part}={int(left) - 1}"
    return True


async def _parameters(request: web.Request) -> dict[str, list[str]]:
    """All parameters of a request: query, and a body as a form."""
    found = {name: request.query.getall(name) for name in request.query}
    return {**found, **parse_qs(await request.text(), keep_blank_values=True)}


def _encoded(response: Response) -> web.Response:
    headers = {"Server": "pve-api-daemon/3.0", "Cache-Control": "max-age=0", "Pragma": "no-cache"}
    if response.body is not None:
        headers["Content-Type"] = "application/json;charset=UTF-8"
    return web.Response(
        status=response.status, reason=response.reason, body=response.encoded() or None, headers=headers
    )
