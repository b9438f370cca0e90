"""The Proxmox VE API: requests that outlast a short outage, waiting for tasks, errors for users.

A request is sent again only where that changes nothing twice: a read, or what certainly wasn't carried out. That is so
while the API is away for a short time (an update restarts it), and where another process has the lock (`qm cleanup` may
hold a VM's for half a minute after its stop).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from proxmoxer.core import ResourceException

from homelab.errors import (
    ApiError,
    AwayError,
    ElsewhereError,
    LockHeldError,
    NoQuorumError,
    NotThereError,
    UnansweredError,
    elsewhere,
)
from homelab.remote.proxmox.connection import Connection
from homelab.remote.proxmox.errors import explained, plain
from homelab.settings import Host

T = TypeVar("T")

# How long a request is repeated, in seconds: while the API doesn't answer; while a lock is held (each time Proxmox VE
# itself waits ten seconds for it); while a cluster reports no quorum, which it may still do once when it has one again.
OUTAGE_SECONDS = 15.0
LOCK_SECONDS = 90.0
QUORUM_SECONDS = 5.0
# Between two attempts: the shortest and the longest pause.
RETRY_SECONDS = (0.2, 2.0)
# Between two requests of a task's status, the shortest and the longest pause: the API doesn't signal a task's end.
POLL_SECONDS = (0.1, 1.0)
# Of a task's log: lines in an error, lines in a request, which is more than any task writes between two looks at it.
TAIL_LINES = 12
LOG_LINES = 5000

# Parameters that no message may show.
SECRETS = ("password", "cipassword")
# In a name that is part of a path, these would make it another path, or add parameters.
_UNSAFE_IN_PATH = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|[?#%\\]")
_GUEST = re.compile(r"^nodes/[^/]+/(?P<kind>qemu|lxc)/(?P<id>\d+)(?:/|$)")
_NO_LOG_YET = "no content"  # the line of a log that is still empty
_STATUS = "TASK "  # its last line, which repeats the status
_WAITS_FOR_LOCK = ("trying to acquire lock", "trying to acquire cfs lock")


class Api:
    """One host's API.

    `host`: the settings; `node`: the node's name in its cluster; `patience`: seconds that an outage may last.
    """

    def __init__(self, host: Host, node: str, *, clock: Any = time, patience: float = OUTAGE_SECONDS) -> None:
        """:param clock: the module `time`, which tests replace."""
        self.node, self.host, self.clock = node, host, clock
        self._connection = Connection(host)
        # An error that goes away by itself -> for how long.
        self._passing: dict[type[ApiError], float] = {
            UnansweredError: patience,
            AwayError: patience,
            LockHeldError: LOCK_SECONDS,
            NoQuorumError: QUORUM_SECONDS,
        }

    # -- requests ------------------------------------------------------------------------------------------------
    def get(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """GET below /api2/json.

        :param wanted: the request's purpose, for errors.
        :raises ApiError: it was refused, or not answered.
        """
        return self._repeated(path, lambda: self._request("get", path, wanted, parameters), reads=True)

    def post(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """POST; arguments as of `get`.

        :raises ApiError: it was refused, or not answered.
        """
        return self._repeated(path, lambda: self._request("post", path, wanted, parameters))

    def put(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """PUT; arguments as of `get`.

        :raises ApiError: it was refused; UnansweredError: it may have been carried out.
        """
        return self._repeated(path, lambda: self._request("put", path, wanted, parameters))

    def delete(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """DELETE; arguments as of `get`.

        :raises ApiError: it was refused, or not answered.
        """
        return self._repeated(path, lambda: self._request("delete", path, wanted, parameters))

    def _request(self, verb: str, path: str, wanted: str, parameters: Mapping[str, object]) -> Any:
        """One attempt of a request through the connection."""
        if _UNSAFE_IN_PATH.search(path):
            raise ValueError(f"no path of the API: {path!r}")
        # The API knows 0 and 1; a Python True would be refused.
        api_parameters = {name: int(value) if isinstance(value, bool) else value for name, value in parameters.items()}
        try:
            return getattr(self._connection.resource(path), verb)(**api_parameters)
        except ResourceException as error:
            raise self._error_of_refusal(wanted, parameters, error) from error
        except AwayError:
            raise
        except UnansweredError as error:
            reads = {"why": "it could not be read; nothing was changed"} if verb == "get" else {}
            raise error.retold(wanted=wanted, **reads) from error

    def _repeated(self, path: str, ask: Callable[[], T], *, reads: bool = False) -> T:
        """The answer of `ask`, which is called again where that is safe.

        :param path: of the request.
        :param reads: it may be carried out twice.
        """
        start_time, pauses = self.clock.monotonic(), _pauses(RETRY_SECONDS)
        while True:
            try:
                return ask()
            except ApiError as error:
                limit = self._passing.get(type(error), -1) if reads or not error.sent else -1
                if self.clock.monotonic() - start_time > limit:
                    raise self._with_node(error, path) from error
            self.clock.sleep(next(pauses))

    # -- tasks ---------------------------------------------------------------------------------------------------
    def carry_out(
        self, verb: str, path: str, wanted: str, seconds: float, say: Callable[[str], None], **parameters: Any
    ) -> None:
        """Starts a task, and waits for it. A task that failed because it waited for a lock in vain is started again.

        :param seconds: how long the task may take.
        :param say: called with each new line of its log.
        :raises ApiError: it was refused, failed, or still runs.
        """

        def carry_out() -> None:
            if upid := self._request(verb, path, wanted, parameters):  # else it was done at once
                self.task(upid, wanted, seconds, say)

        self._repeated(path, carry_out)

    def task(self, upid: str, wanted: str, seconds: float, say: Callable[[str], None]) -> None:
        """Waits for a task.

        :param seconds: how long to wait at most.
        :param say: called with each new line of its log.
        :raises ApiError: it failed, or still runs; the error has the end of its log.
        """
        log: list[str] = []
        exit_status = self._end_of(upid, wanted, seconds, lambda: self._read_log(upid, wanted, log, say))
        if exit_status is None:
            raise UnansweredError(
                wanted=wanted,
                found=f"the task still runs after {seconds:.0f} seconds{_quoted(log)}",
                why="its work isn't done yet; it continues by itself",
                next=f"see `pvenode task log {upid}` on the host; when it has ended, run `pulumi up` again. A host "
                "that takes longer gets more time with hosts.<name>.timeouts.apiTask, or timeouts.create for new "
                "guests",
                status=500,
                reason="still running",
            )
        if exit_status != "OK" and not exit_status.startswith("WARNINGS"):
            raise _error_of_task(wanted, upid, plain(exit_status), log)

    def end_task(self, upid: str, wanted: str, seconds: float) -> None:
        """Tells a task to end, and waits until it has, for so many seconds at most.

        :raises ApiError: it was refused, or not answered.
        """
        self.delete(_path_of(upid), wanted)
        self._end_of(upid, wanted, seconds)

    def _end_of(self, upid: str, wanted: str, seconds: float, each: Callable[[], None] = lambda: None) -> str | None:
        """A task's exit status; None: it still runs after so many seconds.

        :param each: called at each look.
        """
        deadline = self.clock.monotonic() + seconds
        pauses = _pauses(POLL_SECONDS)
        while True:
            status = self.get(f"{_path_of(upid)}/status", wanted)
            each()
            if status["status"] == "stopped":
                return str(status.get("exitstatus", "unexpected status"))
            if self.clock.monotonic() > deadline:
                return None
            self.clock.sleep(next(pauses))

    def _read_log(self, upid: str, wanted: str, log: list[str], say: Callable[[str], None]) -> None:
        """Adds to a task's log what is new of it, and shows it."""
        for line in self.get(f"{_path_of(upid)}/log", wanted, start=len(log), limit=LOG_LINES):
            if line["t"] != _NO_LOG_YET:
                log.append(plain(line["t"]))
                if not log[-1].startswith(_STATUS):
                    say(log[-1])

    # -- errors --------------------------------------------------------------------------------------------------
    def _error_of_refusal(self, wanted: str, parameters: Mapping[str, object], error: ResourceException) -> ApiError:
        secrets = [str(value) for name, value in parameters.items() if name in SECRETS]
        status, reason = int(error.status_code), plain(str(error.content or "").strip(), secrets)
        errors = error.errors if isinstance(error.errors, dict) else {}
        details = plain("; ".join(f"{name}: {str(text).strip()}" for name, text in errors.items()), secrets)
        found = f"{status} {reason}" + (f" ({details})" if details else "")
        return explained(wanted, found, status, reason)

    def _with_node(self, error: ApiError, path: str) -> ApiError:
        """The error of a guest that isn't there, with the node that it is on, if that is known."""
        guest = _GUEST.match(path)
        if not isinstance(error, NotThereError) or guest is None:
            return error
        vmid = int(guest["id"])
        with suppress(ApiError):
            for row in self.get("cluster/resources", "to see on which node a guest is", type="vm"):
                node = str(row["node"])
                if row.get("vmid") == vmid and node != self.node:
                    parts = elsewhere(error.wanted, guest["kind"], vmid, self.node, node).parts()
                    moved = ElsewhereError(**parts, status=error.status, reason=error.reason)
                    moved.node = node
                    return moved
        return error


