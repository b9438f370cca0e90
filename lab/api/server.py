"""The API's servers in the lab's daemon, pveproxy over HTTPS and pvedaemon inside the host, and the daemon's side of tasks and of commands in guests.

aiohttp is what serves: it is maintained, its tests are thorough, and unlike ASGI servers it lets the status line's text
be chosen, in which Proxmox VE says what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from lab import ports
from lab.host import units
from lab.host.cluster import Cluster, Peer
from lab.host.state import HostState
from lab.processes import Processes
from lab.state import read_lab_file

from . import ha_config, ha_manager
from .agent_commands import AgentCommands
from .auth import Authenticator, Secrets
from .cluster import certificate_path, peer_of
from .guests import exclusively, guests_of
from .responses import Api, Request, Response
from .tasks import Work
from .tls import Certificates
from .users import ROOT, Token, Users

_LOG = logging.getLogger("lab.api")
_PREFIX = "/api2/json"
_TOKEN = "lab"
#: What of a request's head another node of a cluster needs.
_HANDED_ON = ("Authorization", "Cookie", "CSRFPreventionToken", "Content-Type")
_HOLD_SECONDS = 0.05  # how often it is looked whether an answer may go
# PVE::APIServer::AnyEvent: the longest body, and how a body may be written.
_BODY_MAX = 512 << 10
_BODY_TYPES = ("", "application/x-www-form-urlencoded", "application/json")
# A connection that does nothing is closed after this long; over HTTPS proxmoxer keeps one for a run.
_KEEPALIVE_SECONDS, _KEEPALIVE_INSIDE_SECONDS = 75.0, 5.0


class Owner(Protocol):
    """What the server needs from the daemon."""

    state: Path
    processes: Processes

    def begin_reboot(self) -> None:
        """Reboot the host in a moment."""

    def begin_power_off(self) -> None:
        """Switch the host off in a moment."""

    def guests_changed(self) -> None:
        """Look anew which guests run, and how they are connected."""


class ApiServer:
    """The API of one host: listens or not, on ports that stay the lab's all the time.

    Args:
        owner: the daemon.
        port: pveproxy's TCP port on 127.0.0.1, 0 for a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, owner: Owner, port: int, node: str) -> None:
        self._owner = owner
        host = HostState(owner.state)
        cluster = Cluster.of(host)
        # A cluster's nodes have one authority.
        self._certificates = Certificates(owner.state / "api", cluster.folder / "api" if cluster else None)
        self._certificates.make(node)
        self._secrets = Secrets.of(host)
        # As lab.ssh.Server does: sockets that keep the ports for the daemon's life; others listen.
        self._holders = ports.bind(port), ports.bind(0)
        #: pveproxy's and pvedaemon's.
        self.port, self._inside_port = (int(holder.getsockname()[1]) for holder in self._holders)
        self._commands = AgentCommands(owner.processes)
        self._tasks: set[asyncio.Task[None]] = set()
        #: One of them is there where HA is in use.
        self._of_ha = (ha_manager.file_of(host), ha_config.commands_of(host), host.rooted(ha_config.FILE))
        #: The VMs that were here in HA's last round: another node may have moved one here.
        self._had: set[int] = set()
        self._runners: list[web.AppRunner] = []
        self._api = Api(
            owner.state,
            Authenticator.of(host),
            self._certificates.fingerprint,
            self._run,
            lambda command: owner.begin_reboot() if command == "reboot" else owner.begin_power_off(),
            self._commands,
        )

    def connection(self, node: str) -> dict[str, Any]:
        """What lab.json tells clients."""
        return {
            "url": f"http://127.0.0.1:{self._inside_port}",
            "host": "127.0.0.1",
            "port": self.port,
            "node": node,
            "caFile": str(self._certificates.authority),
            "fingerprint": self._certificates.fingerprint,
            "user": ROOT.user,
            "password": self._secrets.password,
            "tokenId": f"{ROOT.user}!{_TOKEN}",
            "tokenSecret": self._secrets.token,
        }

    # -- up and down -------------------------------------------------------------------------------------
    async def listen(self) -> None:
        """Serve, on a host that has just come up."""
        self._configure()
        await self._open(self.port, self._serve, _KEEPALIVE_SECONDS, self._certificates.context())
        await self._open(self._inside_port, self._serve_inside, _KEEPALIVE_INSIDE_SECONDS)

    async def _open(
        self,
        port: int,
        serve: Callable[[web.Request], Awaitable[web.StreamResponse]],
        keepalive_seconds: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        # One resource for all paths: which there are is the reference's business.
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=keepalive_seconds,
            handle_signals=False,
            # A host that goes down waits for no request; to aiohttp 0 would mean for ever.
            shutdown_timeout=0.01,
        )
        await runner.setup()
        listener = ports.bind(port)
        listener.listen(128)
        await web.SockSite(runner, listener, ssl_context=context).start()
        self._runners.append(runner)

    async def close(self) -> None:
        """Stop serving, break every connection, end every task."""
        while self._runners:
            await self._runners.pop().cleanup()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._commands.forget()

    def _configure(self) -> None:
        """The files that an installed node has: certificates, root's password, and the lab's token."""
        host = HostState(self._owner.state)
        with exclusively(host):
            host.write("/etc/pve/pve-root-ca.pem", self._certificates.authority.read_bytes(), 0o640)
            certificate = certificate_path(host)
            host.write(host.unrooted(certificate), self._certificates.server.read_bytes(), 0o640)
            users = Users(host)
            if not users.has_password(ROOT.user, self._secrets.password):
                # A reset gives the same bytes again, the salt among them.
                users.set_password(ROOT.user, self._secrets.password, self._secrets.ticket_key[:16])
                users.users[ROOT.user].tokens.setdefault(_TOKEN, Token(separated=False))
                users.set_token_secret(f"{ROOT.user}!{_TOKEN}", self._secrets.token)
                users.save()

    def port_inside(self) -> int | None:
        """Where pvedaemon answers; None while it is stopped, or is just being started again (the fault api-refuses)."""
        host = HostState(self._owner.state)
        if not units.runs(host, "pvedaemon.service"):
            return None
        refused = int(host.fault("api-refuses") or 0)
        if refused:
            with host.changing() as machine:
                machine["faults"]["api-refuses"] = refused - 1
        return None if refused else self._inside_port

    # -- requests ----------------------------------------------------------------------------------------
    async def _serve_inside(self, request: web.Request) -> web.StreamResponse:
        """As pvedaemon: who is on the host needs no CSRF token, and nothing is handed on; an error ends the connection."""
        answer = await self._serve(request, inside=True)
        if answer.status >= 400:
            answer.force_close()
        return answer

    async def _serve(self, request: web.Request, *, inside: bool = False) -> web.Response:
        host = HostState(self._owner.state)
        if not request.path.startswith(f"{_PREFIX}/"):
            return _encoded(Response(501, f"Method '{request.method} {request.path}' not implemented", None))
        if (refusal := _refused_body(request)) is not None:
            return _encoded(refusal)
        asked = Request(
            request.method,
            request.path.removeprefix(_PREFIX).rstrip("/"),
            await _parameters(request),
            request.headers,
            request.cookies.get("PVEAuthCookie"),
            inside,
        )
        if seconds := host.fault("api-seconds"):
            await asyncio.sleep(float(seconds))  # with the body read: who goes away meanwhile has asked
        if _is_lost(host, f"{asked.method} {asked.path}") and request.transport is not None:
            request.transport.abort()
            return _encoded(Response(500, "nobody reads it", None))
        if not inside and (peer := peer_of(host, asked.path)) is not None:
            return await _handed_to(peer, request)
        try:
            response = self._api.respond(asked)
        except Exception as error:
            # The daemon outlives a request that failed; who asked is told, and the log has the trace.
            _LOG.exception("%s %s failed", asked.method, asked.path)
            text = f"the lab's API failed: {type(error).__name__}: {error}"
            response = Response(500, text.replace("\n", " "), {"data": None, "message": f"{text}\n"})
        if asked.method != "GET":
            self._owner.guests_changed()
        while (held := host.fault("api-holds")) is not None and str(held) in f"{asked.method} {asked.path}":
            await asyncio.sleep(_HOLD_SECONDS)  # faults are a file, which tells nobody
        dropped = host.fault("api-drops")
        if dropped is not None and str(dropped) in f"{asked.method} {asked.path}" and request.transport is not None:
            request.transport.abort()  # what was asked for is done: the answer alone is lost
        return _encoded(response)

    # -- tasks -------------------------------------------------------------------------------------------
    def take_part_in_ha(self) -> bool:
        """One round of this node's manager and agent of HA; False where HA isn't in use."""
        if not any(path.exists() for path in self._of_ha):
            return False
        host = HostState(self._owner.state)
        with exclusively(host):
            manager = ha_manager.HaManager(host)
            manager.take_part()
            works = list(manager.begin())
            manager.save()
        for work in works:
            self._run(host, work)
        if had := {guest.vmid for guest in guests_of(host, "qemu")} ^ self._had:
            self._had ^= had
            self._owner.guests_changed()
        return True

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


