"""Functions that the settings name for a card (gpus.X.functions), whichever they are: each voice says the same of them, and none ends otherwise."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from homelab.cards import resolving
from homelab.doctor import host as host_doctor
from homelab.doctor import vm as vm_doctor
from homelab.facts.host import HostFacts
from homelab.findings import Turn
from homelab.host import plan
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.judged import text
from homelab.settings import Vm
from homelab.show import reading as show
from tests.unit.hosts import cmdline, conf, desktop, device, driven, settings, tree, values
from tests.unit.test_doctor import reading

CARD = ["0000:01:00.0", "0000:01:00.1"]
# Another slot's, which the bus had before; none; what is in the slot, and no card's.
OTHERS = ["0000:02:00.0", "0000:03:00.0", "0000:01:00.2"]
NAMED = [[*named] for size in range(1, 6) for named in itertools.combinations([*CARD, *OTHERS], size)]
VM = {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["gpu"]})}
WORD = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"


def facts() -> HostFacts:
    """VM 103 has the card through homelab; each of its functions is in a group of its own. A bridge is in the slot, too."""
    words = cmdline(f"quiet amd_iommu=on iommu=pt {WORD}", others="quiet")
    mapping = "gpu\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00.0;0000:01:00.1,subsystem-id=1043:88e2\n"
    guests = {"configs": [conf("vm", 103, "machine: q35\nhostpci0: mapping=gpu,pcie=1")], "mappings": mapping}
    bridge = device("0000:01:00.2", "10de:2b99", "060400", 30)
    devices = [{**one, "group": 15} if one["address"] == CARD[1] else one for one in driven("vfio-pci")]
    return desktop(
        bridge, devices=devices, cmdline=words, guests=guests, nvidia={"version": "580.105.08"}, cluster={"node": "pve"}
    )


def told_by_refresh(found: HostFacts, gpus: dict[str, Any]) -> Iterator[str]:
    """What a refresh of a host's probe puts out, whose state has the card as it was."""
    had = plan.wanted(facts(), settings({"gpu": {"match": "10de:2b85"}}))
    before = HostProbe.Outputs(**dataclasses.asdict(had), generation={}, stale=False)
    work = HostProbeWork({"hosts": json.dumps({"pve": values(gpus)})}, "urn:pulumi:s::p::t::n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostProbeWork, "facts_of_refresh", lambda *_: found)
        told = list[str]()
        patch.setattr("homelab.host.work.tell", told.append)
        after = work.read(HostProbe.Inputs(host="pve", settings=""), before)
    yield from told if after.stale else ()


def test_whatever_is_named_is_taken_or_refused_once_by_each_voice() -> None:
    for named in NAMED:
        gpus = {"gpu": {"match": "10de:2b85", "functions": named}}
        host = settings(gpus)
        found = resolving.choosing(facts(), host.gpus)
        of_host = tree(found, host, VM, stack="p/s")
        refusals = [error.wanted for error in of_host.refusals]
        is_right = CARD[0] in named and {*named} <= {*CARD}
        refused = "gpus.gpu.functions to be functions of the card at 0000:01:00"
        assert refusals == ([] if is_right else [refused]), named
        assert text.of_plan(of_host)
        current = show.of_reading(found, host)
        assert [card.place for card in show.planned(current, of_host)] == ["0000:01:00"]
        read = reading(facts=found)
        of_settings = tree(read.facts, host, VM, stack="p/s")
        for report in (host_doctor.diagnose(read, of_settings), vm_doctor.diagnose(read, 103, of_settings)):
            told = [one.wanted for one in report.findings if one.turn is Turn.REFUSED]
            assert told == ([] if is_right else [refused]), (named, report.text())
        of_refresh = [line for line in told_by_refresh(found, gpus) if "gpus.gpu" in line]
        assert bool(of_refresh) is not is_right, (named, of_refresh)
