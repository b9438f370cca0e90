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


def killed_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """After that many changes, by requests to the API and by scripts on the host, the next one is its last. Returns what is changed, as it comes."""
    asked, ran, changed = Api._request, Session._run, list[str]()

    def counted(done: T, what: str) -> T:
        changed.append(what)
        if len(changed) > number:
            raise KilledError
        return done

    def run(session: Session, command: str, verb: str, *about: Any, **more: Any) -> str:
        output = ran(session, command, verb, *about, **more)
        return counted(output, verb) if verb.split()[0] == "apply" else output

    def request(api: Api, verb: str, path: str, *about: Any) -> Any:
        answer = asked(api, verb, path, *about)
        return answer if verb == "get" else counted(answer, f"{verb} {path}")

    monkeypatch.setattr(Api, "_request", request)
    monkeypatch.setattr(Session, "_run", run)
    return changed


def was_shutting_down(changed: list[str]) -> bool:
    """Whether the last change of a killed run was a VM's shutdown, which it could note no more: its owner may have shut it down in the same moment, and starts it."""
    return changed[-1].endswith("/status/shutdown")


def until_done(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], T], owner_starts: Callable[[], object] = lambda: None
) -> T:
    """Killed after its first change, the next one after its second, and so on: each change is once the last that a run has made.

    ``owner_starts``: the VM, where nobody can know whether its owner has shut it down.
    """
    for number in range(MOST):
        with monkeypatch.context() as once:
            changed = killed_after(once, number)
            try:
                return act()
            except KilledError:
                pass
        if was_shutting_down(changed):
            owner_starts()
    raise AssertionError(f"not done after {MOST} changes")
