"""The layer stack_folder: a stack's folder on a host, in which the agent lies."""

from __future__ import annotations

from typing import Any

import pytest

from remote_scripts.both.stack_folder import Wanted
from tests.agent.kit import Host, Refused

OWNER = "homelab-lab"
PLACE = f"/var/lib/homelab/agents/{OWNER}"


def ask(host: Host, owner: str = OWNER) -> Any:
    return host.ask("revert", "stack_folder", Wanted(owner=owner))


@pytest.fixture
def kept(host: Host) -> Host:
    """With the agent."""
    host.write(f"{PLACE}/agent.pyz", "the agent")
    return host


def test_the_folder_goes_with_the_stack_and_with_all_that_is_in_it(host: Host) -> None:
    before = host.lasting()
    host.write(f"{PLACE}/agent.pyz", "the agent")
    host.write(f"{PLACE}/.agent.pyz.new", "what a run that was killed left")
    for _ in "once", "more":  # the first one's answer never came
        assert ask(host) == {"changed": True} and host.lasting() == before


def test_another_stacks_folder_stays(kept: Host) -> None:
    before = kept.lasting()
    kept.write("/var/lib/homelab/agents/homelab-other/agent.pyz", "theirs")
    ask(kept, owner="homelab-other")
    assert kept.lasting() == before


@pytest.mark.parametrize("owner", ["", "..", "a/b", "."])
def test_a_name_that_leads_elsewhere_is_refused(kept: Host, owner: str) -> None:
    before = kept.lasting()
    with pytest.raises(Refused, match="the name of a stack's folder"):
        ask(kept, owner)
    assert kept.lasting() == before
