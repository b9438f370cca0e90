"""From a request to its answer: who asks, what for, whether it is right; then the operation.

The order of these questions is a node's own, so that of several things that are wrong the same one is said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lab.host.state import HostState
from lab.state import append_log, now

from . import agent, boot, cluster, files, lxc, node, qemu, qemu_power, snapshots
from .auth import ROOT, user_of
from .call import Answer, Call, unheard
from .checks import verify
from .errors import ApiError
from .guests import exclusively
from .quorum import require_pmxcfs
from .reference import Operation, reference
from .tasks import TaskLog, Tasks, Work

Handler = Callable[[Call], Any]
_SECRETS = frozenset({"password", "cipassword", "input-data"})
_GUEST = "/nodes/{node}/qemu/{vmid}"
_CONTAINER = "/nodes/{node}/lxc/{vmid}"


@dataclass
class Request:
    """A request: `path` below /api2/json, parameters from query and body, `cookie` PVEAuthCookie's value."""

    method: str
    path: str
    parameters: dict[str, list[str]] = field(default_factory=dict)
    cookie: str | None = None


@dataclass
class Response:
    """An answer; `body` None is an empty one."""

    status: int
    reason: str
    body: dict[str, Any] | None

    def encoded(self) -> bytes:
        """The body as it is sent."""
        return b"" if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()


class Api:
    """The API of one host.

    Args:
        state: the lab's folder.
        run: takes a task's work on: it is called with the host and the work, and returns at once.
    """

    def __init__(self, state: Path, run: Callable[[HostState, Work], None]) -> None:
        self._state = state
        self._run = run

    def respond(self, request: Request) -> Response:
        """Answer a request, and log it."""
        host = HostState(self._state)
        began = time.monotonic()
        with exclusively(host):
            user: str | None = None
            try:
                _require_no_fault(host, request)
                require_pmxcfs(host)
                user = user_of(host, request.cookie)
                operation, given = _find(request)
                cluster.require_own(host, given)
                response = _answered(self._serve(host, user, operation, given))
            except ApiError as error:
                response = _refused(error)
        self._log(request, user, response, time.monotonic() - began)
        return response

    def perform(self, method: str, path: str, parameters: dict[str, list[str]], say: Callable[[str], None]) -> Any:
        """Do what a command at the host's shell asks for, as root@pam; `say` prints what the operation says meanwhile.

        Raises:
            ApiError: it is refused.
        """
        host = HostState(self._state)
        with exclusively(host):
            operation, given = _find(Request(method, path, parameters))
            data = self._serve(host, ROOT, operation, given, say)
        return data.data if isinstance(data, Answer) else data

    def _serve(
        self,
        host: HostState,
        user: str,
        operation: Operation,
        given: dict[str, list[str]],
        say: Callable[[str], None] = unheard,
    ) -> Any:
        if operation.of_node:
            cluster.require_reachable(host, given["node"][0])
        parameters = verify(operation, given)
        call = Call(host, parameters, partial(self._start, host, user), say)
        return HANDLERS[operation.method, operation.path](call)

    def _start(self, host: HostState, user: str, kind: str, identifier: str, work: Callable[[TaskLog], Work]) -> str:
        tasks = Tasks(host)
        upid, log = tasks.begin(kind, identifier, user)
        self._run(host, tasks.follow(upid, log, work(log)))
        return upid.text

    def _log(self, request: Request, who: str | None, response: Response, seconds: float) -> None:
        shown = {k: "***" if k in _SECRETS else v[0] if len(v) == 1 else v for k, v in request.parameters.items()}
        entry: dict[str, Any] = {
            "at": now(),
            "who": who,
            "method": request.method,
            "path": request.path,
            "parameters": shown,
        }
        entry |= {"status": response.status, "reason": response.reason, "seconds": round(seconds, 4)}
        append_log(self._state, "api", entry)


def _find(request: Request) -> tuple[Operation, dict[str, list[str]]]:
    if request.method not in ("GET", "POST", "PUT", "DELETE"):
        raise ApiError(501, f"method '{request.method}' not available", body=False)
    found = reference().find(request.method, request.path)
    if found is None:
        raise ApiError(501, f"Method '{request.method} {request.path}' not implemented")
    operation, in_path = found
    return operation, {**request.parameters, **{name: [value] for name, value in in_path.items()}}


def _require_no_fault(host: HostState, request: Request) -> None:
    """Refuse what the fault api-answers names: `[METHOD ]PART OF PATH=STATUS[ REASON]`."""
    fault = host.fault("api-answers")
    if fault is None:
        return
    part, _, answer = str(fault).rpartition("=")
    if part in f"{request.method} {request.path}":
        status, _, reason = answer.partition(" ")
        raise ApiError(int(status), reason or "the lab's fault api-answers", body=int(status) == 500)


