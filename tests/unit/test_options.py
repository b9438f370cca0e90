"""Options of cards that only newer versions of Proxmox VE know (homelab/cards/graphics.py), and the mapping's flag for live migration."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.cards import work as card_mapping
from homelab.cards.mapping import FLAG
from homelab.cards.resource import CardMapping
from homelab.facts.host import HostFacts
from homelab.host import gates
from homelab.settings import Vm
from homelab.vm.cards import VmCard
from tests.unit.hosts import desktop, device, settings, told
from tests.unit.test_card_mapping import LIVE, OTHER, Api

NEW = {"qemu-server": "9.0.25"}


def split(packages: dict[str, str]) -> HostFacts:
    owner = device("0000:41:00.0", "8086:56c0", "038000", 30, vfs=1, driver="xe")
    return desktop(owner, device("0000:41:00.1", "8086:56c0", "038000", 31, physfn="0000:41:00.0"), packages=packages)


def test_a_virtual_functions_mapping_may_be_for_live_migration() -> None:
    assert gates.check(split(NEW), settings({"vf": {"address": "0000:41:00.1", "liveMigration": True}}))[1] == []


@pytest.mark.parametrize(
    ("version", "known"), [("9.0.25", True), ("9.1.0~1", True), ("9.0.24", False), ("8.4.5", False), ("", False)]
)
def test_a_driver_is_kept_where_proxmox_ve_knows_it(version: str, known: bool) -> None:
    facts, host = split({"qemu-server": version}), settings({"vf": {"address": "0000:41:00.1"}})
    gpus = [{"gpu": "vf", "driver": "keep"}]
    vm = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": gpus, "create": {"scsi0": "local:8"}})
    errors = told(facts, host, {"sandbox": vm})[1]
    assert (errors == []) is known
    assert VmCard("vf", "vf", "0000:41:00.1", driver="keep").in_place_of("") == "mapping=vf,driver=keep,pcie=1"


@pytest.mark.parametrize("had_flag", [False, True])
def test_the_flag_is_set_and_goes_with_our_entry_where_it_was_ours(had_flag: bool) -> None:
    before = {"map": [OTHER], **({FLAG: 1} if had_flag else {})}
    api: Any = Api(before)
    card_mapping._write(api, LIVE, "")
    assert api.mapping[FLAG] == 1 and len(api.mapping["map"]) == 2
    card_mapping._remove(api, LIVE, CardMapping.Outputs(before="", had_flag=had_flag), set())
    assert api.mapping == before
