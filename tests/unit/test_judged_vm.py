"""One VM is judged once (homelab/vm/plan.py, judge_vm): preview and doctor say the same of it, as does a refresh, whose drift is its
steps (tests/lab/test_card_starts.py)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from homelab.doctor.reading import Reading
from homelab.doctor.report import Report
from homelab.doctor.vm import diagnose
from homelab.findings import Turn
from homelab.host import plan
from homelab.host.facts import GuestConfig
from homelab.settings import Vm
from homelab.vm import preview
from tests.unit.hosts import desktop, settings, vm_note
from tests.unit.test_doctor import reading

HOST = settings({"gpu": {"match": "10de:2b85"}})
ENTRY = "gpu\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2\n"
BASE = "bios: ovmf\nmachine: q35\nsmbios1: uuid=1\nname: Sandbox"
GIVEN = f"{BASE}\nhostpci0: mapping=gpu,pcie=1"
OTHER = "machine: q35\nsmbios1: uuid=4\nname: Other\nhostpci0: mapping=gpu,pcie=1"
GONE = f"{GIVEN}\nhostpci1: mapping=gpu-2,pcie=1"
NOTED = vm_note(103, GIVEN, "hostpci0")
ADDED = "hostpci0: not there -> mapping=gpu,pcie=1"


@dataclass(frozen=True)
class Seen:
    """VM 103, and VM 104 beside it; `settings`: further ones of VM 103."""

    lines: str
    ledger: dict[str, str] = field(default_factory=dict)
    other: str = ""
    running: tuple[int, ...] = ()
    ha: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def reading(self) -> Reading:
        facts = desktop(
            ledger=self.ledger, cluster={"node": "pve", "ha": {"resources": self.ha}},
            guests={"running": [], "configs": [], "mappings": ENTRY, "reservations": ""},
        )  # fmt: skip
        configs = [GuestConfig(kind="vm", id=103, lines=self.lines)]
        configs += [GuestConfig(kind="vm", id=104, lines=self.other)] if self.other else []
        devices = [
            replace(one, driver="vfio-pci" if "0000:01:00" in one.address else one.driver) for one in facts.devices
        ]
        guests = replace(facts.guests, configs=configs, running=frozenset(self.running))
        return reading(facts=replace(facts, devices=devices, guests=guests))

    def vms(self) -> dict[str, Vm]:
        return {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["gpu"], **self.settings})}

    def preview(self) -> tuple[list[str], list[str]]:
        """The plan's lines, and what it refuses."""
        facts = self.reading().facts
        text, errors = preview.describe(facts, HOST, plan.wanted(facts, HOST), self.vms(), "p/s")
        return text.splitlines(), [error.found for error in errors]

    def doctor(self) -> Report:
        """Of it, without what is the host's."""
        return diagnose(self.reading(), 103, HOST, self.vms(), "p/s")


CASES = {
    "well": Seen(GIVEN, NOTED),
    "never given": Seen(BASE),
    "cut short": Seen(GIVEN, vm_note(103, GIVEN, "hostpci0", before={"hostpci0": None})),
    "made again": Seen(GIVEN, vm_note(103, GIVEN, "hostpci0", identity="2")),
    "off": Seen(GIVEN, NOTED, settings={"power": "running"}),
    "on": Seen(GIVEN, NOTED, running=(103,), settings={"power": "stopped"}),
    "moves by itself": Seen(BASE, vm_note(104, OTHER, "hostpci0"), OTHER, (104,)),
    "another stack's": Seen(BASE, vm_note(104, OTHER, "hostpci0", owner="p/other/a"), OTHER, (104,)),
    "in turn": Seen(GIVEN, NOTED, OTHER, (104,)),
    "under HA": Seen(BASE, ha="vm: 103\n\tstate started\n"),
    "under HA, as it is": Seen(GIVEN, NOTED, ha="vm: 103\n\tstate started\n"),
    "locked": Seen(f"{BASE}\nlock: backup"),
    "others' changes wait": Seen(f"{BASE}\n[PENDING]\nmemory: 4096"),
    "mapping gone": Seen(GONE, NOTED),
    "mapping gone, and to be started": Seen(GONE, NOTED, settings={"power": "running"}),
    "device gone": Seen(f"{GIVEN}\nhostpci1: 0000:09:00,pcie=1", NOTED),
}


@pytest.mark.parametrize("case", CASES)
def test_preview_and_doctor_say_the_same(case: str) -> None:
    seen = CASES[case]
    (lines, refused), report = seen.preview(), seen.doctor()
    of_turn = {turn: [one for one in report.findings if one.turn is turn] for turn in Turn}
    assert [one.found for one in of_turn[Turn.REFUSED]] == refused
    own = lines[: next((number for number, line in enumerate(lines) if "VM 104 (Other)," in line), None)]
    signs = ("pcie=1 -> ", "-> mapping", "power: ", "the last run", "isn't the VM")
    steps = [line.strip() for line in own if any(sign in line for sign in signs)]
    assert [one.found for one in of_turn[Turn.UP]] == ["; ".join(steps)] * bool(steps)
    assert all(any(one.found in line and one.next in line for line in lines) for one in of_turn[Turn.PERSON])
    assert not own or ("no change" in own[0]) is (not steps)
    if refused:
        assert not any(step.startswith("`pulumi up") for step in report.next), "the preview refuses"


@pytest.mark.parametrize(
    ("case", "found", "step"),
    [
        ("cut short", "the last run didn't finish with it", "`pulumi up --refresh`"),
        ("made again", "VM 103 isn't the VM that was given its cards", "`pulumi up --refresh`"),
        ("off", "power: stopped -> running", "`pulumi up --refresh`"),
        ("on", "power: running -> stopped", "`pulumi up --refresh`"),
        ("moves by itself", ADDED, "`pulumi up --refresh`"),
        ("under HA", "HA manages it (started)", "`ha-manager set vm:103 --state ignored`"),
        ("others' changes wait", "a change of memory waits for its next start", "start the VM, or take it back"),
        ("another stack's", "VM 104 (Other) runs with it", "shut VM 104 (Other) down"),
    ],
)
def test_a_vm_is_told_with_what_cures_it(case: str, found: str, step: str) -> None:
    report = CASES[case].doctor()
    assert any(found in one.found for one in report.findings)
    (cure,) = report.next
    assert cure.startswith(step)


@pytest.mark.parametrize("case", ["well", "in turn", "under HA, as it is"])
def test_of_a_vm_that_stays_as_it_is_nothing_is_wrong(case: str) -> None:
    seen = CASES[case]
    assert seen.doctor().well and seen.preview()[1] == []


@pytest.mark.parametrize(
    ("case", "gone", "is_refused"),
    [
        ("mapping gone", "there is no mapping gpu-2 for this node (mappings: gpu)", False),
        ("mapping gone, and to be started", "there is no mapping gpu-2 for this node (mappings: gpu)", True),
        ("device gone", "there is no 0000:09:00", False),
    ],
)
def test_an_owners_option_that_stops_a_start_is_told_with_both_cures(case: str, gone: str, is_refused: bool) -> None:
    seen = CASES[case]
    (lines, refused), report = seen.preview(), seen.doctor()
    assert any(gone in text for text in refused) is is_refused
    for text in (
        *(() if is_refused else (" ".join(lines),)),
        " ".join(one.found + one.next for one in report.findings),
    ):
        assert gone in text
        assert (
            "make the mapping again (Datacenter -> Resource Mappings)" in text
            and "`qm set 103 --delete hostpci1`" in text
        )
