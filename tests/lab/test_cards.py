"""Machines on which a card isn't its slot, as the unmodified reading sees them on the lab."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from homelab.cards import remarks as card_remarks
from homelab.host import gates, plan
from lab.api.mapping import Mapping, Mappings
from lab.host.state import HostState
from lab.machine import Machine
from lab.scenario import scenario_names
from tests.lab.host_kit import Host
from tests.lab.test_real_hosts import read
from tests.unit.hosts import settings


def booted(path: Path, scenario: str) -> Machine:
    return Host(path, scenario, running=True).machine


def test_a_processors_graphics_leave_the_root_disk_behind_their_slot_alone(tmp_path: Path) -> None:
    found = read(booted(tmp_path, "apu"))
    host = settings({"igpu": {"match": "1002:1900", "allowConsole": True}})
    want = plan.wanted(found, host)
    assert list(want.functions) == ["0000:c6:00.0"], "the sound has a group of its own, and no VM gets it"
    root = next(one for one in found.vital if one.kind == "storage")
    assert "0000:c6:00.3" in root.devices
    # In one group with it, as on other boards, nothing opens the gate.
    together = replace(
        found, devices=[replace(one, group=17 if one.slot == "0000:c6:00" else one.group) for one in found.devices]
    )
    others = [f"0000:c6:00.{number}" for number in (2, 3, 4, 6)]
    allowed = settings({"igpu": {"match": "1002:1900", "allowConsole": True, "allowGroupMembers": others}})
    (error,) = gates.check(together, allowed)[1]
    assert "0000:c6:00.3 USB controller" in error.found and "carries the disk sda (in use)" in error.found


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"path": "0000:c6:00.0", "id": "1002:1900", "iommugroup": "17"},
            "missing expected property 'subsystem-id' for device '0000:c6:00.0'",
        ),
        ({"path": "0000:c6:00.0", "id": "1002:1900", "iommugroup": "17", "subsystem-id": "0000:0000"}, None),
        # Each function of a path is held against the mapping's one id.
        (
            {
                "path": "0000:c6:00.0;0000:c6:00.1",
                "id": "1002:1900",
                "iommugroup": "17",
                "subsystem-id": "0000:0000",
            },
            "'id' does not match for 'igpu' (1002:1640 != 1002:1900)",
        ),
    ],
)
def test_the_labs_node_compares_a_mapping_as_proxmox_does(
    tmp_path: Path, entry: dict[str, str], problem: str | None
) -> None:
    host = HostState(booted(tmp_path, "apu").state)
    assert Mappings(host).problem(Mapping("igpu"), {"node": "pve", **entry}) == problem


def test_virtual_functions_are_told_from_the_card_that_has_them(tmp_path: Path) -> None:
    found = read(booted(tmp_path, "sriov"))
    card = found.by_address["0000:41:00.0"]
    assert (card.vfs, card.physfn, found.by_address["0000:41:00.4"].physfn) == (2, "", "0000:41:00.0")
    host = settings({"aa": {"address": "41:00"}, "bb": {"address": "41:00.4"}})
    (error,) = gates.check(found, host)[1]
    assert "has 2 virtual functions" in error.found
    want = plan.wanted(found, settings({"bb": {"address": "41:00.4"}}))
    assert want.functions == {} and want.gpus["bb"]["iommuGroup"] == 31


def test_a_card_on_thunderbolt_keeps_its_ids_and_one_outside_the_iommu_is_refused(tmp_path: Path) -> None:
    found = read(booted(tmp_path, "laptop-egpu"))
    host = settings({"egpu": {"match": "10de:2803"}}, takeOver=True)
    want = plan.wanted(found, host)
    assert want.by_hand == ["0000:04:00.0", "0000:04:00.1"] and not want.binds
    assert "external port" in card_remarks.remarks(found, host, {"egpu": "0000:04:00"})[0]
    (error,) = gates.check(found, settings({"igpu": {"match": "8086:9a49", "allowConsole": True}}))[1]
    assert "the kernel was started with intel_iommu=on,igfx_off" in error.found
    (error,) = gates.check(found, settings({"egpu": {"match": "10de:2803", "use": "lxc"}}))[1]
    assert error.found.endswith("by /etc/modprobe.d/vfio.conf")


@pytest.mark.parametrize("name", scenario_names())
def test_on_every_host_it_is_known_what_carries_its_disks_and_its_network(tmp_path: Path, name: str) -> None:
    found = read(booted(tmp_path, name)).vital
    assert {"storage", "network"} <= {one.kind for one in found}
    # The recorded node has no network card that was recorded.
    assert len([one for one in found if one.trouble]) == (1 if name == "recorded-node" else 0)
