"""homelab/provider/container_probe.py: a container that another node has now, after its own node is gone or its id was used again; one that isn't listed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from homelab.container import other_makers
from homelab.container import plan as container_plan
from homelab.container.identity import identity, is_another
from homelab.errors import HomelabError, UnreachableError
from homelab.host.facts import GuestConfig, HostFacts
from homelab.provider import container_probe
from homelab.provider.container_probe import ContainerProbeWork, _drift, _require_same
from homelab.remote import ssh
from homelab.resources.container_probe import ContainerProbe
from homelab.settings import Host
from homelab.shapes import BootSeen, ShutdownInputs
from remote_scripts.layers.container_record import Wanted as ContainerRecord
from remote_scripts.shared.reading.answer import SharedWith
from tests.unit.hosts import desktop
from tests.unit.test_created_vms import SSH

A, B = "AA:BB:CC:00:00:01", "AA:BB:CC:00:00:02"
PVE2 = {"address": "192.0.2.2", "ssh": SSH, "cluster": "home", "gpus": {"card": {"match": "10de:2b85"}}}


def probe(host: str) -> ContainerProbe.Inputs:
    return ContainerProbe.Inputs(
        host=host,
        node=host,
        container="ai",
        ctid=901,
        settings="",
        power="keep",
        gpus={},
        boot=BootSeen(id="b", stopped=[], at=0),
        instance="",
        cluster="home",
        shutdown=ShutdownInputs(timeout=60, otherwise="fail"),
    )


def outputs(**more: Any) -> ContainerProbe.Outputs:
    about: dict[str, Any] = {"minors": [], "functions": [], "guest_name": "ai", "resume": False, "shared": {}}
    about |= {"generation": 0, "again": 0, "stale": False, "identity": ""}
    return ContainerProbe.Outputs(**about | more)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(container_probe, "tell", lines.append)
    return lines


@pytest.mark.parametrize("ends", ["up", "destroy"])
def test_a_node_taken_out_of_the_settings_is_told_and_holds_up_nothing(said: list[str], ends: str) -> None:
    work = ContainerProbeWork({"hosts": json.dumps({"pve2": PVE2}), "allowPlainSecrets": "true"})
    if ends == "up":
        work._move_record(probe("pve2"), "pve1", "pve2")
    else:
        work.delete(
            probe("pve1"),
            outputs(),
        )
    assert len(said) == 1 and "pve1 is no longer in homelab:hosts" in said[0] and "container 901 is lost" in said[0]
    assert "pct set 901 --delete" in said[0] and "/etc/pve/lxc/901.conf" in said[0]


@pytest.mark.parametrize(
    ("before", "now", "another"),
    [
        (A, A, False),
        (A, B, True),
        (f"{A} {B}", B, False),
        (A, "", False),
        ("", A, False),
        ("local-lvm:vm-901-disk-0", "ceph:vm-901-disk-0", False),
    ],
)
def test_a_container_without_a_common_network_card_is_another_one(before: str, now: str, another: bool) -> None:
    assert is_another(before, now) is another
    if another:
        with pytest.raises(HomelabError) as raised:
            _require_same(probe("pve2"), before, now)
        assert "is another one" in raised.value.found and "nothing was changed" in raised.value.why
    else:
        _require_same(probe("pve2"), before, now)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"net0": f"name=eth0,hwaddr={A}"}, {"net0": f"name=eth0,hwaddr={B}"}, False),
        ({"rootfs": "local-lvm:vm-200-disk-0,size=8G"}, {"rootfs": "local-zfs:subvol-200-disk-0,size=8G"}, False),
        (
            {"net0": f"name=eth0,bridge=vmbr0,hwaddr={A},ip=dhcp", "net1": f"hwaddr={B}"},
            {"net1": f"hwaddr={A},ip=manual,bridge=vmbr1", "net0": f"hwaddr={B.lower()}"},
            True,
        ),
    ],
    ids=["another network card", "another disk", "other settings of its network cards"],
)
def test_a_container_is_known_by_its_network_cards(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    assert (identity(one) == identity(other) != "") is same


@pytest.mark.parametrize(
    ("host", "now", "moved", "generation"),
    [("pve1", A, [], 4), ("pve1", B, [], 4), ("pve2", A, ["pve1 to pve2"], 5), ("pve2", B, None, 0)],
    ids=["it is where it was", "it has another network card", "it has moved", "another one has its id there"],
)
def test_notes_move_with_the_same_container_only(
    monkeypatch: pytest.MonkeyPatch, said: list[str], host: str, now: str, moved: list[str] | None, generation: int
) -> None:
    work, done = ContainerProbeWork({}), []

    def plan(_inputs: Any, boot: Any, generation: int, again: int) -> ContainerProbe.Outputs:
        assert (boot, again) == (probe("pve1").boot, 2)
        return outputs(identity=now, generation=generation, again=again)

    def follow(_: Any, left: str, there: str) -> None:
        done.append(f"{left} to {there}")

    monkeypatch.setattr(work, "_plan", plan)
    monkeypatch.setattr(work, "_move_record", follow)
    before = outputs(identity=A, generation=4, again=2)
    if moved is None:
        with pytest.raises(HomelabError, match="is another one"):
            work.update(probe(host), probe("pve1"), before)
        assert done == []
    else:
        found = work.update(probe(host), probe("pve1"), before)
        assert (done, found.generation, found.identity) == (moved, generation, now)


@pytest.mark.parametrize("silent", ["pve1", "pve2"])
def test_notes_that_cant_be_moved_stay_where_they_are(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    nodes = Nodes(pve1="NOTED", pve2="", pve3="")
    nodes.records[silent] = None
    before = dict(nodes.records)
    monkeypatch.setattr(ssh, "Session", nodes.connect)
    work = ContainerProbeWork({"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true"})
    with pytest.raises(HomelabError, match="moved from pve1 to pve2"):
        work._move_record(probe("pve2"), "pve1", "pve2")
    assert nodes.records == before


@pytest.mark.parametrize(
    ("cluster", "noted", "done"),
    [
        ("home", True, ["elsewhere: x", "taken out on pve1"]),
        ("home", False, ["elsewhere: x"]),
        ("", True, ["taken out on pve1"]),
        ("", False, []),
    ],
)
def test_what_leaves_the_settings_is_given_back_here_and_where_it_is_now(
    monkeypatch: pytest.MonkeyPatch, cluster: str, noted: bool, done: list[str]
) -> None:
    work, calls = ContainerProbeWork({"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true"}), []

    def record_of(_stack: Any, host: str, ctid: int) -> dict[str, str]:
        assert (host, ctid) == ("pve1", 901)
        return {"ours": "x"} if noted else {}

    def taken_out(_: Any, there: str) -> None:
        calls.append(f"taken out on {there}")

    monkeypatch.setattr(container_probe, "container_record_of", record_of)
    monkeypatch.setattr(work, "_take_out", taken_out)
    monkeypatch.setattr(work, "_give_back_elsewhere", lambda _, identity: calls.append(f"elsewhere: {identity}"))
    work.delete(replace(probe("pve1"), cluster=cluster), outputs(identity="x"))
    assert calls == done


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        ({}, (4, 2, False)),
        ({"_drift": ["x"]}, (5, 2, False)),
        ({"_library_drift": ["x"]}, (4, 3, False)),
        ({"_device_drift": ["x"]}, (4, 2, True)),
        ({"gone": True}, (4, 2, True)),
        ({"away": "its card is away", "_drift": ["x"]}, (4, 2, False)),
        ({"away": "its card is away", "gone": True, "_drift": ["x"]}, (5, 2, True)),
        ({"node": "pve3", "_drift": ["x"]}, (5, 2, False)),
        ({"node": "pve3", "roams": True, "_drift": ["x"], "gone": True}, (4, 2, False)),
        ({"roams": True, "_drift": ["x"]}, (5, 2, False)),
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
    entry: dict[str, Any] = {"host": "home" if drift.get("roams") else "pve1", "ctid": 901, "gpus": []}
    work.stack = replace(work.stack, texts={**work.stack.texts, "containers": json.dumps({"ai": entry})})
    monkeypatch.setattr(container_probe, "_drift", lambda *_: drift.get("_drift", []))
    for name in ("_library_drift", "_device_drift"):
        monkeypatch.setattr(work, name, lambda *_, name=name: drift.get(name, []))
    now = work.read(probe("pve1"), outputs(generation=4, again=2))
    assert (now.generation, now.again, now.stale) == found


AMD = {"address": "0000:06:00.0", "kinds": ["render"], "nodes": ["/dev/dri/renderD128"]}


@pytest.mark.parametrize(
    ("known", "minors", "node", "drift"),
    [
        (True, [0], "/dev/dri/renderD128", []),
        (True, [1], "/dev/dri/renderD128", ["its cards are /dev/nvidia[1], not /dev/nvidia[0]"]),
        (True, [0], "/dev/dri/renderD129", ["the nodes of gpus.amd are /dev/dri/renderD129, not /dev/dri/renderD128"]),
        (False, [1], "/dev/dri/renderD129", []),
    ],
    ids=["as it was", "another number", "another node", "it leaves the settings"],
)
def test_other_numbers_and_nodes_of_its_cards_are_drift(
    monkeypatch: pytest.MonkeyPatch, known: bool, minors: list[int], node: str, drift: list[str]
) -> None:
    entries = {"ai": {"host": "pve1", "ctid": 901, "gpus": []}} if known else {}
    texts = {"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true", "containers": json.dumps(entries)}
    now = {"amd": {**AMD, "nodes": [node]}, "new": {**AMD, "nodes": ["/dev/dri/renderD130"]}}
    monkeypatch.setattr(container_plan, "numbers", lambda *_: (minors, []))
    monkeypatch.setattr(other_makers, "shared", lambda *_: (now, []))
    found = ContainerProbeWork(texts)._device_drift(desktop(), probe("pve1"), outputs(minors=[0], shared={"amd": AMD}))
    assert found == drift


# -- a state that was lost -----------------------------------------------------------------------------------------
class Nodes:
    """Nodes of a cluster by their addresses, each with what is noted there; None: it doesn't answer."""

    def __init__(self, **records: str | None) -> None:
        self.records: dict[str, Any] = dict(records)
        self.asked: list[tuple[str, str]] = []

    def connect(self, host: Host) -> Any:
        name = f"pve{host.address[-1]}"
        if self.records[name] is None:
            raise UnreachableError(wanted="an SSH connection", found="off", why="w", next="n")
        nodes = self

        class Session:
            def ask(self, verb: str, _layer: str, wanted: ContainerRecord) -> dict[str, Any]:
                nodes.asked.append((name, verb))
                if verb == "apply":
                    nodes.records[name] = wanted.record
                elif verb == "revert":
                    nodes.records[name] = ""
                return {"record": (nodes.records[name] or None) if verb == "read" else None}

        return Session()


