"""Tasks: work that goes on after its request was answered, known by a UPID, with a log, below /var/log/pve/tasks.

A task's work is a generator: what it yields are seconds to wait, so that the daemon serves on meanwhile; what it
raises as `Died` is the task's exit status. As on a real node the log ends with `TASK OK` or `TASK ERROR: ...`, the
finished ones are listed in `index`, those that run in `active`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from lab.host.state import HostState, append_line

from .auth import ROOT
from .errors import ApiError, bad_parameters
from .guest_config import Kind
from .guests import LOCKS

_FOLDER = "/var/log/pve/tasks"
_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9-]+):(?P<pid>[0-9A-F]{8}):(?P<pstart>[0-9A-F]{8,9}):(?P<start>[0-9A-F]{8}):"
    r"(?P<type>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)
#: How long a task takes at least, besides what its work waits for: forking a worker, its start, its end.
LEAST_SECONDS = 0.05
# How long the index may be until it is index.1, of about a thousand tasks, and the index.1 before it is gone.
_INDEX_BYTES = 50_000
# How long a task that waits is deaf.
_PIECE_SECONDS = 0.2
# What guests' tasks' types begin with.
_KINDS: dict[str, Kind] = {"qm": "qemu", "vz": "lxc"}
# How often a task asks for its guest's lock, and for how long.
_TURN_SECONDS, _LOCK_SECONDS = 0.05, 10.0

Work = Generator[float, None, None]


@dataclass(frozen=True)
class Upid:
    """What a UPID says: node, process, its start in clock ticks, start in seconds since 1970, what it does, for whom."""

    text: str
    node: str
    pid: int
    pstart: int
    start: int
    type: str
    id: str
    user: str

    @classmethod
    def parse(cls, text: str) -> Upid:
        """Take a UPID apart.

        Raises:
            ApiError: 400, it is none.
        """
        match = _UPID.fullmatch(text)
        if match is None:
            raise bad_parameters({"upid": "unable to parse worker upid"})
        pid, pstart, start = (int(match[name], 16) for name in ("pid", "pstart", "start"))
        return cls(text, match["node"], pid, pstart, start, match["type"], match["id"], match["user"])

    def described(self) -> dict[str, Any]:
        """The fields that every answer about a task has."""
        return {
            "id": self.id, "node": self.node, "pid": self.pid, "pstart": self.pstart, "starttime": self.start,
            "type": self.type, "upid": self.text, "user": self.user,
        }  # fmt: skip


class TaskLog:
    """One task's log, while it runs."""

    def __init__(self, host: HostState, upid: Upid) -> None:
        self._path = host.rooted(f"{_FOLDER}/{_place(upid)}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o640)

    def __call__(self, text: str) -> None:
        """Add a message, of one line or several."""
        append_line(self._path, text)


class Tasks:
    """The tasks of a host.

    Args:
        host: whose they are.
    """

    def __init__(self, host: HostState) -> None:
        self._host = host

    def begin(self, kind: str, identifier: str, user: str = ROOT) -> tuple[Upid, TaskLog]:
        """Register a new task as running."""
        ticks = int(self._host.uptime() * 100)
        pid = secrets.randbelow(0x3F0000) + 0x400
        text = f"UPID:{self._host.node}:{pid:08X}:{ticks:08X}:{self._host.clock():08X}:{kind}:{identifier}:{user}:"
        upid = Upid.parse(text)
        log = TaskLog(self._host, upid)
        # In `active` a line is `UPID SAVED`; a worker is a process as well.
        self._host.write(f"/proc/{pid}/stat", f"{pid} (task {text[:10]}) S{' 0' * 18} {ticks} 0\n")
        append_line(self._host.rooted(f"{_FOLDER}/active"), f"{text} 0")
        return upid, log

    def follow(self, upid: Upid, log: TaskLog, work: Work) -> Work:
        """The whole course of a task: yields the seconds to wait, does the work, ends the log."""
        status = self._host.fault("task-fails")
        try:
            yield from self._in_turn(upid)
            yield from self._waited(upid, LEAST_SECONDS + float(self._host.fault("task-seconds") or 0))
            if status and str(status).partition("=")[0] == upid.type:
                raise ApiError(500, (str(status).partition("=")[2] or "the lab's fault task-fails") + "\n")
            for seconds in work:
                yield from self._waited(upid, seconds)
        except ApiError as error:
            self.end(upid, log, error.text)
        except GeneratorExit:
            if not self._host.fault("power-cut"):
                self.end(upid, log, "received interrupt")
            raise
        except Exception as error:
            self.end(upid, log, f"{type(error).__name__}: {error}")
            raise
        else:
            self.end(upid, log)

    def _in_turn(self, upid: Upid) -> Work:
        """A guest's tasks have its lock over all of their time (PVE::AbstractConfig, lock_config)."""
        earlier, waited = self.running()[: self.running().index(upid)], 0.0
        kind = _KINDS.get(upid.type[:2])
        while kind and any(one.id == upid.id for one in earlier if one in self.running()):
            if (waited := waited + _TURN_SECONDS) > _LOCK_SECONDS:
                raise ApiError(500, f"can't lock file '{LOCKS[kind].format(upid.id)}' - got timeout\n")
            yield from self._waited(upid, _TURN_SECONDS)

    def _waited(self, upid: Upid, seconds: float) -> Work:
        """The seconds, in pieces between which the task can be told to end."""
        while seconds > 0:
            yield min(seconds, _PIECE_SECONDS)
            seconds -= _PIECE_SECONDS
            if upid.text in self._host.read(f"{_FOLDER}/interrupted", "").splitlines():
                raise ApiError(500, "received interrupt\n")

    def interrupt(self, upid: Upid) -> None:
        """Tell a task to end. One that has ended already isn't told."""
        if upid in self.running():
            append_line(self._host.rooted(f"{_FOLDER}/interrupted"), upid.text)

    def end(self, upid: Upid, log: TaskLog, failed: str = "") -> None:
        """End a task, one that failed with the text of its error."""
        status = failed.removesuffix("\n").replace("\n", " ") or "OK"
        log("TASK OK" if status == "OK" else f"TASK ERROR: {status}")
        self._archive(upid, status)

    def _archive(self, upid: Upid, status: str) -> None:
        index = self._host.rooted(f"{_FOLDER}/index")
        append_line(index, f"{upid.text} {self._host.clock():08X} {status}")
        if index.stat().st_size > _INDEX_BYTES:
            index.rename(f"{index}.1")
        self._host.remove_tree(f"/proc/{upid.pid}")
        self._host.write(f"{_FOLDER}/active", "".join(f"{one.text} 0\n" for one in self.running() if one != upid))

    def end_all(self) -> None:
        """Archive those that ran when the host went down: none of them does (PVE::RESTEnvironment::active_workers)."""
        for upid in self.running():
            self._archive(upid, self._said(upid))

    # -- what is asked -----------------------------------------------------------------------------------
    def find(self, text: str) -> Upid:
        """A task that there is.

        Raises:
            ApiError: 400, no UPID, or none of a task here.
        """
        upid = Upid.parse(text)
        if not self.has_log(upid):
            raise bad_parameters({"upid": "no such task"})
        return upid

    def has_log(self, upid: Upid) -> bool:
        """Whether there was such a task here."""
        return self._host.rooted(f"{_FOLDER}/{_place(upid)}").exists()

    def running(self) -> list[Upid]:
        """The tasks that run."""
        return [Upid.parse(line.partition(" ")[0]) for line in self._host.read(f"{_FOLDER}/active", "").splitlines()]

    def status(self, upid: Upid) -> dict[str, Any]:
        """A task's state, with its exit status once it has one."""
        if upid in self.running():
            return {**upid.described(), "status": "running"}
        return {**upid.described(), "status": "stopped", "exitstatus": self._said(upid)}

    def _said(self, upid: Upid) -> str:
        """What a task's log ends with."""
        last = (self.log(upid) or [""])[-1]
        if not last.startswith("TASK "):
            return "unexpected status"
        return "OK" if last == "TASK OK" else last.removeprefix("TASK ERROR: ")

    def log(self, upid: Upid) -> list[str]:
        """A task's log, line by line."""
        return self._host.read(f"{_FOLDER}/{_place(upid)}").split("\n")[:-1]

    def finished(self) -> list[dict[str, Any]]:
        """The tasks that have ended, as far as the two index files go back: the one that ended last first."""
        found = []
        for line in "".join(self._host.read(f"{_FOLDER}/{name}", "") for name in ("index.1", "index")).splitlines():
            text, ended, status = line.split(" ", 2)
            found.append({**Upid.parse(text).described(), "endtime": int(ended, 16), "status": status})
        return found[::-1]


def _place(upid: Upid) -> str:
    """The log's place below the folder: a real node spreads them by the last digit of the start."""
    return f"{upid.start & 0xF:X}/{upid.text}"


#: How an operation starts its task: type, id, and what makes the work from the log; returns the UPID.
Starter = Callable[[str, str, Callable[[TaskLog], Work]], str]
