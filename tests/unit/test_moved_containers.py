"""homelab/container/work.py: a container that another node has now, after its own node is gone or its id was used again; one that isn't listed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.container import plan as container_plan
from homelab.container import work as container_probe
from homelab.container.resource import ContainerProbe
from homelab.container.work import ContainerProbeWork, _drift
from homelab.errors import HomelabError
from homelab.facts.guests import GuestConfig
from homelab.remote import ssh
from homelab.resources.work.base import read_as
from homelab.settings import Container
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.notes.container_note import Cards
from remote_scripts.notes.guest_note import Note, identity, is_another
from tests.unit.hosts import VM_CARDS, container_note, desktop
from tests.unit.test_created_vms import SSH

A, B = "AA:BB:CC:00:00:01", "AA:BB:CC:00:00:02"
PVE2 = {"address": "192.0.2.2", "ssh": SSH, "cluster": "home", "gpus": {"card": {"match": "10de:2b85"}}}


def probe(host: str) -> ContainerProbe.Inputs:
    about: dict[str, Any] = {key: VM_CARDS[key] for key in ("power", "instance", "boot", "shutdown")}
    about |= {"host": host, "node": host, "container": "ai", "ctid": 901, "settings": "", "gpus": {}}
    return read_as(ContainerProbe.Inputs, about)


def outputs(**more: Any) -> ContainerProbe.Outputs:
    about: dict[str, Any] = {"minors": [], "functions": [], "guest_name": "ai", "rebooted_at": 0, "shared": {}}
    return ContainerProbe.Outputs(**about | {"generation": 0, "again": 0, "stale": False} | more)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(container_probe, "tell", lines.append)
    return lines


def test_a_node_taken_out_of_the_settings_is_told_and_holds_up_nothing(said: list[str]) -> None:
    work = ContainerProbeWork({"hosts": json.dumps({"pve2": PVE2}), "allowPlainSecrets": "true"})
    work.delete(probe("pve1"), outputs())
    assert len(said) == 1 and "pve1 is no longer in homelab:hosts: container 901 keeps what it was given" in said[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"net0": f"name=eth0,hwaddr={A}"}, {"net0": f"name=eth0,hwaddr={B}"}, False),
        ({}, {"rootfs": "local-zfs:subvol-901-disk-0,size=8G"}, False),
        ({"net0": f"hwaddr={A}"}, {"net0": f"hwaddr={A}", "rootfs": "local-zfs:subvol-901-disk-0,size=8G"}, True),
        ({"net0": f"hwaddr={A}", "net1": f"hwaddr={B}"}, {"net0": f"hwaddr={B.lower()}"}, True),
    ],
    ids=["another network card", "without any, another disk", "a disk that was moved", "one network card less"],
)
def test_a_container_is_known_by_its_network_cards(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    before, now = ({"rootfs": "local-lvm:vm-901-disk-0,size=8G", **config} for config in (one, other))
    note = Note(identity=identity(before), values={"dev0": ("/dev/nvidia0",)})  # of which it has nothing by now
    assert is_another(note, now) is not same


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        ({}, (4, 2, False)),
        ({"_drift": ["x"]}, (5, 2, True)),
        ({"_library_drift": ["x"]}, (4, 3, False)),
        ({"_device_drift": ["x"]}, (4, 2, True)),
        ({"leaves": True, "_library_drift": ["x"], "_device_drift": ["x"]}, (4, 2, False)),
        ({"gone": True}, (4, 2, True)),
        ({"away": "its card is away", "_drift": ["x"]}, (4, 2, False)),
        ({"away": "its card is away", "gone": True, "_drift": ["x"]}, (5, 2, True)),
        ({"node": "pve3", "_drift": ["x"]}, (5, 2, True)),
    ],
)
def test_a_refresh_tells_kinds_of_drift_apart(
    monkeypatch: pytest.MonkeyPatch, said: list[str], drift: dict[str, Any], found: tuple[int, int, bool]
) -> None:
    work = ContainerProbeWork({"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true"})
    facts = desktop()
    configs = [] if drift.get("gone") else [GuestConfig(kind="lxc", id=901, lines=LINES)]
    away = replace(facts.handover, away=drift.get("away", ""))
    places = replace(facts.cluster, node="pve1", places=f"{drift['node']}/lxc/901.conf" if "node" in drift else "")
    facts = replace(facts, handover=away, guests=replace(facts.guests, configs=configs), cluster=places)
    monkeypatch.setattr(work, "facts_of_refresh", lambda _: facts)
    entry: dict[str, Any] = {"host": "pve1", "ctid": 901, "gpus": []}
    entries = {} if drift.get("leaves") else {"ai": entry}
    work.stack = replace(work.stack, texts={**work.stack.texts, "containers": json.dumps(entries)})
    for name in ("_drift", "_library_drift", "_device_drift"):
        monkeypatch.setattr(container_probe, name, lambda *_, name=name: drift.get(name, []))
    now = work.read(probe("pve1"), outputs(generation=4, again=2))
    assert (now.generation, now.again, now.stale) == found


AMD = {"address": "0000:06:00.0", "kinds": ["render"], "nodes": ["/dev/dri/renderD128"]}


@pytest.mark.parametrize(
    ("minors", "node", "drift"),
    [
        ([0], "/dev/dri/renderD128", []),
        ([1], "/dev/dri/renderD128", ["its cards are /dev/nvidia[1], not /dev/nvidia[0]"]),
        ([0], "/dev/dri/renderD129", ["the nodes of gpus.amd are /dev/dri/renderD129, not /dev/dri/renderD128"]),
    ],
    ids=["as it was", "another number", "another node"],
)
def test_other_numbers_and_nodes_of_its_cards_are_drift(
    monkeypatch: pytest.MonkeyPatch, minors: list[int], node: str, drift: list[str]
) -> None:
    container = Container.model_validate({"host": "pve1", "ctid": 901, "gpus": []})
    now = {"amd": {**AMD, "nodes": [node]}, "new": {**AMD, "nodes": ["/dev/dri/renderD130"]}}
    wish = container_plan.ContainerWish("ai", 901, Cards(minors=tuple(minors)), shared=cast(Any, now))
    monkeypatch.setattr(container_plan, "wish_of", lambda *_: wish)
    given = outputs(minors=[0], shared={"amd": AMD})
    assert container_probe._device_drift(container, desktop(), probe("pve1"), given) == drift


LINES = "hostname: ai\ndev0: /dev/nvidia0,mode=0666\n"
CLUSTER = {name: {**PVE2, "address": f"192.0.2.{name[-1]}"} for name in ("pve1", "pve2", "pve3")}
OURS = "p/s/ai"


@pytest.mark.parametrize(
    ("node", "owner", "entry", "refused"),
    [
        pytest.param("pve2", OURS, "", False, id="it is here"),
        pytest.param("pve3", OURS, "", True, id="it has moved"),
        pytest.param("pve3", OURS, "pve2", True, id="it has moved, and its entry hasn't"),
        pytest.param("pve3", OURS, "pve3", False, id="its entry has moved as well"),
        pytest.param("pve3", "p/s/another", "", False, id="another entry has it"),
        pytest.param("pve9", "", "", False, id="nothing is noted"),
        pytest.param("", "", "", False, id="it is gone"),
    ],
)
def test_what_leaves_the_settings_is_given_back_where_it_was_given(
    monkeypatch: pytest.MonkeyPatch, node: str, owner: str, entry: str, *, refused: bool
) -> None:
    def ask(verb: str, layer: str, wanted: ContainerCards, _seconds: float, *, goes_on: bool) -> dict[str, Any]:
        assert (verb, layer, wanted.ctid, wanted.terms.owner, goes_on) == ("revert", "container_cards", 901, OURS, True)
        return {"node": node, "is_here": node == "pve2", "owner": owner}

    monkeypatch.setattr(ssh, "Session", lambda _: SimpleNamespace(ask=ask))
    containers = {"ai": {"host": entry, "ctid": 901, "gpus": []}} if entry else {}
    texts = {"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true", "containers": json.dumps(containers)}
    work = ContainerProbeWork(texts, "urn:pulumi:s::p::homelab:lxc:Probe::ai-probe")
    if refused:
        with pytest.raises(HomelabError, match="container 901 is on the node pve3, not on pve2"):
            work.delete(probe("pve2"), outputs())
    else:
        work.delete(probe("pve2"), outputs())


@pytest.mark.parametrize(("unlisted", "drifts"), [("", True), ("Connection refused", False)])
def test_a_container_is_off_only_where_the_host_lists_those_that_run(unlisted: str, *, drifts: bool) -> None:
    now = "hostname: ai\nnet0: name=eth0,hwaddr={}\n"
    config = GuestConfig(kind="lxc", id=901, lines=now.format(A))
    facts = desktop()
    guests = replace(facts.guests, configs=[config], running=frozenset(), unlisted=unlisted)
    facts = replace(facts, guests=guests, ledger=container_note(901, Cards()))
    wanted = dataclasses.replace(probe("pve2"), power="running")
    assert _drift(facts, wanted) == ["power: stopped -> running"] * drifts
