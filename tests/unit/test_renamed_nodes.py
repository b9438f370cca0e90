"""A node that has another name by now: the state has the old one, and no host of the settings is called so any more."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.container.work import ContainerProbeWork
from homelab.remote import ssh
from homelab.resources.work.base import read_as
from homelab.settings import Host
from homelab.vm import work as vm_cards
from homelab.vm.cards import VmCard
from homelab.vm.resource import VmCards
from homelab.vm.work import VmCardsWork
from remote_scripts.both.container_cards import Left
from remote_scripts.both.guest_cards import Answer
from remote_scripts.tools.plain import to_plain
from tests.unit.hosts import VM_CARDS
from tests.unit.test_moved_containers import PVE2, outputs, probe

TEXTS = {"hosts": json.dumps({"pve": {**PVE2, "node": "new"}}), "allowPlainSecrets": "true"}
CARD = VmCard("rtx5090", "rtx5090", "0000:01:00")
OLD = dataclasses.replace(read_as(VmCards.Inputs, VM_CARDS), node="old", cards=[CARD])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    verbs: list[str] = []

    def connect(_host: Host) -> Any:
        def ask(verb: str, layer: str, wanted: Any, *_: Any, **__: Any) -> Any:
            verbs.append(verb)
            if layer == "container_cards":
                return to_plain(Left(node="new", is_here=True, owner=wanted.terms.owner))
            return to_plain(Answer(node="new", is_here=True, runs=True, config={}, base={}, originals={}, digest="1"))

        return SimpleNamespace(ask=ask)

    monkeypatch.setattr(ssh, "Session", connect)
    return verbs


def test_what_was_given_on_it_is_given_back(asked: list[str]) -> None:
    VmCardsWork(TEXTS, "urn:pulumi:s::p::homelab:vm:Cards::sandbox").delete(OLD, VmCards.Outputs())
    there = dataclasses.replace(probe("pve"), node="old")
    ContainerProbeWork(TEXTS, "urn:pulumi:s::p::homelab:lxc:Probe::ai-probe").delete(there, outputs())
    assert asked == ["revert", "revert"]


def test_a_refresh_says_it_and_goes_on(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    work = VmCardsWork(TEXTS, "urn:pulumi:s::p::homelab:vm:Cards::sandbox")
    monkeypatch.setattr(work, "facts_of_refresh", lambda _: None)
    monkeypatch.setattr(vm_cards, "tell", lambda _: None)
    assert work.read(OLD, VmCards.Outputs(state="running")).drift == ["VM 103 is on the node new, not on old"]
    assert asked == ["read"]
