"""homelab/remote/scripts.py: what is sent to a host."""

from __future__ import annotations

import re

import pytest

from homelab.host import stack_folder
from homelab.remote import agent, ledger, scripts
from tests.rows import rows


def test_root_runs_bash_itself_and_others_through_sudo_without_a_password() -> None:
    assert scripts.command("look", "root") == "bash -s look"
    assert scripts.command("look", "admin") == "sudo -n bash -s look"


@rows("owner", ["..", "a/b", "", ".", "a b"])
def test_the_agent_is_kept_in_a_folder_of_its_own(owner: str) -> None:
    with pytest.raises(ValueError, match="no owner of an agent"):
        agent.place(owner)


def test_each_stack_has_a_folder_of_its_own_on_each_host() -> None:
    names = [("homelab/a.b", "pve"), ("homelab/a-b", "pve"), ("homelab-a/b", "pve"), ("homelab/a.b", "two")]
    owners = [stack_folder.owner(*name) for name in names]
    assert len({*owners}) == len(owners) and all(re.fullmatch(r"[A-Za-z0-9_-]+", one) for one in owners)
    assert ledger.stack_of("urn:pulumi:a.b::homelab::homelab:host:Probe::pve-probe") == names[0][0]
