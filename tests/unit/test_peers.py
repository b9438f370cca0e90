"""Which hosts of the settings are nodes of one cluster, whose guests are whose, and what is forgotten on a host."""

from __future__ import annotations

import json

import pytest

from homelab.provider import peers
from homelab.provider.base import StackTexts
from homelab.remote import ledger, ssh
from homelab.remote.proxmox import places
from tests.unit.test_moved_containers import CLUSTER

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


def test_what_has_been_given_back_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[tuple[str, str]] = []
    monkeypatch.setattr(ssh, "Session", lambda host: host.address)
    monkeypatch.setattr(ledger, "forget", lambda session, name: forgotten.append((session, name)))
    peers.forget_notes(STACK.host("pve1"), ["mapping/pve1/card"])
    assert forgotten == [("192.0.2.1", "mapping/pve1/card")] and STACK.peers("gone") == []
