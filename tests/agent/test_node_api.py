"""What is asked of this node's API: how long a ticket may take, and what an error says where no answer comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from remote_scripts.guests import requests
from remote_scripts.guests.requests import GuestApi
from remote_scripts.pve import api, guests
from remote_scripts.pve.api import NodeApi, Unanswered
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools.done import ASK_SECONDS, TIMED_OUT, Done
from remote_scripts.tools.run import Run
from remote_scripts.tools.state import limit_of
from remote_scripts.tools.system import System
from tests.agent import api_kit
from tests.agent.kit import Host


@pytest.mark.parametrize(
    ("limit", "least", "most"),
    [(0, 120, 120), (limit_of(10), 120, 120), (limit_of(3600), 700, 721)],
    ids=["without a limit", "of a short look", "of a step"],
)
def test_a_ticket_may_take_as_long_as_the_settings_give_the_step(
    host: Host, monkeypatch: pytest.MonkeyPatch, limit: float, least: float, most: float
) -> None:
    """On a slow host Perl takes a minute to make one."""
    seconds = []

    def ask(_run: Run, *_words: str, **options: Any) -> Done:
        seconds.append(options["seconds"])
        return Done(TIMED_OUT, b"")

    api_kit.runs(host, {}, {})
    system = System(host.root, limit=limit, programs=host.programs)
    monkeypatch.setattr(Run, "ask", ask)
    with pytest.raises(Unanswered) as raised:
        NodeApi(system).get("/lxc")
    assert len(seconds) == 1 and least <= seconds[0] <= most
    assert raised.value.found == "no ticket of root@pam is made: no answer in time"


def test_a_slow_pct_is_waited_for_as_a_whole(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes half a minute never answers who asks it again every 20 s."""

    def ask(_run: Run, *_words: str, seconds: float = ASK_SECONDS) -> Done:
        return Done(0, b"status: running\n") if seconds > 50 else Done(TIMED_OUT, b"")

    monkeypatch.setattr(Run, "ask", ask)
    assert guests.power_of(host.system(), "pct", "300") == "on"


@pytest.mark.parametrize(
    ("ask", "is_change"),
    [
        (lambda guest: guest.get("/config", "to read it"), False),
        (lambda guest: guest.devices(), False),
        (lambda guest: guest.tasks(), False),
        (lambda guest: guest.put("/config", "to change it", cores=2), True),
        (lambda guest: guest.task("start", "to start it", 1, lambda _: None), False),  # first it reads tasks
    ],
)
def test_a_ticket_that_isnt_made_is_no_fault_of_pvedaemon_and_a_read_changes_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, ask: Callable[[GuestApi], object], is_change: bool
) -> None:
    monkeypatch.setattr(requests, "SILENT_SECONDS", 0.0)
    api_kit.runs(host, {}, {})
    host.programs["perl"] = lambda _words, _stdin: Done(2, b"", b"no quorum!\n")
    with pytest.raises(Unanswered) as raised:
        ask(GuestApi(host.system(), NodeApi(host.system()), CONTAINER, 300))
    error = raised.value
    assert error.found == "no ticket of root@pam is made: no quorum!"
    assert "pvedaemon" not in error.next and "systemctl status pve-cluster" in error.next
    assert ("was done" in error.why) is is_change


def test_what_pvedaemon_doesnt_answer_names_pvedaemon(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object) -> bytes:
        raise ConnectionRefusedError(111, "Connection refused")

    api_kit.runs(host, {}, {})
    monkeypatch.setattr(api, "exchange", refuses)
    with pytest.raises(Unanswered) as raised:
        NodeApi(host.system()).get("/lxc")
    assert raised.value.found == "Connection refused" and "systemctl status pvedaemon" in raised.value.next
