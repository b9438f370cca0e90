"""A run that is killed right after one of its changes: nobody knows of that change, and the next run goes on.

What it only reads doesn't count: to be killed after that is to be killed after the change before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from homelab.remote.proxmox.api import Api
from homelab.remote.ssh import Session

T = TypeVar("T")
# More changes than any act makes.
MOST = 30


class KilledError(BaseException):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """After that many changes, by requests to the API and by scripts on the host, the next one is its last."""
    left, asked, ran = [number], Api._request, Session._run

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
        if verb != "get":
            count()
        return answer

    monkeypatch.setattr(Api, "_request", request)
    monkeypatch.setattr(Session, "_run", run)


def until_done(monkeypatch: pytest.MonkeyPatch, act: Callable[[], T]) -> T:
    """Killed after its first change, the next one after its second, and so on: each change is once the last that a run has made."""
    for number in range(MOST):
        with monkeypatch.context() as once:
            killed_after(once, number)
            try:
                done = act()
            except KilledError:
                continue
            assert number, "it makes no change"
            return done
    raise AssertionError(f"not done after {MOST} changes")
