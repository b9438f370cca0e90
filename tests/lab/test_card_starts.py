"""A VM is started with its card, of each kind that there is: without a reset of its own, with one that fails, lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.errors import HomelabError, NotStartedError
from homelab.resources.work import started
from homelab.shapes import ShutdownInputs
from homelab.vm.resource import VmCards
from homelab.vm.work import VmCardsWork
from lab import Lab
from remote_scripts.guests import power
from tests import forked_agent
from tests.lab.stack_kit import CARDS_URN, NODE, VM, given_card, map_card, stack_of

BOUND = Path(__file__).parents[2] / "lab/scenarios/rtx5090.yaml"
FUNCTION = "0000:01:00.0"
# The resets of each of the card's functions.
Resets = tuple[list[str], ...]
NO_FLR: Resets = ([], [])
FLR: Resets = (["flr"], ["flr"])
SINGLE: Resets = ([],)
INPUTS = given_card(power="running", shutdown=ShutdownInputs(timeout=5, otherwise="fail"))


@pytest.fixture
def lab(shared_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Lab:
    """Its card is mapped, and has these resets; the VM is off."""
    scenario = {"extends": "bound-by-hand", "pci": yaml.safe_load(BOUND.read_text(encoding="utf-8"))["pci"]}
    bridge = next(one for one in scenario["pci"] if one["address"] == "00:01.1")
    resets = request.param
    bridge["children"] = [one | {"resets": own} for one, own in zip(bridge["children"], resets, strict=False)]
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    shared_lab.reset(str(file))
    map_card(shared_lab)
    shared_lab.run(f"qm stop {VM}")
    monkeypatch.setattr(power, "STEADY_SECONDS", 0.3)
    monkeypatch.setattr(started, "CARD_SECONDS", 0.5)
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    return shared_lab


def work(lab: Lab) -> VmCardsWork:
    return VmCardsWork(stack_of(lab, vms={"sandbox": {"host": NODE, "vmid": VM, "gpus": ["rtx5090"]}}), CARDS_URN)


def start(lab: Lab, **changes: Any) -> VmCards.Outputs:
    """`up` gives the VM its card and starts it."""
    return work(lab).create(dataclasses.replace(INPUTS, **changes))


def runs(lab: Lab) -> bool:
    return "running" in lab.run(f"qm status {VM}").stdout


@pytest.mark.parametrize("lab", [NO_FLR], indirect=True, ids=["two functions, no FLR"])
def test_a_card_without_a_reset_of_its_own_starts_well(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    made = start(lab)
    assert (made.state, made.starts) == ("running", 1)
    said = capsys.readouterr().out
    assert "failed to reset PCI device" in said
    assert f"note: the log says: failed to reset PCI device '{FUNCTION}'" in said


@pytest.mark.parametrize("lab", [FLR, SINGLE], indirect=True, ids=["FLR", "a single function's bus"])
def test_a_reset_that_failed_and_works_alone_is_a_remark(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.fault("reset-fails", FUNCTION)
    assert start(lab).state == "running"
    assert f"note: the log says: failed to reset PCI device '{FUNCTION}'" in capsys.readouterr().out


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_card_that_its_restart_has_lost_is_an_error_until_it_is_back(lab: Lab) -> None:
    start(lab)
    lab.fault("reset-kills", FUNCTION)
    with pytest.raises(HomelabError, match="can't be read: every bit is one.*; VM 103 runs") as raised:
        start(lab, display="none")
    unfinished = raised.value.outputs
    assert isinstance(unfinished, VmCards.Outputs) and (unfinished.state, unfinished.drift) == (
        "",
        ["the last run didn't finish with it"],
    )
    assert runs(lab), "what is in the VM isn't ours to switch off"
    given = dataclasses.replace(INPUTS, display="none")
    assert work(lab).read(given, unfinished).drift == ["the last run didn't finish with it"]
    before = lab.run(f"qm config {VM}").stdout
    with pytest.raises(HomelabError, match="can't be read: every bit is one") as raised:
        start(lab)
    assert raised.value.outputs is None and lab.run(f"qm config {VM}").stdout == before


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_card_that_no_reset_brings_back_isnt_reset_for_the_form_of_an_option(lab: Lab) -> None:
    lab.run(f"qm set {VM} --hostpci0 {FUNCTION.partition('.')[0]},pcie=1; qm start {VM}")
    lab.fault("reset-kills", FUNCTION)
    owned = dataclasses.replace(INPUTS, cards=[dataclasses.replace(INPUTS.cards[0], take_over=True)])
    for _ in range(2):  # also where the first one's change still waits
        made = work(lab).create(owned)
        assert (made.state, made.starts) == ("running", 0) and work(lab).read(owned, made).drift == []
    lab.fault("reset-kills", None)
    assert "hostpci0: mapping=rtx5090,pcie=1" in lab.run(f"qm shutdown {VM}; qm start {VM}; qm config {VM}").stdout
    assert runs(lab)


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_start_that_fails_is_told_with_what_there_is_and_is_taken_back(lab: Lab) -> None:
    lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(NotStartedError, match="out of luck") as raised:
        start(lab)
    assert "VM 103" in raised.value.found and isinstance(raised.value.outputs, VmCards.Outputs)
    assert "hostpci" not in lab.run(f"qm config {VM}").stdout
    lab.fault("task-fails", None)
    assert work(lab).update(INPUTS, INPUTS, raised.value.outputs).state == "running"


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_vm_that_is_left_off_is_started_by_the_next_run(lab: Lab) -> None:
    made, keep = start(lab), dataclasses.replace(INPUTS, power="keep")
    lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(HomelabError, match="which goes on from there"):
        work(lab).update(dataclasses.replace(keep, display="none"), INPUTS, made)
    lab.fault("task-fails", None)
    assert not runs(lab) and work(lab).read(keep, made).drift == ["the last run didn't finish with it"]
    assert work(lab).update(keep, keep, made).state == "running"
    assert work(lab).read(keep, made).drift == []
