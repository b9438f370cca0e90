"""Requests about one guest to this node's API. One is sent again while nobody answers (pvedaemon restarts with each
update), and while somebody has the guest's lock. What starts or stops the guest is sent once: where its answer is lost,
the task that began meanwhile is its own.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from remote_scripts.pve import guest_tasks
from remote_scripts.pve.api import NodeApi, Refused, Unanswered
from remote_scripts.pve.guest_kinds import Kind
from remote_scripts.tools.system import System

#: How long a request is repeated, in seconds: while there is no answer, and while a lock is held.
SILENT_SECONDS, LOCK_SECONDS = 15.0, 90.0
LOCK_HELD = re.compile(r"can't lock file|got lock request timeout")
_CHANGED = re.compile(r"checksum mismatch|detected modified configuration")

#: A guest's, as the API has them.
Tasks = list[dict[str, Any]]


class ChangedMeanwhile(Refused):
    """The configuration isn't the one whose digest was given."""


class TaskFailed(Refused):
    """A task that was begun, and ended with an error."""


class GuestApi:
    """This node's API, asked about one guest.

    :param api: one for all of a run, which then makes one ticket.
    """

    def __init__(self, system: System, api: NodeApi, kind: Kind, vmid: int) -> None:
        self._system, self._api, self._kind, self._vmid = system, api, kind, vmid
        #: For how many seconds nobody need answer.
        self.patience = SILENT_SECONDS
        self._path = f"/{kind.name}/{vmid}"

    def get(self, below: str, wanted: str, **parameters: object) -> Any:
        """What it says of the guest.

        :param below: the guest's path.
        :param wanted: what it is for, for errors.
        :raises Refused: it was refused.
        :raises Unanswered: nobody answers.
        """
        return self.answer(wanted, lambda: self._api.get(f"{self._path}{below}", **parameters))

    def devices(self) -> dict[str, str]:
        """vendor:device of each function of this node, by its address; errors as of `get`."""
        found = self.answer("to see the node's devices", lambda: self._api.get("/hardware/pci"))
        return {one["id"]: f"{one['vendor'][2:]}:{one['device'][2:]}" for one in found}

    def put(self, below: str, wanted: str, **parameters: object) -> None:
        """Changes something by a digest; arguments and errors as of `get`.

        :raises ChangedMeanwhile: the digest isn't that of what is there, which may be this very change.
        """
        self.answer(wanted, lambda: self._api.put(f"{self._path}{below}", **parameters), changes=True)

    def task(
        self, kind: str, wanted: str, seconds: float, begun: Callable[[str], object], **parameters: object
    ) -> list[str]:
        """Begins a task, follows it to its end, and returns its log; errors as of `get`.

        :param kind: shutdown, stop or start.
        :param seconds: how long it may take.
        :param begun: is called with its UPID.
        :raises TaskFailed: it was begun, and failed.
        """
        failed: TaskFailed | None = None
        # `qm cleanup` may have a VM's lock for half a minute after its stop.
        for _ in self._system.work.tries(LOCK_SECONDS, f"waiting for: {wanted}"):
            upid = self._begun(kind, wanted, parameters)
            begun(upid)
            try:
                return self._followed(upid, wanted, seconds)
            except TaskFailed as error:
                failed = error
                if not LOCK_HELD.search(error.found):
                    break
        assert failed is not None
        raise failed

    def tasks(self) -> Tasks:
        """What has switched it on this node (guest_tasks.switching); errors as of `get`."""
        wanted = f"to see who has switched {self._kind.label} {self._vmid}"
        found = self.answer(wanted, lambda: guest_tasks.switching(self._api, self._kind, self._vmid))
        return list(found)

    def restarts(self) -> Tasks:
        """When this node has shut all its guests down, or started them (guest_tasks.restarts); errors as of `get`."""
        return list(self.answer("to see when this node went down", lambda: guest_tasks.restarts(self._api)))

    def _begun(self, kind: str, wanted: str, parameters: dict[str, object]) -> str:
        earlier = {task["upid"] for task in self.tasks()}

        def ask() -> object:
            try:
                return self._api.post(f"{self._path}/status/{kind}", **parameters)
            except Unanswered:
                own = (one for one in self.tasks() if one["type"] == f"{self._kind.tasks}{kind}")
                if begun := next((one["upid"] for one in own if one["upid"] not in earlier), None):
                    return begun
                raise

        return str(self.answer(wanted, ask, changes=True))

    def _followed(self, upid: str, wanted: str, seconds: float) -> list[str]:
        path, lines, status = f"/tasks/{upid}", list[str](), dict[str, Any]()
        for _ in self._system.work.tries(seconds, f"waiting for: {wanted}"):
            status = self.answer(wanted, lambda: self._api.get(f"{path}/status"))
            part = {"start": len(lines), "limit": 500}
            new = self.answer(wanted, partial(self._api.get, f"{path}/log", **part))
            for line in (texts := [one["t"] for one in new if one["t"] not in ("no content", "TASK OK")]):
                self._system.log.say(line)
            lines += texts
            if status["status"] == "stopped":
                break
        ended = str(status.get("exitstatus", f"it still runs after {seconds:g} s"))
        if not guest_tasks.is_well(ended):
            raise refusal(TaskFailed, wanted, "\n        ".join([ended, *lines[-12:]]))
        return lines

    def answer(self, wanted: str, ask: Callable[[], Any], *, changes: bool = False) -> Any:
        """What is asked for. Arguments and errors as of `get`.

        :param ask: raises Unanswered where it is to be asked again.
        :param changes: whether something may have been done without an answer.
        """
        began, found = time.monotonic(), ""
        for _ in self._system.work.tries(math.inf, f"waiting for: {wanted}"):
            try:
                return ask()
            except Unanswered as error:
                if time.monotonic() - began >= self.patience:
                    why = "whether it was done isn't known" if changes else error.why
                    raise Unanswered(wanted, error.found, why, error.next) from error
            except Refused as error:
                found = error.found
                if not LOCK_HELD.search(found) or time.monotonic() - began >= LOCK_SECONDS:
                    break
        raise refusal(ChangedMeanwhile if _CHANGED.search(found) else Refused, wanted, found)


def refusal(kind: type[Refused], wanted: str, found: str) -> Refused:
    """Proxmox VE's no to what was wanted."""
    return kind(wanted, found, "Proxmox VE didn't do it", "correct what it names, then run `pulumi up` again")
