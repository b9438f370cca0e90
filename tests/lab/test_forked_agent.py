"""What keeps this folder's tests quick is in force: a session with a lab starts no agent there."""

from __future__ import annotations

import pytest

from homelab.remote import agent, ssh
from lab import Lab
from remote_scripts.both.card_values import Wanted as CardValuesRequest
from remote_scripts.both.read_host import Wanted as HostRequest
from tests import forked_agent
from tests.lab.stack_kit import host_of
from tests.plain import PLAIN


def test_a_session_is_answered_by_a_fork_and_starts_no_agent(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    started, command = [0], agent.command_in_memory

    def counted(user: str) -> str:
        started[0] += 1
        return command(user)

    monkeypatch.setattr(agent, "command_in_memory", counted)
    session = ssh.Session(host_of(shared_lab))
    assert session.ask("read", "read_host", HostRequest())
    assert started == [1], "it isn't counted"
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    assert (
        session.ask("read", "read_host", HostRequest())
        and len(session.plan([("card_values", CardValuesRequest())])) == 1
    )
    assert started == [3 if PLAIN else 1]
