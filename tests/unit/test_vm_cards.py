"""What a VM is given back when its cards' resource goes: from its own host, from where it is now, or through another node."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError, UnreachableError
from homelab.provider import vm_cards
from homelab.provider.vm_cards import VmCardsWork
from homelab.remote import ssh
from homelab.remote.proxmox.errors import NotThereError, UnansweredError
from homelab.resources.vm_cards import VmCards
from homelab.shapes import BootSeen, ShutdownInputs
from tests.unit.test_created_vms import SSH
from tests.unit.test_new_guests import error_of

HOST: dict[str, Any] = {"ssh": SSH, "cluster": "home", "gpus": {"card": {"match": "10de:2b85"}}}
HOSTS = {name: {**HOST, "address": f"192.0.2.{name[-1]}"} for name in ("pve1", "pve2")}
INPUTS = VmCards.Inputs(
    host="pve1",
    node="pve1",
    vm="a",
    vmid=103,
    shutdown=ShutdownInputs(timeout=5, otherwise="fail"),
    cards=[],
    display="keep",
    shared_onboot=False,
    power="keep",
    instance="",
    goes_away=False,
    boot=BootSeen(id="b", stopped=[], at=0),
)
CARD: Any = {"hostpci0": {"ours": "mapping=card", "before": None}}
VGA: Any = {"vga": {"ours": "none", "before": None}}
CONFIG = {"hostpci0": "mapping=card", "vga": "none", "smbios1": "uuid=1"}
OUTPUTS = VmCards.Outputs(record=CARD, restore={}, guest_name="a", identity="uuid=1", serial=2)
NOTHING = dataclasses.replace(OUTPUTS, record={})


def note(record: Any, serial: int, **more: Any) -> dict[str, Any]:
    return {"identity": "uuid=1", "record": record, "restore": {}, "serial": serial, "guest": "a", **more}


class World:
    """VM 103, on `node`, and what is noted of it: host -> note; one that isn't among them doesn't answer. `done`: what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: dict[str, Any], node: str) -> None:
        self.notes: dict[str, Any] = {"pve1": None, "pve2": None}
        self.node, self.config = node, CONFIG
        self.done: list[str] = []
        self.work: Any = VmCardsWork({"hosts": json.dumps(hosts), "allowPlainSecrets": "true"})

        def noted_on(host: str) -> Any:
            if host not in self.notes:
                raise UnreachableError(wanted="an SSH connection", found="off", why="w", next="n")
            return self.notes[host]

        def read(host: Any) -> Any:
            noted = noted_on(f"pve{host.address[-1]}")
            return SimpleNamespace(ledger={"vm/103": json.dumps(noted)} if noted else {})

        def noted_by(_stack: Any, host: str, _name: str) -> Any:
            return noted_on(host) or {}

        def forget_notes(_host: Any, names: list[str]) -> None:
            self.done.append(f"forgotten here: {' '.join(names)}".strip())

        def forget_on_peers(*_: Any) -> None:
            self.done.append("forgotten on peers")

        def give_back(_machine: Any, owned: Any, _shutdown: Any, *, moved: bool) -> None:
            self.done.append(f"given back{' there' if moved else ''}: {' '.join(sorted(owned))}")

        monkeypatch.setattr(ssh, "read", read)
        for name, function in (("noted_by", noted_by), ("forget_notes", forget_notes), ("give_back", give_back)):
            monkeypatch.setattr(vm_cards, name, function)
        monkeypatch.setattr(vm_cards, "forget_on_peers", forget_on_peers)
        monkeypatch.setattr(self.work, "machine_now", self.machine_now)

    def machine_now(self, near: Any, *_: Any) -> Any:
        def config() -> dict[str, str]:
            if not self.config:
                raise error_of(NotThereError)
            return self.config

        if near.host not in self.notes:
            raise error_of(UnansweredError)
        return SimpleNamespace(node=self.node, vmid=103, config=config)


GONE = ["forgotten here: vm/103", "forgotten on peers"]
NOTED_NO_MORE = "forgotten here: vm/103 power/103"
UNNOTED = ["forgotten here:", "forgotten on peers"]


