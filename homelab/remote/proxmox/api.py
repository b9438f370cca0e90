"""The Proxmox VE API as a run uses it: requests that outlast a short outage, tasks waited for, errors for people.

What is asked again, and for how long, is decided here alone:

- a read, and what certainly wasn't carried out, while the API is away for a moment;
- a change under a digest whose answer was lost, if the digest says that nothing was changed;
- what starts a task and got no answer, if no such task is to be found on the node;
- what was refused because another process has the lock (`qm cleanup` may hold a VM's for half a minute after its stop).
"""

from __future__ import annotations

import copy
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import requests
from proxmoxer.core import ResourceException

from homelab import rights
from homelab.errors import UnreachableError, elsewhere, unlocking
from homelab.remote.proxmox.connection import Connection, connected, no_answer
from homelab.remote.proxmox.errors import (
    ApiError,
    ElsewhereError,
    ForbiddenError,
    LockHeldError,
    NoQuorumError,
    NotThereError,
    StillRunsError,
    TaskFailedError,
    UnansweredError,
    explained,
    plain,
)
from homelab.settings import Host

# For how long, in seconds, what may be repeated is: while nobody answers; while a lock is held (Proxmox VE itself waits
# ten seconds for it each time); while a cluster says that it has no quorum, which it says once more after it has it
# again.
OUTAGE_SECONDS = 15.0
LOCK_SECONDS = 90.0
QUORUM_SECONDS = 5.0
# How long to look for the task of a request whose answer was lost.
LOOK_SECONDS = 5.0
# Between two tries.
RETRY_SECONDS = (0.2, 2.0)
# Between two looks at a task: it tells nobody when it ends.
POLL_SECONDS = (0.1, 1.0)
# Of a task's log: lines that an error shows, lines that are shown while it runs, lines a request, characters a line.
TAIL_LINES = 12
SHOWN_LINES = 200
CHUNK_LINES = 500
LINE_CHARACTERS = 400
# Chunks a look: a task that writes faster than it is read must not be read for ever.
CHUNKS = 20