LINES = "hostname: ai\ndev0: /dev/nvidia0,mode=0666\n"
CLUSTER = {name: {**PVE2, "address": f"192.0.2.{name[-1]}"} for name in ("pve1", "pve2", "pve3")}


def taken_over(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, lines: str = LINES, *, known: bool = False) -> None:
    monkeypatch.setattr(ssh, "Session", nodes.connect)
    known_here = [SharedWith(id=901, minors="0", drift=[])] if known else []
    facts = replace(desktop(), containers=known_here)
    work = ContainerProbeWork({"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true"})
    work._take_over(probe("pve2"), facts, GuestConfig(kind="lxc", id=901, lines=lines))


def test_notes_of_a_containers_old_node_survive_a_lost_state(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    nodes = Nodes(pve1="NOTED", pve2="", pve3="")
    taken_over(nodes, monkeypatch)
    assert nodes.records == {"pve1": "", "pve2": "NOTED", "pve3": ""}
    assert len(said) == 1 and "container 901 has come from pve1" in said[0]


def test_a_node_that_is_off_holds_up_only_containers_with_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(pve1=None, pve2="", pve3="")
    with pytest.raises(HomelabError) as raised:
        taken_over(nodes, monkeypatch)
    assert (
        "to know what pve1 noted about container 901" in raised.value.wanted
        and "take it out of homelab:hosts" in raised.value.next
    )
    nodes.asked.clear()
    taken_over(nodes, monkeypatch, "hostname: ai\nnet0: name=eth0\n")
    taken_over(nodes, monkeypatch, known=True)
    assert nodes.asked == [], "nothing of ours can be in it, or it is noted here"
    # What another node has noted is enough: a container comes from one.
    nodes.records["pve3"] = "OTHER"
    taken_over(nodes, monkeypatch)
    assert nodes.records["pve2"] == "OTHER"


# -- given back where it is now ------------------------------------------------------------------------------------
NOW = "hostname: ai\nnet0: name=eth0,hwaddr={}\n"


@pytest.mark.parametrize(
    ("node", "address", "outcome"),
    [("", A, ""), ("pve3", A, "given back"), ("pve3", B, "another one"), ("pve9", A, "no host of these settings")],
    ids=["it is here", "it has moved", "another guest has its id", "to a node that isn't ours"],
)
def test_lines_are_taken_out_of_the_same_container_only(
    monkeypatch: pytest.MonkeyPatch, said: list[str], node: str, address: str, outcome: str
) -> None:
    done: list[str] = []

    def read(host: Host, **_: Any) -> HostFacts:
        facts = desktop()
        if host.address == "192.0.2.2":
            places = f"{node}/lxc/901.conf" if node else ""
            about: dict[str, Any] = {"cluster": replace(facts.cluster, node="pve2", places=places)}
            return replace(facts, **about, containers=[SharedWith(id=901, minors="0", drift=[])])
        guests = replace(facts.guests, configs=[GuestConfig(kind="lxc", id=901, lines=NOW.format(address))])
        return replace(facts, guests=guests)

    def follow(_: Any, left: str, there: str) -> None:
        done.append(f"{left} to {there}")

    def taken_out(_: Any, there: str) -> None:
        done.append(f"taken out on {there}")

    monkeypatch.setattr(ssh, "read", read)
    work = ContainerProbeWork({"hosts": json.dumps(CLUSTER), "allowPlainSecrets": "true"})
    monkeypatch.setattr(work, "_move_record", follow)
    monkeypatch.setattr(work, "_take_out", taken_out)
    if outcome == "no host of these settings":
        with pytest.raises(HomelabError, match=outcome):
            work._give_back_elsewhere(probe("pve2"), A)
    else:
        work._give_back_elsewhere(probe("pve2"), A)
    assert done == (["pve2 to pve3", "taken out on pve3"] if outcome == "given back" else [])
    assert outcome != "another one" or outcome in said[0]


@pytest.mark.parametrize(("unlisted", "drifts"), [("", True), ("Connection refused", False)])
def test_a_container_is_off_only_where_the_host_lists_those_that_run(unlisted: str, *, drifts: bool) -> None:
    config = GuestConfig(kind="lxc", id=901, lines=NOW.format(A))
    facts = desktop()
    guests = replace(facts.guests, configs=[config], running=frozenset(), unlisted=unlisted)
    facts = replace(facts, guests=guests, containers=[SharedWith(id=901, minors="0", drift=[])])
    wanted = dataclasses.replace(probe("pve2"), power="running")
    assert _drift(facts, wanted) == ["container 901 is stopped instead of running"] * drifts
