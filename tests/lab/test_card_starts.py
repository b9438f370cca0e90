"""A VM is started with its card, of each kind that there is: without a reset of its own, with one that fails, lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.errors import HomelabError
from homelab.provider import api
from homelab.provider.gpu_lease import GpuLeaseWork
from homelab.provider.vm_cards import VmCardsWork
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox.machine import Machine
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.vm_cards import VmCards
from homelab.shapes import BootSeen, ShutdownInputs
from lab import Lab
from lab.api.guests import Guest
from lab.api.qemu_power import ended_itself
from lab.host.state import HostState
from tests import forked_agent
from tests.lab.test_proxmox_api import MAPPED, NODE, POLICY, VM, host_of, machine, map_card

SCENARIO = Path(__file__).parents[2] / "lab/scenarios/bound-by-hand.yaml"
FUNCTION, SHUTDOWN = "0000:01:00.0", ShutdownInputs(timeout=5, otherwise="fail")
# The resets of each of the card's functions.
Resets = tuple[list[str], ...]
NO_FLR: Resets = ([], [])
FLR: Resets = (["flr"], ["flr"])
SINGLE: Resets = ([],)


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("starts") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Lab:
    """Its card is mapped, and has these resets; the VM is off."""
    scenario = yaml.safe_load(SCENARIO.read_text(encoding="utf-8"))
    bridge = next(one for one in scenario["pci"] if one["address"] == "00:01.1")
    resets = request.param
    bridge["children"] = [one | {"resets": own} for one, own in zip(bridge["children"], resets, strict=False)]
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    shared_lab.reset(str(file))
    map_card(shared_lab)
    machine(shared_lab).shut_down(POLICY)
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(api, "CARD_SECONDS", 0.5)
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    return shared_lab


def texts(lab: Lab) -> dict[str, str]:
    host = host_of(lab).model_dump(mode="json", by_alias=True)
    vms = {"sandbox": {"host": NODE, "vmid": VM, "gpus": ["rtx5090"]}}
    return {"hosts": json.dumps({NODE: host}), "vms": json.dumps(vms)}


def start(lab: Lab, power: str = "running", **options: str) -> VmCards.Outputs:
    """`up` gives the VM its card and starts it."""
    record: dict[str, Any] = {
        "hostpci0": {"ours": MAPPED["hostpci0"], "before": None, "slot": "0000:01:00"},
        **{key: {"ours": value, "before": None} for key, value in options.items()},
    }
    inputs = VmCards.Inputs(
        host=NODE, node=NODE, vm="sandbox", vmid=VM, cards=[], display="keep", shared_onboot=False, power=power, instance="", goes_away=False,
        boot=BootSeen(id="b", stopped=[], at=0), shutdown=SHUTDOWN,
    )  # fmt: skip
    planned = VmCards.Outputs(record=record, restore={}, guest_name="Sandbox", identity="")
    return VmCardsWork(texts(lab)).bring_into_force(inputs, planned)


@pytest.mark.parametrize("lab", [NO_FLR], indirect=True, ids=["two functions, no FLR"])
def test_a_card_without_a_reset_of_its_own_starts_well(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(lab).state == "running"
    said = capsys.readouterr().out
    assert "failed to reset PCI device" in said
    assert f"that {FUNCTION} could not be reset is normal" in said and "note:" not in said


@pytest.mark.parametrize("lab", [FLR, SINGLE], indirect=True, ids=["FLR", "a single function's bus"])
def test_a_reset_that_failed_and_works_alone_is_a_remark(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.fault("reset-fails", FUNCTION)
    assert start(lab).state == "running"
    assert (
        f"note: {FUNCTION} could not be reset when VM 103 (Sandbox) started".lower() in capsys.readouterr().out.lower()
    )


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_card_that_its_restart_has_lost_is_an_error_until_it_is_back(lab: Lab) -> None:
    start(lab)
    lab.fault("reset-kills", FUNCTION)
    for _ in range(2):
        with pytest.raises(HomelabError, match="can't be read: every bit is one"):
            start(lab, cores="3")
        assert machine(lab).running(), "what is in the VM isn't ours to switch off"


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
@pytest.mark.parametrize("looked", ["_lasts", "state"])
def test_a_vm_that_goes_off_again_soon_after_its_start_runs_as_before(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, looked: str
) -> None:
    """As one whose start fails: QEMU ends when the guest's driver has the card. Its task said OK.

    :param looked: how it is looked at next.
    """
    lab.run(f"qm start {VM}")
    look, ends = getattr(Machine, looked), [Guest(HostState(lab.state), "qemu", VM)]

    def end_first(machine: Machine, *arguments: float) -> bool | str:
        if ends and machine.starts:
            ended_itself(ends.pop())
        seen: bool | str = look(machine, *arguments)
        return seen

    monkeypatch.setattr(Machine, looked, end_first)
    with pytest.raises(HomelabError, match=r"doesn't run\n.*has its old configuration back, and runs again without"):
        start(lab, "keep")
    assert machine(lab).running() and "hostpci0" not in machine(lab).config()


@pytest.mark.parametrize("lab", [FLR], indirect=True, ids=["FLR"])
def test_a_vm_that_somebody_stops_soon_after_its_start_stays_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(f"qm start {VM}")
    lasts, stops = Machine._lasts, [f"sleep 1.1; qm stop {VM}"]  # not in the second of the start

    def stop_first(machine: Machine, seconds: float) -> bool:
        if stops:
            lab.run(stops.pop())
        return lasts(machine, seconds)

    monkeypatch.setattr(Machine, "_lasts", stop_first)
    with pytest.raises(HomelabError, match=r"root@pam has switched it off .* keeps the change, and this run"):
        start(lab, "keep")
    assert not machine(lab).running() and "hostpci0" in machine(lab).config()
    lab.run(f"qm start {VM}")
    assert machine(lab).running(), "as the message advises"


@pytest.mark.parametrize("lab", [NO_FLR], indirect=True, ids=["no FLR"])
def test_a_restart_for_another_change_looks_at_the_card_as_well(lab: Lab) -> None:
    entry = "node=pve,path=0000:06:00.0,id=1022:43fc,iommugroup=17,subsystem-id=0000:0000"
    lab.run(f"pvesh create /cluster/mapping/pci --id other --map {entry}; qm set {VM} --hostpci1 mapping=other")
    start(lab)
    lab.fault("reset-kills", FUNCTION)
    inputs = GpuLease.Inputs(
        host=NODE, node=NODE, mapping="other", slot="0000:06:00", vm="sandbox", vmid=VM, shutdown=SHUTDOWN
    )
    with pytest.raises(HomelabError, match="can't be read: every bit is one; VM 103"):
        GpuLeaseWork(texts(lab)).delete(inputs, GpuLease.Outputs(by_hand=False))