@pytest.mark.parametrize(
    ("node", "here", "there", "changes", "outputs", "done"),
    [
        ("pve1", note(CARD, 2), None, {}, OUTPUTS, ["given back: hostpci0", *GONE]),
        ("pve1", None, None, {}, OUTPUTS, ["given back: hostpci0", *UNNOTED]),
        ("pve1", note(CARD | VGA, 3), None, {}, OUTPUTS, ["given back: hostpci0 vga", *GONE]),  # by a killed run
        ("pve1", note(CARD | VGA, 2), None, {}, OUTPUTS, ["given back: hostpci0", *GONE]),  # of before
        ("pve1", note(VGA, 3), None, {}, NOTHING, ["given back: vga", *GONE]),
        ("pve1", note(VGA, 3, identity="uuid=2"), None, {}, OUTPUTS, ["given back: hostpci0", *GONE]),
        ("pve1", note(CARD, 2, guest="b"), None, {}, OUTPUTS, []),
        ("pve1", None, None, {}, NOTHING, []),
        ("pve1", None, None, {}, dataclasses.replace(NOTHING, restore=VGA), ["given back: vga", *UNNOTED]),
        ("pve1", note(CARD, 2), None, {"goes_away": True}, OUTPUTS, GONE),
        ("pve1", None, None, {"goes_away": True}, NOTHING, []),
        ("pve1", note(CARD, 2), None, {}, dataclasses.replace(OUTPUTS, identity="uuid=2"), GONE),
        ("pve1", note(CARD, 2), None, {}, dataclasses.replace(OUTPUTS, identity=""), ["given back: hostpci0", *GONE]),
        ("pve2", note(CARD, 2), None, {}, OUTPUTS, ["given back there: hostpci0", *GONE]),
        ("pve2", note(CARD, 2), note(VGA, 3), {}, OUTPUTS, ["given back there: hostpci0 vga", *GONE]),
        ("pve2", None, note(VGA, 3), {}, NOTHING, ["given back there: vga", *UNNOTED]),
        ("pve2", note(CARD, 2), note(CARD, 3, guest="b"), {}, OUTPUTS, GONE),
        ("pve2", None, None, {}, NOTHING, []),
        ("", note(CARD, 2), None, {}, OUTPUTS, GONE),
    ],
)
def test_it_gets_back_what_is_its_own_and_no_other_does(
    monkeypatch: pytest.MonkeyPatch, node: str, here: Any, there: Any, changes: Any, outputs: Any, done: list[str]
) -> None:
    world = World(monkeypatch, HOSTS, node)
    world.notes = {"pve1": here, "pve2": there}
    world.config = CONFIG if node else {}
    world.work.delete(dataclasses.replace(INPUTS, **changes), outputs)
    assert world.done == done


@pytest.mark.parametrize(
    ("node", "there", "outputs", "done"),
    [
        ("pve2", None, OUTPUTS, ["given back there: hostpci0"]),
        ("pve2", note(VGA, 3), OUTPUTS, ["given back there: hostpci0 vga"]),
        ("pve2", note(CARD, 3, guest="b"), OUTPUTS, []),
        ("pve2", None, dataclasses.replace(OUTPUTS, identity="uuid=2"), []),
        ("pve1", None, NOTHING, []),
        ("pve1", None, OUTPUTS, None),  # on the host that doesn't answer
        ("pve3", None, OUTPUTS, None),  # a node that the settings don't have
        ("", None, OUTPUTS, None),
    ],
)
def test_while_its_host_is_silent_it_is_given_back_through_another_node(
    monkeypatch: pytest.MonkeyPatch, node: str, there: Any, outputs: Any, done: list[str] | None
) -> None:
    world = World(monkeypatch, HOSTS, node)
    world.notes = {"pve2": there}
    world.config = CONFIG if node else {}
    if done is None:
        with pytest.raises(UnreachableError):
            world.work.delete(INPUTS, outputs)
        done = []
    else:
        world.work.delete(INPUTS, outputs)
    assert world.done == done


