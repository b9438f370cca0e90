"""Boards whose GPUs NVSwitches join (homelab/host/fabric.py): which go to a VM, and which are refused."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest

from homelab.host import fabric, gates, plan
from homelab.host.facts import HostFacts
from homelab.settings import Vm
from homelab.vm import preview as vm_preview
from tests.conftest import shared
from tests.unit.hosts import KEY, desktop, device, settings

LINE = re.compile(r"IOMMU Group (\d+) (\S+) .*\[(\d{4})\]: .*\[(10de:[0-9a-f]{4})\]")


def board(gpus: int = 4, switches: int = 2, ids: str = "10de:2330", switch: str = "10de:22a3") -> HostFacts:
    """GPUs and NVSwitches, each in a group of its own."""
    cards = [device(f"0000:{0x41 + n:02x}:00.0", ids, "030200", 17 + n) for n in range(gpus)]
    bridges = [device(f"0000:{0x05 + n:02x}:00.0", switch, "068000", 86 + n) for n in range(switches)]
    return desktop(devices=[*cards, *bridges])


def given(count: int, use: str = "vm", **more: Any) -> dict[str, Any]:
    return {f"g{n}": {"address": f"{0x41 + n:02x}:00", "use": use, **more} for n in range(count)}


def reasons(facts: HostFacts, gpus: dict[str, Any]) -> list[str]:
    return [str(error) for error in gates.check(facts, settings(gpus))[1]]


def test_a_single_gpu_of_the_board_is_refused_with_what_would_become_of_it() -> None:
    (said,) = reasons(board(), given(1))
    assert "2 NVSwitches (0000:05:00.0, 0000:06:00.0) join it with 0000:42:00, 0000:43:00, 0000:44:00" in said
    assert "system not yet initialized" in said and "gpus.g0.allowPartOfFabric: true" in said


@pytest.mark.parametrize(
    ("facts", "gpus", "refusals"),
    [
        (board(), given(3), 3),
        (board(), given(4), 0),
        (board(), given(4) | {"g3": {"address": "44:00", "use": "lxc"}}, 3),
        (board(), given(1, allowPartOfFabric=True), 0),
        (board(), given(4, use="lxc"), 0),
        (board(switches=0), given(1), 0),  # cards for PCIe slots
        (board(switches=0, ids="10de:2901"), given(1), 1),  # B200: the switches aren't on the host's bus
        (board(gpus=1), given(1), 0),
        (board(switch="10de:0057"), given(1), 0),  # the network function of an nForce4
        (board(switch="10de:1af1", ids="10de:20b0"), given(1), 1),
    ],
)
def test_it_counts_whether_all_of_the_board_goes(facts: HostFacts, gpus: dict[str, Any], refusals: int) -> None:
    assert len(reasons(facts, gpus)) == refusals


def test_a_card_of_another_kind_beside_the_board_is_no_part_of_it() -> None:
    facts = board()
    more = [device("0000:61:00.0", "10de:27b8", "030200", 99)]
    beside = desktop(devices=[*(asdict(one) for one in facts.devices), *more])
    assert reasons(beside, {"l4": {"address": "61:00"}}) == []


def test_a_whole_board_for_several_vms_is_refused_too() -> None:
    facts, host = board(), settings(given(4))
    want = plan.wanted(facts, host)

    def errors(*each: list[str]) -> int:
        vms = {
            f"v{n}": Vm.model_validate(
                {"host": "pve", "vmid": 200 + n, "gpus": names, "ssh": {"hostKey": KEY, "agent": True}}
            )
            for n, names in enumerate(each)
        }
        found = vm_preview.describe("pve", facts, host, want, vms)[1]
        return len([error for error in found if "NVSwitches" in error.found])

    assert errors(["g0", "g1", "g2", "g3"]) == 0
    assert errors(["g0", "g1"], ["g2", "g3"]) == 4


def test_what_a_whole_board_takes_besides_is_a_note() -> None:
    facts, host = board(), settings(given(4))
    said = "\n".join(gates.remarks(facts, host, gates.check(facts, host)[0]))
    assert "the board's NVSwitches (0000:05:00.0, 0000:06:00.0) and a fabric manager" in said


def test_on_a_real_board_with_eight_gpus_each_is_refused_alone() -> None:
    text = shared("real_hosts", "hgx-8xh100-nvswitch", "iommu_groups_nvidia.txt").read_text(encoding="utf-8")
    found = [device(address, ids, f"{code}00", int(group)) for group, address, code, ids in LINE.findall(text)]
    facts = desktop(devices=found)
    assert len(fabric.switches(facts)) == 4 and len(facts.display_devices) == 8
    for one in facts.display_devices:
        assert any("4 NVSwitches" in said for said in reasons(facts, {"gpu": {"address": one.slot}}))
