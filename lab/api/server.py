"""The API's HTTPS server in the lab's daemon, and the daemon's side of tasks and of commands in guests.

aiohttp is what serves: it is maintained, its tests are thorough, and unlike ASGI servers it lets the status line's text
be chosen, in which Proxmox VE says what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from lab import ports
from lab.host.cluster import Cluster, Peer
from lab.host.state import HostState
from lab.processes import Processes
from lab.state import read_lab_file, write_whole

from . import ha_config, ha_manager
from .agent_commands import AgentCommands
from .auth import Authenticator
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
_BODY_MAX = 4 << 20
# A connection that does nothing is closed after this long; proxmoxer keeps one for a run.
_KEEPALIVE_SECONDS = 75.0


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


@dataclass(frozen=True)
class Secrets:
    """What a lab's clients log in with, and what its tickets are signed with; kept over resets."""

    password: str
    token: str
    ticket_key: str

    @classmethod
    def of(cls, folder: Path) -> Secrets:
        """Those of a lab, made when it has none."""
        path = folder / "secrets.json"
        if not path.exists():
            made = {"password": secrets.token_urlsafe(12), "token": _random_uuid(), "ticket_key": secrets.token_hex(32)}
            write_whole(path, json.dumps(made, indent=1) + "\n")
            path.chmod(0o600)
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def _random_uuid() -> str:
    text = secrets.token_hex(16)
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class ApiServer:
    """The API of one host: listens or not, on a port that stays the lab's all the time.

    Args:
        owner: the daemon.
        port: TCP port on 127.0.0.1, 0 for a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, owner: Owner, port: int, node: str) -> None:
        self._owner = owner
        folder = owner.state / "api"
        cluster = Cluster.of(HostState(owner.state))
        # A cluster's nodes have one authority, one list of users and one key for tickets.
        shared = cluster.folder / "api" if cluster else None
        self._certificates = Certificates(folder, shared)
        self._certificates.make(node)
        self._secrets = Secrets.of(shared or folder)
        # As lab.ssh.Server does: one socket keeps the port for the daemon's life, another one listens.
        self._holder = ports.bind(port)
        self.port: int = self._holder.getsockname()[1]
        self._commands = AgentCommands(owner.processes)
        self._tasks: set[asyncio.Task[None]] = set()
        host = HostState(owner.state)
        #: One of them is there where HA is in use.
        self._of_ha = (ha_manager.file_of(host), ha_config.commands_of(host), host.rooted(ha_config.FILE))
        #: The VMs that were here in HA's last round: another node may have moved one here.
        self._had: set[int] = set()
        self._runner: web.AppRunner | None = None
        self._api = Api(
            owner.state,
            Authenticator(bytes.fromhex(self._secrets.ticket_key)),
            self._certificates.fingerprint,
            self._run,
            lambda command: owner.begin_reboot() if command == "reboot" else owner.begin_power_off(),
            self._commands,
        )

    def connection(self, node: str) -> dict[str, Any]:
        """What lab.json tells clients."""
        return {
            "url": f"https://127.0.0.1:{self.port}",
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
        # One resource for all paths: which there are is the reference's business.
        application = web.Application(client_max_size=_BODY_MAX)
        application.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            handle_signals=False,
            # A host that goes down waits for no request; to aiohttp 0 would mean for ever.
            shutdown_timeout=0.01,
        )
        await runner.setup()
        listener = ports.bind(self.port)
        listener.listen(128)
        await web.SockSite(runner, listener, ssl_context=self._certificates.context()).start()
        self._runner = runner

    async def close(self) -> None:
        """Stop serving, break every connection, end every task."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
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

    # -- requests ----------------------------------------------------------------------------------------
    async def _serve(self, request: web.Request) -> web.StreamResponse:
        host = HostState(self._owner.state)
        if seconds := host.fault("api-seconds"):
            await asyncio.sleep(float(seconds))
        if not request.path.startswith(f"{_PREFIX}/"):
            return _encoded(Response(501, f"Method '{request.method} {request.path}' not implemented", None))
        asked = Request(
            request.method,
            request.path.removeprefix(_PREFIX).rstrip("/"),
            await _parameters(request),
            request.headers,
            request.cookies.get("PVEAuthCookie"),
        )
        if _is_lost(host, f"{asked.method} {asked.path}") and request.transport is not None:
            request.transport.abort()
            return _encoded(Response(500, "nobody reads it", None))
        if (peer := peer_of(host, asked.path)) is not None:
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
                f"{lab.api['url']}{request.path_qs}",
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


async def _parameters(request: web.Request) -> dict[str, list[str]]:
    """All parameters of a request: query, and a body as form or as JSON."""
    found: dict[str, list[str]] = {}
    for name in request.query:
        found[name] = request.query.getall(name)
    if request.content_type == "application/json":
        text = await request.text()
        given: Mapping[str, Any] = json.loads(text) if text else {}
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            found[name] = [str(int(item)) if isinstance(item, bool) else str(item) for item in values]
        return found
    form = await request.post()
    for name in form:
        found[name] = [str(value) for value in form.getall(name)]
    return found


def _encoded(response: Response) -> web.Response:
    headers = {"Server": "pve-api-daemon/3.0", "Cache-Control": "max-age=0", "Pragma": "no-cache"}
    if response.body is not None:
        headers["Content-Type"] = "application/json;charset=UTF-8"
    return web.Response(
        status=response.status, reason=response.reason, body=response.encoded() or None, headers=headers
    )
