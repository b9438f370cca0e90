"""homelab/resources/work/silent_host.py: a run whose host says nothing more is ended, and no other one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from homelab import text
from homelab.errors import HomelabError, LoginRefusedError, RefusedError, UnreachableError
from homelab.remote import host_session, logins, ssh
from homelab.remote.host_session import HostSession
from homelab.resources.work import silent_host
from homelab.settings import Host
from tests.unit.hosts import KEY
from tests.waiting import PATIENCE, wait_until

SILENT = UnreachableError(wanted="an SSH connection", found="TimeoutError", why="w", next="n")
REFUSED = LoginRefusedError(wanted="to log in", found="refused", why="w", next="n")


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def host() -> Host:
    return Host.model_validate({"address": "pve", "ssh": {"hostKey": KEY, "password": "p"}, "timeouts": {"step": 100}})


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, host: Host) -> Callable[..., list[str]]:
    """What is told, and ^C for each of the engine's, until the watch ends; by the outcome of each login, the last one for ever."""

    def watch(*outcomes: HomelabError | None, before_each: Callable[[int], Any] = lambda _: None) -> list[str]:
        done: list[str] = []
        tries = [0]

        async def reach(_: Host) -> None:
            before_each(tries[0])
            outcome = outcomes[min(tries[0], len(outcomes) - 1)]
            tries[0] += 1
            if outcome is not None:
                raise outcome

        monkeypatch.setattr(logins, "reach", reach)
        monkeypatch.setattr(silent_host, "time", Clock())
        monkeypatch.setattr(silent_host, "_interrupt", lambda: done.append("^C"))
        monkeypatch.setattr(text, "_shown_by", lambda: [lambda said, **_: done.append(said)])
        silent_host.watch("pve", host)
        for thread in threading.enumerate():
            if thread.name == "watch of pve":
                thread.join()
        return done

    return watch


def test_a_host_that_nobody_can_log_in_to_for_as_long_as_a_step_may_take_ends_the_run(
    watched: Callable[..., list[str]],
) -> None:
    message, *rest = watched(SILENT)
    assert rest == ["^C", "^C"]
    assert message.startswith("wanted: pve to answer within 100 s") and "timeouts.step" in message
    assert "TimeoutError" in message and "\nnext:" in message


@pytest.mark.parametrize("answer", [None, REFUSED])
def test_a_host_that_answers_again_is_left_to_what_waits_for_it(
    watched: Callable[..., list[str]], answer: HomelabError | None
) -> None:
    assert watched(SILENT, SILENT, answer) == []


def test_while_a_resource_of_the_provider_is_at_work_its_own_limit_counts(watched: Callable[..., list[str]]) -> None:
    """As while the host restarts, or another one makes a VM: at most 300 tries of some seconds each here, and then it is back."""
    with silent_host.at_work():
        assert watched(*[SILENT] * 300, None) == []
    assert watched(*[SILENT] * 300, None) != []


def test_a_host_that_is_held_again_isnt_watched(
    watched: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watched(SILENT, before_each=lambda at: at == 5 and monkeypatch.setattr(HostSession, "is_held", True)) == []


@pytest.mark.parametrize(("ending", "told"), [("lost", ["pve"]), ("refused", [])])
def test_only_a_host_that_was_held_and_then_lost_is_watched(
    monkeypatch: pytest.MonkeyPatch, host: Host, ending: str, told: list[str]
) -> None:
    lost: list[str] = []
    let_go, session = threading.Event(), host_session.of("pve")
    monkeypatch.setattr(
        host_session,
        "on_loss",
        lambda: [lambda name, _: lost.append(f"{name}{' held' * host_session.of(name).is_held}")],
    )

    async def keep(_session: object, _layer: str, _wanted: object, on_answer: Callable[[], None], *_: object) -> None:
        if ending == "refused":
            raise RefusedError(wanted="a", found="b", why="c", next="d")
        on_answer()
        await asyncio.to_thread(let_go.wait)
        raise SILENT

    monkeypatch.setattr(ssh.Session, "keep", keep)
    if ending == "refused":
        with pytest.raises(RefusedError):
            session.hold(host)
    else:
        session.hold(host)
        assert session.is_held
    let_go.set()
    if ending == "refused":
        assert session.guard is None
    else:
        assert session.guard is not None and session.guard.ended.wait(PATIENCE)
    wait_until(lambda: lost == told)
    assert lost == told and not session.is_held