def _path_of(upid: str) -> str:
    return f"nodes/{upid.split(':')[1]}/tasks/{upid}"


def _pauses(seconds: tuple[float, float]) -> Iterator[float]:
    """Pauses from the first of `seconds`, each twice as long up to the second, without end."""
    pause, longest = seconds
    while True:
        yield pause
        pause = min(pause * 2, longest)


def _quoted(log: list[str]) -> str:
    """A task's last lines for an error; empty without lines."""
    of_locks = (*_WAITS_FOR_LOCK, " OK")  # of one that it got
    lines = "\n        ".join(line for line in log[-TAIL_LINES:] if line and not line.startswith(of_locks))
    return f"\n        its log: {lines}" if lines else ""


def _error_of_task(wanted: str, upid: str, status: str, log: list[str]) -> ApiError:
    error = explained(wanted, f"the task ended with: {status}{_quoted(log)}", 500, status)
    steps = [line for line in log if not line.startswith(_STATUS)]
    only_waited = bool(steps) and all(line.startswith(_WAITS_FOR_LOCK) for line in steps)
    if isinstance(error, LockHeldError) and only_waited:
        return error
    error.sent = True
    # A task that had begun its work before it lacked a lock may have changed something.
    if type(error) is ApiError or isinstance(error, LockHeldError):
        next_step = f"correct what it names, then run `pulumi up` again; all of its log: `pvenode task log {upid}`"
        return error.retold(why="Proxmox VE didn't do what the task was for", next=next_step)
    return error
