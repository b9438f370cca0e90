"""This program's agent on a host: put there, found missing by a refresh, taken away with the stack."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from homelab.provider.host_probe import HostProbeWork
from homelab.provider.kept_agent import KeptAgentWork
from homelab.remote import agent, host_session, ssh, stack_folder
from homelab.resources.host_probe import HostProbe
from homelab.resources.kept_agent import KeptAgent
from lab import Lab
from tests.lab.test_proxmox_api import host_of

NODE = "pve"
OWNER = stack_folder.owner("homelab", "lab", NODE)
URN = "urn:pulumi:lab::homelab::homelab:host:Probe::pve-probe"
PROBED = HostProbe.Outputs(iommu_words="", vfio_words="", functions={}, by_hand=[], gpus={}, generation={}, stale=False)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("kept") / "lab") as started:
        yield started


@pytest.fixture
def texts(lab: Lab) -> dict[str, str]:
    host = host_of(lab).model_dump(mode="json", by_alias=True)
    return {"hosts": json.dumps({NODE: host})}


def test_the_agent_is_put_found_missing_and_put_again(
    lab: Lab, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = lab.root / "var/lib/homelab"
    assert not home.exists()
    work = KeptAgentWork(texts)
    inputs = KeptAgent.Inputs(host=NODE, owner=OWNER, version=agent.version(), reached="")
    outputs = work.create(inputs)
    assert home.exists()

    def refreshed(inputs: KeptAgent.Inputs) -> list[str]:
        host_session.of(NODE).facts = None
        return work.read(inputs, outputs).drift

    assert refreshed(inputs) == []
    agents = home / "agents" / OWNER / "agent.pyz"
    agents.write_bytes(agents.read_bytes()[:-1])
    assert refreshed(inputs) == ["this program's agent is missing on the host, or changed"]
    # What another version of this program has put there is no drift: its own comes with the next `up`.
    older = KeptAgent.Inputs(host=NODE, owner=OWNER, version="0" * 16, reached="")
    assert refreshed(older) == []
    outputs = work.update(inputs, inputs, outputs)
    assert refreshed(inputs) == []

    work.delete(inputs, outputs)  # the component's command takes them away
    assert refreshed(inputs) == []


def test_a_session_sends_the_agent_to_a_host_without_it_and_asks_the_kept_one_else(
    lab: Lab, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
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
    KeptAgentWork(texts).create(KeptAgent.Inputs(host=NODE, owner=OWNER, version=agent.version(), reached=""))
    sent.clear()  # it may have held the host first
    assert boot() == before and not sent


def test_what_a_killed_run_left_of_them_goes_with_the_host(lab: Lab, texts: dict[str, str]) -> None:
    home = lab.root / "var/lib/homelab"
    assert not home.exists()
    inputs = KeptAgent.Inputs(host=NODE, owner=OWNER, version=agent.version(), reached="")
    KeptAgentWork(texts).create(inputs)  # killed before the state knows of it
    theirs = KeptAgent.Inputs(host=NODE, owner="homelab-other", version=agent.version(), reached="")
    KeptAgentWork(texts).create(theirs)
    HostProbeWork(texts, URN).delete(HostProbe.Inputs(host=NODE, settings=""), PROBED)
    assert [path.name for path in (home / "agents").iterdir()] == ["homelab-other"]
