"""What a cluster's nodes have in common is said once; a host takes from there what it doesn't say itself."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.init.proposal import cluster_settings
from homelab.settings import Settings, load_host, parse, secrets
from tests.unit.hosts import KEY, desktop

HOME: dict[str, Any] = {
    "nodes": {"pve1": {"address": "192.0.2.1", "hostKey": KEY}, "pve2": {"address": "192.0.2.2", "hostKey": KEY}},
    "ssh": {"user": "admin", "password": "a"},
    "guestsAtReboot": "maintenance",
}
HOSTS: dict[str, Any] = {"pve1": {"cluster": "home"}, "second": {"cluster": "home", "node": "pve2", "reboot": "manual"}}


def texts(hosts: dict[str, Any] = HOSTS, home: Any = HOME, **more: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in {"hosts": hosts, "clusters": {"home": home}, **more}.items()}


def settings(hosts: dict[str, Any] = HOSTS, home: Any = HOME) -> Settings:
    return parse(texts(hosts, home))


def refused(hosts: dict[str, Any] = HOSTS, home: Any = HOME) -> str:
    with pytest.raises(HomelabError) as raised:
        settings(hosts, home)
    return raised.value.found


def test_hosts_take_address_and_login_from_their_cluster() -> None:
    """The same as if each said it all: what is made of it doesn't change when somebody goes over to `clusters`."""
    said = {
        name: {
            **{**one, "address": about["address"], "ssh": {**HOME["ssh"], "hostKey": KEY}},
            "guestsAtReboot": HOME["guestsAtReboot"],
        }
        for (name, one), about in zip(HOSTS.items(), HOME["nodes"].values(), strict=True)
    }
    assert settings().hosts == parse({"hosts": json.dumps(said)}).hosts
    assert load_host(texts()["hosts"], "second", texts()["clusters"]) == settings().hosts["second"]


def test_what_a_host_says_itself_counts() -> None:
    own = {"address": "192.0.2.9", "ssh": {"hostKey": KEY, "agent": True}}
    found = settings({"pve1": {"cluster": "home", **own}, "apart": {"cluster": "home", **own, "address": "192.0.2.8"}})
    assert found.hosts["pve1"].address == "192.0.2.9" and found.hosts["pve1"].ssh.agent
    assert found.hosts["apart"].guests_at_reboot == "maintenance"  # no node of the settings' cluster, but one of it


def test_a_name_alone_is_a_cluster_too() -> None:
    """As before there were `clusters`: hosts of one name restart one after another."""
    one = {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}, "cluster": "lab"}
    assert parse(texts({"pve": one})).hosts["pve"].cluster == "lab"


def test_a_mistake_in_a_cluster_is_reported_once_at_its_own_place() -> None:
    assert (
        refused({"pve3": {"cluster": "home"}})
        == "homelab:hosts.pve3: clusters.home has no node pve3; it has pve1, pve2"
    )
    wrong = copy.deepcopy(HOME)
    wrong["nodes"]["pve2"]["address"] = "-x"
    del wrong["ssh"]["password"]
    lines = refused(home=wrong).split("\n        ")
    assert [line.partition(": ")[0] for line in lines] == [
        "homelab:clusters.home.nodes.pve2.address",
        "homelab:clusters.home.ssh",
    ]


def test_a_secret_of_a_cluster_stands_in_one_place() -> None:
    found = settings().as_written()
    assert secrets.secrets(found) == [("clusters", "home", "ssh", "password")]
    own = settings({"pve1": {"cluster": "home", "ssh": {"hostKey": KEY, "password": "c"}}}).as_written()
    assert ("hosts", "pve1", "ssh", "password") in secrets.secrets(own)


@pytest.mark.parametrize(
    ("cluster", "there", "proposed"),
    [
        ("home", {}, {"cluster": "home"}),
        ("home", {"address": "192.0.2.1"}, {"cluster": "home"}),
        ("home", {"cluster": "mine"}, {}),
        ("", {}, {}),
        ("9", {}, {}),
    ],
    ids=[
        "a new host",
        "one that the file has",
        "one that has another name for it",
        "alone",
        "no name of these settings",
    ],
)
def test_init_proposes_the_cluster_of_a_node(cluster: str, there: dict[str, Any], proposed: dict[str, str]) -> None:
    facts = desktop()
    node = replace(facts, cluster=replace(facts.cluster, name=cluster))
    assert cluster_settings(there, node) == proposed
    assert node.cluster.described == (f", node of the cluster {cluster}" if cluster else "")
