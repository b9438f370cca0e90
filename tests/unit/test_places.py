"""A VM that names a cluster as its host is found on the node that it is on now; what can't be is said before anything is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.remote.proxmox import places
from homelab.remote.proxmox.errors import UnansweredError
from homelab.resources.safety_copy import SafetyCopy
from homelab.resources.virtual_machine import VirtualMachine
from homelab.resources.vm_record import VmRecord
from homelab.settings import Settings, parse
from tests.unit.hosts import KEY

API = {"token": "homelab@pve!up", "tokenSecret": "b", "caFile": "ca.pem"}
CARD = {"gpu": {"match": "10de:2b85"}}
CREATE = {"create": {"disk": {"storage": "local", "size": 32}, "image": "local:import/a.qcow2"}}


def settings(vms: dict[str, Any], hosts: dict[str, Any] | None = None) -> Settings:
    """pve1 and pve2 have a card each, pve3 has none."""
    found = {
        name: {"address": f"192.0.2.{number}", "ssh": {"hostKey": KEY, "agent": True}, "api": API, "cluster": "home"}
        | ({"gpus": CARD} if number < 3 else {})
        for number, name in enumerate(("pve1", "pve2", "pve3"), 1)
    }
    return parse({"hosts": json.dumps({**found, **(hosts or {})}), "vms": json.dumps(vms)})


def vm(vmid: int = 103, **more: Any) -> dict[str, Any]:
    return {"host": "home", "vmid": vmid, "gpus": ["gpu"], **more}


@pytest.mark.parametrize(
    ("node", "more", "host"),
    [("pve1", {}, "pve1"), ("pve2", {}, "pve2"), (None, CREATE, "pve1"), ("pve2", CREATE, "pve2")],
    ids=["on one node", "on another", "not made yet", "made, and moved since"],
)
def test_a_vm_counts_where_it_is(node: str | None, more: dict[str, Any], host: str) -> None:
    found = places.placed(settings({"a": vm(**more)}), {"home": {103: node} if node else {}})
    assert found.vms["a"].host == host and not found.roaming


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({}, ["no such VM that this user may see"]),
        ({103: "pve3"}, ["it is on pve3, which has no such card in the settings; pve1, pve2 have", "qm migrate 103 pve1"]),
        ({103: "pve9"}, ["it is on pve9"]),
    ],
)  # fmt: skip
def test_a_vm_that_isnt_where_its_card_is_is_refused(where: dict[int, str], said: list[str]) -> None:
    with pytest.raises(HomelabError) as raised:
        places.placed(settings({"a": vm()}), {"home": where})
    assert all(one in str(raised.value) for one in said)


def test_two_vms_that_have_come_to_one_card_are_refused() -> None:
    both = settings({"a": vm(103), "b": vm(104)})
    assert {one.host for one in places.placed(both, {"home": {103: "pve1", 104: "pve2"}}).vms.values()} == {
        "pve1",
        "pve2",
    }
    with pytest.raises(HomelabError, match="one VM at a time"):
        places.placed(both, {"home": {103: "pve1", 104: "pve1"}})


def test_what_can_never_be_is_refused_without_asking() -> None:
    for vms, said in (
        ({"a": {**vm(), "host": "elsewhere"}}, "no such host; there are pve1, pve2, pve3, and the cluster home"),
        ({"a": {**vm(), "gpus": ["other"]}}, "no host of the cluster home has an api and the card other"),
    ):
        with pytest.raises(HomelabError) as raised:
            settings(vms)
        assert said in str(raised.value)


def test_the_first_node_that_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class OneThatAnswers:
        def __init__(self, host: Any, node: str, **_: Any) -> None:
            asked.append(node)
            if node == "pve1":
                raise UnansweredError(wanted="", found="off", why="", next="", status=0, reason="")

        def get(self, *_: Any, **which: Any) -> list[dict[str, Any]]:
            return [{"vmid": 103, "node": "pve2"}]

    monkeypatch.setattr(places, "Api", OneThatAnswers)
    monkeypatch.setattr(places, "_FOUND", {})
    for _ in range(2):
        assert places.located(settings({"a": vm()})).vms["a"].host == "pve2"
    assert asked == ["pve1", "pve2"]
    pinned = settings({"a": {**vm(), "host": "pve1"}})
    assert places.located(pinned) is pinned


@pytest.mark.parametrize("resource", [VmRecord, VirtualMachine, SafetyCopy])
def test_a_vm_that_moves_within_its_cluster_is_made_anew_nowhere(resource: Any) -> None:
    in_cluster = {"cluster": "home"}
    assert resource.replacing(in_cluster, {"host", "node", "boot"}) == set()
    assert resource.replacing(in_cluster, {"host", "node", "vmid"}) == {"host", "node", "vmid"}
    assert resource.replacing(in_cluster, {"host", "node", "cluster"}) == {"host", "node"}
    assert resource.replacing({}, {"host"}) == {"host"}