# Parameters that no message may show.
SECRETS = ("password", "cipassword")
_LOCKED = re.compile(r"(?:VM|CT) is locked \((?P<lock>[\w-]+)\)")
# In a name that a path is made of, these would make it another path, or add parameters.
_LEADS_ELSEWHERE = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|[?#%\\]")
_GUEST = re.compile(r"^nodes/(?P<node>[^/]+)/(?P<kind>qemu|lxc)(?:/(?P<id>\d+))?(?:/|$)")
_TAKEN = re.compile(r"(?P<kind>VM|CT) (?P<id>\d+) already exists on node '(?P<node>[^']+)'")
_NO_CONTENT = "no content"  # a task that has said nothing yet
# What pvesh says besides when it changes a VM (PVE::API2::Qemu, PVE::Tools::lock_file).
_BESIDES = ("update VM ", "trying to acquire lock", " OK")
_WAITED = ("trying to acquire lock", "trying to acquire cfs lock")


class Clock:
    """Time, as tests replace it."""

    def now(self) -> float:
        """Seconds, of which only differences mean something."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


class Api:
    """One host's API.

    `host`: the settings; `host.api` is set. `node`: the node's name in its cluster; `access`: reads the node's users
    and roles, for advice on a missing right; None: they can't be read. `patience`: seconds that an outage may last.
    `root`: carries a command out as root on the host; what it said, and its exit status.
    """

    def __init__(
        self,
        host: Host,
        node: str,
        *,
        clock: Clock | None = None,
        access: Callable[[], rights.Permissions | None] | None = None,
        patience: float = OUTAGE_SECONDS,
        root: Callable[[Sequence[str]], tuple[str, int]] | None = None,
    ) -> None:
        self.node = node
        self.host = host
        self.clock = clock or Clock()
        self._access = access
        self._patience = patience
        self._root = root
        self._followed: set[str] = set()
        self._connection: Connection = self._repeated(lambda: connected(host), repeatable=True)

    def at(self, node: str) -> Api:
        """The same for what is on another node of the cluster: any node passes requests on."""
        other = copy.copy(self)
        other.node = node
        return other

    # -- requests ------------------------------------------------------------------------------------------------
    def get(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """GET below /api2/json.

        :param wanted: says for an error what was asked for.
        :raises ApiError: it was refused, or not answered.
        """
        return self._ask("get", path, wanted, parameters, repeatable=True)

    def post(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """POST.

        :raises ApiError: it was refused, or not answered.
        """
        return self._ask("post", path, wanted, parameters)

    def put(
        self, path: str, wanted: str, /, *, repeatable: bool = False, as_root: bool = False, **parameters: Any
    ) -> Any:
        """PUT. One with a `digest` is sent again when its answer was lost and nothing has been changed.

        :param repeatable: it may be carried out twice.
        :param as_root: not by the API's user, who may not, but by root's session on the host.
        :raises ApiError: UnansweredError where it may have been carried out.
        """
        digest = parameters.get("digest")
        began = self.clock.now()
        while True:
            try:
                return self._ask("put", path, wanted, parameters, repeatable=repeatable, as_root=as_root)
            except UnansweredError:
                late = self.clock.now() - began > self._patience
                if digest is None or late or self.get(path, wanted).get("digest") != digest:
                    raise
            self.clock.sleep(RETRY_SECONDS[1])

    def delete(self, path: str, wanted: str, /, **parameters: Any) -> Any:
        """DELETE.

        :raises ApiError: it was refused, or not answered.
        """
        return self._ask("delete", path, wanted, parameters)

    def _ask(
        self,
        verb: str,
        path: str,
        wanted: str,
        parameters: Mapping[str, object],
        *,
        repeatable: bool = False,
        as_root: bool = False,
    ) -> Any:
        def ask() -> Any:
            if as_root:
                return self._set_as_root(path, wanted, parameters)
            return self._request(verb, path, wanted, parameters)

        try:
            return self._repeated(ask, repeatable=repeatable)
        except ApiError as error:
            raise self._completed(error, path) from error

    def _request(self, verb: str, path: str, wanted: str, parameters: Mapping[str, object]) -> Any:
        """One try."""
        if _LEADS_ELSEWHERE.search(path):
            raise ValueError(f"no path of the API: {path!r}")
        # The API knows 0 and 1; a Python True would be refused.
        sent = {name: int(value) if isinstance(value, bool) else value for name, value in parameters.items()}
        try:
            return getattr(self._connection.resource(path), verb)(**sent)
        except ResourceException as error:
            raise self._refused(verb, path, wanted, parameters, error) from error
        except requests.exceptions.RequestException as error:
            raise no_answer(self.host, wanted, error, reads=verb == "get") from error

    @property
    def is_roots(self) -> bool:
        """Is the API's user root@pam itself, who may do all?"""
        return bool(self.host.api and self.host.api.is_root)

    def _set_as_root(self, path: str, wanted: str, parameters: Mapping[str, object]) -> None:
        """One try, with pvesh, which is root@pam, and goes to another node by itself."""
        assert self._root is not None
        options = [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
        try:
            said, status = self._root(["pvesh", "set", f"/{path}", *options])
        except UnreachableError as error:
            raise UnansweredError(
                wanted=wanted, found=error.found, why=error.why, next=error.next, status=0, reason=error.found
            ) from error
        if status != 0:
            lines = [line for line in said.splitlines() if line.strip() and not line.startswith(_BESIDES)]
            reason = plain("\n".join(lines))
            raise explained(wanted, f"pvesh, as root, ends with {status}: {reason}", "root@pam", 500, reason)

    def _repeated(self, ask: Callable[[], Any], *, repeatable: bool) -> Any:
        """What `ask` answers, asked again where that is safe."""
        began = self.clock.now()
        pauses = _pauses(RETRY_SECONDS)
        while True:
            waited = self.clock.now() - began
            try:
                return ask()
            except UnansweredError as error:
                # A time limit that has passed once is not waited for again and again.
                waited = self.clock.now() - began
                if waited > self._patience or not (repeatable or not error.sent):
                    raise
            except LockHeldError:
                if waited > LOCK_SECONDS:
                    raise
            except NoQuorumError:
                if waited > QUORUM_SECONDS:
                    raise
            self.clock.sleep(next(pauses))

    # -- tasks ---------------------------------------------------------------------------------------------------
    def carry_out(
        self,
        verb: str,
        path: str,
        wanted: str,
        seconds: float,
        say: Callable[[str], None],
        *,
        kinds: tuple[str, ...],
        **parameters: Any,
    ) -> list[str]:
        """Starts a task and waits for it; its log's first and last lines. Once more, if it only waited for a lock in
        vain.

        :param kinds: the types of task that the request may start, by which one is found whose start wasn't answered.
        :param seconds: how long the task may take.
        :param say: gets each new line of its log.
        :raises ApiError: it was refused, failed, or still runs.
        """
        began = self.clock.now()
        pauses = _pauses(RETRY_SECONDS)
        while True:
            waited = self.clock.now() - began
            upid = self._started(verb, path, wanted, kinds, parameters, say)
            if not upid:
                return []  # it was done at once, as a resize before Proxmox VE 8
            try:
                return self.task(upid, wanted, seconds, say)
            except LockHeldError as error:
                if waited > LOCK_SECONDS:
                    raise self._completed(error, path) from error
                say("another process holds its lock: trying again")
            except ApiError as error:
                raise self._completed(error, path) from error
            self.clock.sleep(next(pauses))

    def _started(
        self,
        verb: str,
        path: str,
        wanted: str,
        kinds: tuple[str, ...],
        parameters: Mapping[str, object],
        say: Callable[[str], None],
    ) -> str | None:
        """The UPID of the task that a request has started. One that wasn't answered is sent again only if there is no
        such task."""
        began = self._connection.node_time - 2  # the clock of an answer's header goes by the second
        repeatable = verb == "put"  # a resize to a size: the same twice
        try:
            upid: str | None = self._ask(verb, path, wanted, parameters, repeatable=repeatable)
        except UnansweredError as error:
            if not error.sent:
                raise
            upid = self._lost_task(path, kinds, parameters, began)
            if upid is not None:
                say("the answer was lost on the way; its task was started")
            else:
                upid = self._ask(verb, path, wanted, parameters)
        self._followed.add(upid or "")
        return upid

    def _lost_task(
        self, path: str, kinds: tuple[str, ...], parameters: Mapping[str, object], began: float
    ) -> str | None:
        match = _GUEST.match(path)
        vmid = (match and match["id"]) or parameters.get("vmid")
        user = identity(self.host).partition("!")[0]
        deadline = self.clock.now() + LOOK_SECONDS
        while True:
            for task in self.tasks(source="all", vmid=vmid):
                ours = task.get("user") == user and task["type"] in kinds and task["upid"] not in self._followed
                if ours and task["starttime"] >= began:
                    return str(task["upid"])
            if self.clock.now() > deadline:
                return None
            self.clock.sleep(POLL_SECONDS[1])

    def tasks(self, **which: Any) -> list[dict[str, Any]]:
        """The node's tasks, the latest first: our own, or all with Sys.Audit.

        :raises ApiError: the API doesn't say.
        """
        found: list[dict[str, Any]] = self.get(f"nodes/{self.node}/tasks", "to see the node's tasks", **which)
        return sorted(found, key=lambda task: -int(task["starttime"]))

    @property
    def node_time(self) -> float:
        """What the node's clock says, in seconds since 1970; to about a second."""
        return self._connection.node_time

    def task(self, upid: str, wanted: str, seconds: float, say: Callable[[str], None]) -> list[str]:
        """Waits for a task; each new line of its log goes to `say`. Its log's first and last lines.

        :param seconds: how long to wait at most.
        :raises ApiError: it failed, or still runs; the end of its log is in the text.
        """
        path = f"nodes/{upid.split(':')[1]}/tasks/{upid}"
        deadline = self.clock.now() + seconds
        log = _Log(say, upid, self._hidden())
        for pause in _pauses(POLL_SECONDS):
            status = self.get(f"{path}/status", wanted)
            self._read_log(path, wanted, log)
            if status["status"] == "stopped":
                break
            if self.clock.now() > deadline:
                raise _still_runs(wanted, upid, seconds, log)
            self.clock.sleep(pause)
        ended = str(status.get("exitstatus", "unexpected status"))
        if ended != "OK" and not ended.startswith("WARNINGS"):
            raise self._task_failed(wanted, upid, plain(ended, self._hidden()), log)
        return log.lines

    def end_task(self, upid: str, wanted: str, seconds: float) -> bool:
        """Tells a task of ours to end, and waits for that. Has it?

        :raises ApiError: it couldn't be told, or the API doesn't say.
        """
        path = f"nodes/{upid.split(':')[1]}/tasks/{upid}"
        self.delete(path, wanted)
        deadline = self.clock.now() + seconds
        for pause in _pauses(POLL_SECONDS):
            if self.get(f"{path}/status", wanted)["status"] == "stopped":
                return True
            if self.clock.now() > deadline:
                return False
            self.clock.sleep(pause)
        return False

    def log_of_ended(self, upid: str, seconds: float) -> list[str]:
        """The log of another user's task, as `task_log`, once it has ended, or as far as it is after so many seconds.

        :raises ApiError: the API doesn't say.
        """
        deadline = self.clock.now() + seconds
        for pause in _pauses(POLL_SECONDS):
            status = self.get(f"nodes/{upid.split(':')[1]}/tasks/{upid}/status", "to see whether a task has ended")[
                "status"
            ]
            if status == "stopped" or self.clock.now() > deadline:
                break
            self.clock.sleep(pause)
        return self.task_log(upid)

    def task_log(self, upid: str) -> list[str]:
        """The log of a task that has ended: its first and last lines.

        :raises ApiError: the API doesn't say.
        """
        log = _Log(lambda _: None, upid, self._hidden())
        self._read_log(f"nodes/{upid.split(':')[1]}/tasks/{upid}", "to read a task's log", log)
        return log.lines

    def _read_log(self, path: str, wanted: str, log: _Log) -> None:
        for _ in range(CHUNKS):
            lines = [
                line["t"]
                for line in self.get(f"{path}/log", wanted, start=log.count, limit=CHUNK_LINES)
                if "t" in line and line["t"] != _NO_CONTENT
            ]
            log.add(lines)
            if len(lines) < CHUNK_LINES:
                return

    def _task_failed(self, wanted: str, upid: str, status: str, log: _Log) -> ApiError:
        found = f"the task ended with: {status}{log.quoted}"
        error = explained(wanted, found, identity(self.host), 500, status)
        # One that had begun before it lacked a lock: it isn't certain any more that nothing was done.
        begun = isinstance(error, LockHeldError) and not log.only_waited
        if begun or type(error) is ApiError:
            return TaskFailedError(
                wanted=wanted,
                found=found,
                why="what it was to do is not done",
                next=f"correct what it names, then run `pulumi up` again; all of its log: `pvenode task log {upid}`",
                status=500,
                reason=status,
            )
        return error

    # -- errors --------------------------------------------------------------------------------------------------
    def _hidden(self, parameters: Mapping[str, object] | None = None) -> list[str]:
        """What no message may show."""
        api = self.host.api
        secrets = [one.get_secret_value() for one in (api and api.token_secret, api and api.password) if one]
        return secrets + [str(value) for name, value in (parameters or {}).items() if name in SECRETS]

    def _refused(
        self, verb: str, path: str, wanted: str, parameters: Mapping[str, object], error: ResourceException
    ) -> ApiError:
        hidden = self._hidden(parameters)
        status, reason = int(error.status_code), plain(str(error.content or "").strip(), hidden)
        errors = error.errors if isinstance(error.errors, dict) else {}
        details = plain("; ".join(f"{name}: {str(text).strip()}" for name, text in errors.items()), hidden)
        found = f"{status} {reason}" + (f" ({details})" if details else "")
        made = explained(wanted, found, identity(self.host), status, reason)
        if isinstance(made, ForbiddenError) and made.path is None and verb == "post" and "vmid" in parameters:
            # The one refusal that doesn't say what is missing: to make a guest.
            made.path, made.privileges = f"/vms/{parameters['vmid']}", ("VM.Allocate",)
        return made

    def _completed(self, error: ApiError, path: str) -> ApiError:
        """The error with what only the node, asked once more, can add: who holds a lock, where a guest is, which nodes
        are missing."""
        guest = _GUEST.match(path)
        if isinstance(error, ForbiddenError):
            return self._advised(error)
        if isinstance(error, LockHeldError) and guest and guest["id"]:
            return error.retold(found=f"{error.found}; {self._holder(guest['id'])}")
        if isinstance(error, NoQuorumError):
            return error.retold(found=f"{error.found}: no quorum{self._missing_nodes()}")
        if isinstance(error, ElsewhereError) and (taken := _TAKEN.search(error.reason)) and taken["node"] != self.node:
            kind = "qemu" if taken["kind"] == "VM" else "lxc"
            return _moved(error, kind, int(taken["id"]), self.node, taken["node"])
        if guest and guest["id"] and (held := _LOCKED.search(error.reason)):
            step = f"{unlocking(guest['kind'], guest['id'], held['lock'])}; then run `pulumi up` again"
            return error.retold(next=step)
        if isinstance(error, NotThereError) and guest and guest["id"]:
            node = self._node_of(int(guest["id"]))
            if node is not None:
                return _moved(error, guest["kind"], int(guest["id"]), self.node, node)
        return error

    def _advised(self, error: ForbiddenError) -> ApiError:
        access = self._access() if self._access is not None and error.path else None
        if error.path is None:
            return error
        names = [rights.least(error.privileges)] if error.either else list(error.privileges)
        said = f" (either of {' and '.join(error.privileges)} would do)" if error.either else ""
        step = rights.advice(access, identity(self.host), {error.path: set(names)})
        return error.retold(why=error.why + said, next=step)

    def _holder(self, vmid: str) -> str:
        """What holds a guest's lock, as far as it can be seen."""
        try:
            running = self.tasks(source="active", vmid=vmid)
        except ApiError:
            running = []
        if running:
            named = ", ".join(f"{task['type']} of {task['user']} ({task['upid']})" for task in running)
            return f"the running task {named} works on it"
        return (
            f"no task of {identity(self.host)} works on it: another user's "
            f"(`pvesh get /nodes/{self.node}/tasks --source active --vmid "
            f"{vmid} --output-format json` on the host shows them), or `qm "
            "cleanup` after a stop, which takes half a minute at most"
        )

    def _missing_nodes(self) -> str:
        try:
            nodes = self.get("nodes", "to see which nodes are missing")
        except ApiError:
            return ""
        away = sorted(one["node"] for one in nodes if one.get("status") != "online")
        return f"; {', '.join(away)} of the cluster's {len(nodes)} nodes don't answer" if away else ""

    def _node_of(self, vmid: int) -> str | None:
        """The other node that a guest is on."""
        try:
            guests = self.get("cluster/resources", "to see on which node a guest is", type="vm")
        except ApiError:
            return None
        return next((str(g["node"]) for g in guests if g.get("vmid") == vmid and g["node"] != self.node), None)


def identity(host: Host) -> str:
    """Who we are to the API: `homelab@pve!pulumi` or `root@pam`."""
    assert host.api is not None
    return host.api.token or host.api.user or ""


def _moved(error: ApiError, kind: str, vmid: int, here: str, there: str) -> ElsewhereError:
    told = elsewhere(error.wanted, kind, vmid, here, there)
    made = ElsewhereError(
        wanted=told.wanted, found=told.found, why=told.why, next=told.next, status=error.status, reason=error.reason
    )
    made.node = there
    return made


def _pauses(seconds: tuple[float, float]) -> Iterator[float]:
    """Ever longer ones, without end."""
    pause, longest = seconds
    while True:
        yield pause
        pause = min(pause * 2, longest)


class _Log:
    """A task's log as it is read: shown, counted, its last lines kept."""

    def __init__(self, say: Callable[[str], None], upid: str, hidden: list[str]) -> None:
        self._say, self._upid, self._hidden = say, upid, hidden
        self.count = 0
        self._waited, self._worked = False, False
        self._head: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def add(self, lines: list[str]) -> None:
        """The next lines."""
        for line in lines:
            self.count += 1
            text = plain(line[:LINE_CHARACTERS], self._hidden)
            self.tail.append(text)
            if self.count <= SHOWN_LINES:
                self._head.append(text)
            if line.startswith("TASK "):
                continue  # it only repeats the status
            self._waited |= line.startswith(_WAITED)
            self._worked |= not line.startswith(_WAITED)
            if self.count <= SHOWN_LINES:
                self._say(text)
            elif self.count == SHOWN_LINES + 1:
                self._say(f"… and so on: `pvenode task log {self._upid}` on the host shows all of it")

    @property
    def only_waited(self) -> bool:
        """Has the task done nothing but wait for a lock?"""
        return self._waited and not self._worked

    @property
    def lines(self) -> list[str]:
        """The first and the last ones."""
        return [*self._head, *(list(self.tail)[SHOWN_LINES - self.count :] if self.count > SHOWN_LINES else [])]

    @property
    def quoted(self) -> str:
        """The last lines for an error; nothing where there are none."""
        lines = "\n        ".join(line for line in self.tail if line)
        return f"\n        its log: {lines}" if lines else ""


def _still_runs(wanted: str, upid: str, seconds: float, log: _Log) -> ApiError:
    error = StillRunsError(
        wanted=wanted,
        found=f"the task still runs after {seconds:.0f} seconds{log.quoted}",
        why="its work isn't done yet; it continues by itself",
        next=f"see `pvenode task log {upid}` on the host; when it has ended, run `pulumi up` again. A host that "
        "takes longer gets more time "
        "with hosts.<name>.timeouts.apiTask, or timeouts.create for new guests",
        status=500,
        reason="still running",
    )
    error.upid = upid
    return error
