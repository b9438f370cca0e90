"""A guest that names a cluster as its host is found on the node that it is on now; what can't be is said before anything is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.remote.proxmox import places
from homelab.remote.proxmox.errors import UnansweredError
from homelab.resources.container_probe import ContainerProbe
from homelab.resources.guest import Guest
from homelab.resources.vm_cards import VmCards
from homelab.settings import Settings, parse
from tests.unit.hosts import KEY

CARD = {"gpu": {"match": "10de:2b85"}}
CREATE = {"create": {"scsi0": "local:0,import-from=local:import/a.qcow2"}}


def settings(vms: dict[str, Any], containers: dict[str, Any] | None = None, use: str = "vm") -> Settings:
    """pve1 and pve2 have a card each, pve3 has none."""
    found = {
        name: {"address": f"192.0.2.{number}", "ssh": {"hostKey": KEY, "agent": True}, "cluster": "home"}
        | ({"gpus": {"gpu": {**CARD["gpu"], "use": use}}} if number < 3 else {})
        for number, name in enumerate(("pve1", "pve2", "pve3"), 1)
    }
    return parse({"hosts": json.dumps(found), "vms": json.dumps(vms), "containers": json.dumps(containers or {})})


def sharing(**more: Any) -> Settings:
    """Container 901, by the cluster's name."""
    return settings({}, {"ai": {"host": "home", "ctid": 901, "gpus": ["gpu"], **more}}, "lxc")


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
        ({}, ["no such guest"]),
        ({103: "pve3"}, ["on a node that has gpu", "it is on pve3, which has no such card in the settings; pve1, pve2 have", "`qm migrate 103 pve1`"]),
        ({103: "pve9"}, ["it is on pve9"]),
    ],
)  # fmt: skip
def test_a_vm_that_isnt_where_its_card_is_is_refused(where: dict[int, str], said: list[str]) -> None:
    with pytest.raises(HomelabError) as raised:
        places.placed(settings({"a": vm()}), {"home": where})
    assert all(one in str(raised.value) for one in said)


def test_a_node_may_have_another_name_than_its_host_in_the_settings() -> None:
    by_hosts = settings({"a": vm()})
    hosts = {name: host.model_copy(update={"node": f"node-of-{name}"}) for name, host in by_hosts.hosts.items()}
    by_nodes = by_hosts.model_copy(update={"hosts": hosts})
    assert places.placed(by_nodes, {"home": {103: "node-of-pve2"}}).vms["a"].host == "pve2"
    with pytest.raises(HomelabError, match="`qm migrate 103 node-of-pve1`"):
        places.placed(by_nodes, {"home": {103: "node-of-pve3"}})


MADE = {"create": {"ostemplate": "local:vztmpl/a.tar.zst"}}


@pytest.mark.parametrize(
    ("node", "more", "host"),
    [("pve1", {}, "pve1"), ("pve2", {}, "pve2"), (None, MADE, "pve1"), ("pve2", MADE, "pve2")],
    ids=["on one node", "on another", "not made yet", "made, and moved since"],
)
def test_a_container_counts_where_it_is(node: str | None, more: dict[str, Any], host: str) -> None:
    found = places.placed(sharing(**more), {"home": {901: node} if node else {}})
    assert found.containers["ai"].host == host and not found.roaming
    assert found.named_by("ai", host) == "home" and found.named_by("other", "pve3") == "pve3"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({}, ["container 901, to be adopted as containers.ai", "no such guest"]),
        ({901: "pve3"}, ["it is on pve3, which has no such card in the settings; pve1, pve2 have", "`pct migrate 901 pve1`"]),
    ],
)  # fmt: skip
def test_a_container_that_isnt_where_its_card_is_is_refused(where: dict[int, str], said: list[str]) -> None:
    with pytest.raises(HomelabError) as raised:
        places.placed(sharing(), {"home": where})
    assert all(one in str(raised.value) for one in said)


def test_guests_of_a_host_are_found_without_their_cards_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_cached_nodes", lambda *_: {901: "pve3"})
    assert places.seen(sharing()) == places.seen(sharing(**MADE)) == {"ai": "pve3"}
    monkeypatch.setattr(places, "_cached_nodes", lambda *_: {901: "pve9"})
    assert places.seen(sharing()) == {}
    monkeypatch.setattr(places, "_cached_nodes", lambda *_: {})
    assert places.seen(sharing()) == {} and places.seen(sharing(**MADE)) == {"ai": "pve1"}


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
        ({"a": {**vm(), "gpus": ["other"]}}, "no host of the cluster home has the card other"),
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

        def get(self, path: str, _wanted: str, **which: Any) -> list[dict[str, Any]]:
            assert (path, which) == ("cluster/resources", {"type": "vm"})
            return [{"vmid": 103, "node": "pve2"}]

    monkeypatch.setattr(places, "Api", OneThatAnswers)
    monkeypatch.setattr(places, "_NODES_OF_GUESTS", {})
    for _ in range(2):
        assert places.located(settings({"a": vm()})).vms["a"].host == "pve2"
    assert asked == ["pve1", "pve2"]
    pinned = settings({"a": {**vm(), "host": "pve1"}})
    assert places.located(pinned) is pinned


def test_where_no_node_answers_each_is_named_and_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_host: Any, node: str, **_: Any) -> None:
        raise UnansweredError(wanted="", found=f"{node} is off", why="", next="", status=0, reason="")

    monkeypatch.setattr(places, "Api", silent)
    monkeypatch.setattr(places, "_NODES_OF_GUESTS", {})
    with pytest.raises(HomelabError, match="pve1: pve1 is off; pve2: pve2 is off; pve3: pve3 is off"):
        places.located(settings({"a": vm()}))


@pytest.mark.parametrize("resource", [VmCards, ContainerProbe, Guest])
def test_a_guest_that_moves_within_its_cluster_is_made_anew_nowhere(resource: Any) -> None:
    in_cluster, where = {"cluster": "home"}, {"host", "node"} & resource.replaced_by
    assert resource.replacing(in_cluster, dict.fromkeys(("host", "node", "boot"))) == set()
    id_of = next(iter({"vmid", "ctid"} & resource.replaced_by))
    assert resource.replacing(in_cluster, dict.fromkeys(("host", "node", id_of))) == {*where, id_of}
    assert resource.replacing(in_cluster, dict.fromkeys(("host", "node", "cluster"))) == where
    assert resource.replacing({}, {"host": None}) == {"host"}


def test_a_container_that_has_a_card_in_turn_names_its_host() -> None:
    """What hands the card over is set up on that host."""
    with pytest.raises(HomelabError, match=r"containers\.ai\.host: home is a cluster, and gpu is shared"):
        parse(
            {
                "hosts": json.dumps(
                    {
                        "pve1": {
                            **{"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}},
                            **{"cluster": "home", "nvidia": {"driver": "580"}},
                            "gpus": {"gpu": {**CARD["gpu"], "use": "shared"}},
                        }
                    }
                ),
                "containers": json.dumps({"ai": {"host": "home", "ctid": 901, "gpus": ["gpu"]}}),
            }
        )