async def _handed_to(peer: Peer, request: web.Request) -> web.Response:
    """Have another node of the cluster answer, as pveproxy does: with what the client sent, and with what that node says."""
    lab = read_lab_file(peer.host.state)
    if lab is None:
        return web.Response(status=595, reason="Connection refused")
    headers = {name: request.headers[name] for name in _HANDED_ON if name in request.headers}
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                f"https://127.0.0.1:{lab.api['port']}{request.path_qs}",
                data=await request.read(),
                headers=headers,
                ssl=False,
            ) as answer,
        ):
            body = await answer.read()
            kind = {"Content-Type": answer.headers["Content-Type"]} if "Content-Type" in answer.headers else {}
            return web.Response(status=answer.status, reason=answer.reason, body=body, headers=kind)
    except aiohttp.ClientConnectionError:
        return web.Response(status=595, reason="Connection refused")


def _is_lost(host: HostState, asked: str) -> bool:
    """Whether the fault api-loses, `PART=NUMBER`, has this request lost; it counts down."""
    part, _, left = str(host.fault("api-loses") or "").rpartition("=")
    if not part or part not in asked or int(left) < 1:
        return False
    with exclusively(host), host.changing() as machine:
        machine["faults"]["api-loses"] = f"{part}={int(left) - 1}"
    return True


