"""This program's agent on a host: put there, found missing by a refresh, taken away with the stack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from homelab.host import stack_folder
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.remote import agent, host_session, ssh
from lab import Lab
from tests.lab.stack_kit import NODE, PROBED, host_of, stack_of

OWNER = stack_folder.owner("homelab/lab", NODE)
URN = "urn:pulumi:lab::homelab::homelab:host:Probe::pve-probe"


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("kept") / "lab") as started:
        yield started


@pytest.fixture
def texts(lab: Lab) -> dict[str, str]:
    return stack_of(lab)


def test_the_agent_is_put_found_missing_and_put_again(lab: Lab, texts: dict[str, str]) -> None:
    session, seconds = ssh.Session(host_of(lab)), 60.0

    def refreshed(version: str = agent.version()) -> int:
        host_session.of(NODE).facts = None
        inputs = HostProbe.Inputs(host=NODE, settings="", agent=version)
        return HostProbeWork(texts, URN).read(inputs, PROBED).generation["agent"]

    session.put_agent(OWNER, seconds)
    assert refreshed() == 0
    kept = lab.root / "var/lib/homelab/agents" / OWNER / "agent.pyz"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert refreshed() == 1
    session.put_agent(OWNER, seconds)
    # What another version of this program has put there is no drift: its own comes with the next `up`.
    assert refreshed() == refreshed("0" * 16) == 0


def test_a_session_sends_the_agent_to_a_host_without_it_and_asks_the_kept_one_else(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    itself = agent.itself

    def sends() -> str:
        sent.append("the agent")
        return itself()

    monkeypatch.setattr(agent, "itself", sends)

    def boot() -> str:
        return ssh.read(host_of(lab)).boot_id

    before = boot()
    assert len(sent) == 1
    ssh.Session(host_of(lab)).put_agent(OWNER, 60.0)
    assert boot() == before and len(sent) == 1


def test_what_a_killed_run_left_of_them_goes_with_the_host(lab: Lab, texts: dict[str, str]) -> None:
    home = lab.root / "var/lib/homelab"
    assert not home.exists()
    for owner in (OWNER, "homelab-other"):  # killed before the state knows of it; another stack's
        ssh.Session(host_of(lab)).put_agent(owner, 60.0)
    HostProbeWork(texts, URN).delete(HostProbe.Inputs(host=NODE, settings=""), PROBED)
    assert [path.name for path in (home / "agents").iterdir()] == ["homelab-other"]
