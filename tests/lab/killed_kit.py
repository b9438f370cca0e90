"""A run that is killed right after one of its changes: nobody knows of that change, and the next run goes on.

What it only reads doesn't count: to be killed after that is to be killed after the change before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.machine import Machine
from homelab.remote.ssh import Session

T = TypeVar("T")
# More changes than any act makes.
MOST = 30


class KilledError(BaseException):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """After that many changes, by requests to the API and by scripts on the host, the next one is its last.

    A VM's shutdown and the note that it was this run's are one change. A run that is killed between the two leaves the VM off: nobody
    can know whether its owner has shut it down in the same moment. test_taken_over.py has a test of that moment.
    """
    left, asked, ran, noted = [number], Api._request, Session._run, Machine._note_task

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    def run(session: Session, command: str, verb: str, *about: Any, **more: Any) -> str:
        output = ran(session, command, verb, *about, **more)
        if verb.split()[0] == "apply":
            count()
        return output

    def request(api: Api, verb: str, path: str, *about: Any) -> Any:
        answer = asked(api, verb, path, *about)
        if verb != "get" and not ("/qemu/" in path and path.endswith("/status/shutdown")):
            count()
        return answer

    def note_task(machine: Machine, upid: str) -> None:
        before = left[0]
        noted(machine, upid)
        if left[0] == before:  # it isn't to run again, so there is no note
            count()

    monkeypatch.setattr(Api, "_request", request)
    monkeypatch.setattr(Session, "_run", run)
    monkeypatch.setattr(Machine, "_note_task", note_task)


def until_done(monkeypatch: pytest.MonkeyPatch, act: Callable[[], T]) -> T:
    """Killed after its first change, the next one after its second, and so on: each change is once the last that a run has made."""
    for number in range(MOST):
        with monkeypatch.context() as once:
            killed_after(once, number)
            try:
                return act()
            except KilledError:
                continue
    raise AssertionError(f"not done after {MOST} changes")