@pytest.mark.parametrize("trouble", ["no answer", "refused", "no SSH"])
def test_a_node_that_cant_be_asked_holds_up_no_other(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    hosts = {**HOSTS, "pve3": {**HOSTS["pve2"], "address": "192.0.2.3", "node": "third"}}
    world = World(monkeypatch, hosts, "third")
    world.notes = {"pve2": None, "pve3": None}
    refused, machine_now = HomelabError(wanted="w", found="refused", why="w", next="n"), world.machine_now

    def asked(near: Any, *_: Any) -> Any:
        assert near.node == ("third" if near.host == "pve3" else near.host)
        if near.host == "pve2" and trouble == "no answer":
            raise error_of(UnansweredError)
        if near.host == "pve2" and trouble == "refused":
            raise refused
        found = machine_now(near)
        found.node = "pve2" if near.host == "pve2" and trouble == "no SSH" else "third"
        return found

    if trouble == "no SSH":
        world.notes = {"pve3": None}
    monkeypatch.setattr(world.work, "machine_now", asked)
    world.work.delete(INPUTS, OUTPUTS)
    assert world.done == ["given back there: hostpci0"]


def test_where_nobody_can_be_asked_the_state_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, HOSTS, "pve2")
    world.notes = {}
    with pytest.raises(UnreachableError):
        world.work.delete(INPUTS, OUTPUTS)
    assert world.done == []


def test_a_vm_that_is_deleted_next_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, HOSTS, "pve2")
    world.notes = {"pve2": None}
    with pytest.raises(UnreachableError):
        world.work.delete(dataclasses.replace(INPUTS, goes_away=True), OUTPUTS)
    assert world.done == []


def test_without_a_cluster_a_vm_that_was_given_nothing_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"pve1": HOSTS["pve1"]}, "pve1")
    monkeypatch.setattr(world.work, "machine_now", None)
    world.work.delete(INPUTS, NOTHING)
    assert world.done == []


def test_a_loss_while_it_is_given_back_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, HOSTS, "pve2")
    world.notes = {"pve2": None}

    def lost(*_: Any, **__: Any) -> None:
        raise error_of(UnansweredError)

    monkeypatch.setattr(vm_cards, "give_back", lost)
    with pytest.raises(HomelabError, match="a part may have been given back already"):
        world.work.delete(INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    ("node", "noted", "there", "done"),
    [
        ("pve1", note(CARD, 1), None, ["given back: hostpci0", NOTED_NO_MORE]),
        ("pve1", note(CARD, 1, identity="uuid=2"), None, ["given back:", NOTED_NO_MORE]),
        ("pve2", note(CARD, 1), None, ["given back there: hostpci0", NOTED_NO_MORE]),
        ("pve2", note(CARD, 1), note(CARD, 2), [NOTED_NO_MORE]),
        ("", note(CARD, 1), None, [NOTED_NO_MORE]),
    ],
)
def test_what_is_noted_of_a_vm_without_a_state_is_given_back(
    monkeypatch: pytest.MonkeyPatch, node: str, noted: Any, there: Any, done: list[str]
) -> None:
    world = World(monkeypatch, HOSTS, node)
    world.notes = {"pve1": noted, "pve2": there}
    world.config = CONFIG if node else {}
    vm_cards.give_back_noted(world.work, INPUTS, 103, noted, INPUTS.shutdown)
    assert [line.strip() for line in world.done] == done


@pytest.mark.parametrize(("owned", "changed"), [({}, []), (CARD, [(["hostpci0"], {}, ["hostpci0"])])])
def test_a_vm_that_has_nothing_of_ours_is_not_touched(owned: Any, changed: list[Any]) -> None:
    done: list[Any] = []

    def converge(target: Any, keys: list[str], *_: Any) -> None:
        done.append((keys, target(CONFIG).values, target(CONFIG).delete))

    machine: Any = SimpleNamespace(config=lambda: CONFIG, name="a", converge=converge)
    vm_cards.give_back(machine, owned, INPUTS.shutdown)
    assert done == changed