def _refused_body(request: web.Request) -> Response | None:
    """The refusal of a request for its body, which isn't read; None where it is."""
    kind, length = request.headers.get("Content-Type", ""), request.content_length
    if "Transfer-Encoding" in request.headers:
        return Response(501, "chunked transfer encoding not supported", None)
    if not length:
        return None
    if request.method not in ("PUT", "POST"):
        return Response(501, f"Unexpected content for method '{request.method}'", None)
    if length > _BODY_MAX:
        return Response(501, "for data too large", None)
    if kind.partition(";")[0].strip().lower() not in _BODY_TYPES:
        return Response(506, f"upload 'Content-Type '{kind}' not implemented", None)
    return None


async def _parameters(request: web.Request) -> dict[str, list[str]]:
    """All parameters of a request: query, and a body as form or as JSON."""
    found: dict[str, list[str]] = {}
    for name in request.query:
        found[name] = request.query.getall(name)
    text = await request.text()
    if request.content_type == "application/json":
        given: Mapping[str, Any] = json.loads(text) if text else {}
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            found[name] = [str(int(item)) if isinstance(item, bool) else str(item) for item in values]
        return found
    return {**found, **parse_qs(text, keep_blank_values=True)}


def _encoded(response: Response) -> web.Response:
    headers = {"Server": "pve-api-daemon/3.0", "Cache-Control": "max-age=0", "Pragma": "no-cache"}
    if response.body is not None:
        headers["Content-Type"] = "application/json;charset=UTF-8"
    return web.Response(
        status=response.status, reason=response.reason, body=response.encoded() or None, headers=headers
    )