def _answered(data: Any) -> Response:
    if isinstance(data, Answer):
        return Response(200, "OK", {"data": data.data, **data.beside})
    return Response(200, "OK", {"data": data})


def _refused(error: ApiError) -> Response:
    if not error.body:
        return Response(error.status, error.reason, None)
    body: dict[str, Any] = {"data": None, "message": error.text}
    if error.errors:
        body["errors"] = error.errors
    return Response(error.status, error.reason, body)


#: What serves each operation of the reference.
HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/version"): node.version,
    ("PUT", "/storage/{storage}"): node.change_storage,
    ("GET", "/nodes"): cluster.nodes,
    ("GET", "/nodes/{node}/hardware/pci"): node.pci,
    ("GET", "/nodes/{node}/aplinfo"): node.templates,
    ("GET", "/nodes/{node}/network"): node.interfaces,
    ("POST", "/nodes/{node}/stopall"): boot.stop_all_by_hand,
    ("GET", "/nodes/{node}/storage"): node.storage_status,
    ("GET", "/nodes/{node}/storage/{storage}/content"): node.content_of_storage,
    ("DELETE", "/nodes/{node}/storage/{storage}/content/{volume}"): files.remove,
    ("POST", "/nodes/{node}/storage/{storage}/download-url"): files.download,
    ("GET", "/nodes/{node}/tasks"): node.tasks,
    ("DELETE", "/nodes/{node}/tasks/{upid}"): node.stop_task,
    ("GET", "/nodes/{node}/tasks/{upid}/log"): node.task_log,
    ("GET", "/nodes/{node}/tasks/{upid}/status"): node.task_status,
    ("GET", "/cluster/resources"): cluster.resources,
    ("GET", "/cluster/nextid"): cluster.next_id,
    ("GET", "/cluster/mapping/pci"): cluster.mappings,
    ("POST", "/cluster/mapping/pci"): cluster.create_mapping,
    ("GET", "/cluster/mapping/pci/{id}"): cluster.mapping,
    ("PUT", "/cluster/mapping/pci/{id}"): cluster.update_mapping,
    ("DELETE", "/cluster/mapping/pci/{id}"): cluster.delete_mapping,
    ("GET", "/nodes/{node}/qemu"): qemu.listing,
    ("POST", "/nodes/{node}/qemu"): qemu.create,
    ("DELETE", _GUEST): qemu.destroy,
    ("GET", f"{_GUEST}/agent/network-get-interfaces"): agent.interfaces,
    ("POST", f"{_GUEST}/clone"): qemu.clone,
    ("GET", f"{_GUEST}/config"): qemu.config,
    ("PUT", f"{_GUEST}/config"): qemu.update,
    ("GET", f"{_GUEST}/pending"): qemu.pending,
    ("PUT", f"{_GUEST}/resize"): qemu.resize,
    ("POST", f"{_GUEST}/snapshot"): lambda call: snapshots.create(call, "qemu"),
    ("POST", f"{_GUEST}/snapshot/{{snapname}}/rollback"): lambda call: snapshots.rollback(call, "qemu"),
    ("GET", f"{_GUEST}/status/current"): qemu.status,
    ("POST", f"{_GUEST}/status/reboot"): qemu_power.reboot,
    ("POST", f"{_GUEST}/status/resume"): qemu_power.resume,
    ("POST", f"{_GUEST}/status/shutdown"): qemu_power.shutdown,
    ("POST", f"{_GUEST}/status/start"): qemu_power.start,
    ("POST", f"{_GUEST}/status/stop"): qemu_power.stop,
    ("POST", f"{_GUEST}/status/suspend"): qemu_power.suspend,
    ("GET", "/nodes/{node}/lxc"): lxc.listing,
    ("POST", "/nodes/{node}/lxc"): lxc.create,
    ("DELETE", _CONTAINER): lxc.destroy,
    ("GET", f"{_CONTAINER}/config"): lxc.config,
    ("PUT", f"{_CONTAINER}/config"): lxc.update,
    ("GET", f"{_CONTAINER}/pending"): lxc.pending,
    ("POST", f"{_CONTAINER}/snapshot"): lambda call: snapshots.create(call, "lxc"),
    ("POST", f"{_CONTAINER}/snapshot/{{snapname}}/rollback"): lambda call: snapshots.rollback(call, "lxc"),
    ("GET", f"{_CONTAINER}/status/current"): lxc.status,
    ("POST", f"{_CONTAINER}/status/reboot"): lxc.reboot,
    ("POST", f"{_CONTAINER}/status/shutdown"): lxc.shutdown,
    ("POST", f"{_CONTAINER}/status/start"): lxc.start,
    ("POST", f"{_CONTAINER}/status/stop"): lxc.stop,
}
