"""What other nodes have noted of a guest: who is asked, and what is forgotten there."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from homelab.errors import HomelabError, UnreachableError
from homelab.provider import peers
from homelab.provider.base import StackTexts
from homelab.remote import ledger, ssh
from homelab.remote.proxmox import places
from homelab.settings import Host
from tests.unit.test_moved_containers import CLUSTER, Nodes

ALONE = {**CLUSTER["pve1"], "address": "192.0.2.9", "cluster": None}
STACK = StackTexts(
    {
        "hosts": json.dumps({**CLUSTER, "pve8": {**ALONE, "address": "192.0.2.8", "node": "pve"}, "pve9": ALONE}),
        "allowPlainSecrets": "true",
    }
)


@pytest.mark.parametrize(
    ("host", "node", "found"),
    [
        ("pve1", "pve1", "pve1"),
        ("pve1", "pve3", "pve3"),
        ("pve1", "pve9", None),  # of no cluster
        ("pve8", "pve", "pve8"),
        ("pve8", "pve8", None),  # its node has another name
        ("gone", "pve1", None),
        ("gone", "gone", None),
    ],
)
def test_a_node_is_the_host_of_the_same_cluster_that_has_its_name(host: str, node: str, found: str | None) -> None:
    assert STACK.name_at(host, node) == found


def test_a_guest_that_names_the_cluster_is_its_hosts_where_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "seen", lambda _: {"b": "pve2"})
    monkeypatch.setattr(places, "located", lambda settings: settings.with_hosts({"d": "pve2"}))
    containers = {"a": {"host": "pve1", "ctid": 901, "gpus": []}, "b": {"host": "home", "ctid": 902, "gpus": []}}
    vms = {"c": {"host": "pve1", "vmid": 103}, "d": {"host": "home", "vmid": 104}}
    stack = StackTexts({**STACK.texts, "containers": json.dumps(containers), "vms": json.dumps(vms)})
    hosts = ("pve1", "pve2", "pve3")
    assert [[*stack.containers(host)] for host in hosts] == [["a"], ["b"], []]
    assert [[*stack.vms(host)] for host in hosts] == [["c"], ["d"], []]
    assert [stack.may_host_roaming(stack.host(host)) for host in ("pve1", "pve9")] == [True, False]
    assert not StackTexts({**STACK.texts, "vms": json.dumps(vms)}).may_host_roaming(stack.host("pve1"))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any] | None]:
    """Host -> what it has noted; one that isn't among them doesn't answer."""
    by_host: dict[str, dict[str, Any] | None] = {"pve1": {"guest": "a"}, "pve2": None, "pve3": None, "pve9": {}}

    def connect(host: Host) -> str:
        name = f"pve{host.address[-1]}"
        if name not in by_host:
            raise UnreachableError(wanted="an SSH connection", found="off", why="w", next="n")
        return name

    def noted(session: str, _name: str) -> dict[str, Any] | None:
        return by_host[session]

    def forget(session: str, _name: str) -> None:
        by_host[session] = {"forgotten": True}

    monkeypatch.setattr(ssh, "Session", connect)
    monkeypatch.setattr(ledger, "noted", noted)
    monkeypatch.setattr(ledger, "forget", forget)
    return by_host


def asked(host: str) -> dict[str, Any]:
    return ledger.noted(ssh.Session(STACK.host(host)), "mapping/pve1/card") or {}  # type: ignore[return-value]


def test_nodes_of_the_cluster_are_asked_and_no_other(notes: dict[str, Any]) -> None:
    notes |= {"pve2": {"guest": "a"}, "pve9": {"guest": "a"}}
    found = peers.ask_peers(STACK, "pve1", asked)
    assert (found.by_host, found.errors) == ({"pve2": {"guest": "a"}}, {})
    found.require_all("VM 103", "")
    del notes["pve3"]
    found = peers.ask_peers(STACK, "pve1", asked)
    assert (found.by_host, found.errors) == ({"pve2": {"guest": "a"}}, {"pve3": "off"})
    with pytest.raises(HomelabError, match="to know what pve3 noted about VM 103"):
        found.require_all("VM 103", "")


def test_nodes_are_asked_side_by_side() -> None:
    """A dead one costs the time of a connection, for the others together."""
    all_are_asked = threading.Barrier(2, timeout=60)
    found = peers.ask_peers(STACK, "pve1", lambda _: {"place": all_are_asked.wait()})
    assert sorted(found.by_host) == ["pve2", "pve3"]


def test_a_host_of_no_cluster_asks_nobody(notes: dict[str, Any]) -> None:
    found = peers.ask_peers(STACK, "pve9", asked)
    assert (found.by_host, found.errors) == ({}, {}) and STACK.peers("gone") == []


def test_what_has_been_given_back_is_forgotten(notes: dict[str, Any]) -> None:
    peers.forget_notes(STACK.host("pve1"), ["mapping/pve1/card"])
    assert notes["pve1"] == {"forgotten": True}


def test_a_container_of_which_nothing_is_noted_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "Session", Nodes(pve1="NOTED", pve2="").connect)
    assert peers.container_record_of(STACK, "pve1", 901) == {"record": "NOTED"}
    assert peers.container_record_of(STACK, "pve2", 901) == {}
