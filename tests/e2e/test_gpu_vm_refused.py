"""What stands against a change of a VM: each is named with its remedy, and the VM is as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import MAPPING, conf, running, second_vm, with_card

OFF = "qm set 103 --onboot 0; qm stop 103"


@pytest.fixture
def bound(converged: Callable[..., Stack]) -> Stack:
    """A host whose card is bound; VM 103 runs without it."""
    return converged("bound-by-hand", vms={})


@dataclass
class Case:
    """``host``: done by hand before; ``fault``: set before; ``vm``: settings beside those of the sandbox."""

    says: list[str]
    host: str = ""
    fault: tuple[str, Any] | None = None
    vm: dict[str, Any] = field(default_factory=dict)
    # What was said helps: the fault is gone, or this command was run. What a command cures of the others: tests/lab/test_advice.py.
    goes_on: bool = False
    mended_by: str = ""


CASES = {
    "a VM that isn't there": Case(
        ["Configuration file 'nodes/pve/qemu-server/555.conf' does not exist"], vm={"vmid": 555}
    ),
    "a locked VM": Case(
        ["it is locked (backup)", "qm unlock 103"],
        "qm set 103 --lock backup",
    ),
    "a template": Case(["it is a template"], "qm stop 103; qm set 103 --template 1"),
    "i440fx": Case(
        ["machine model q35", "vms.sandbox.machine: q35"], "qm stop 103; qm set 103 --delete machine; qm start 103"
    ),
    "another VM that runs with the card": Case(
        ["VM 104 (gaming) runs with it", "qm shutdown 104"],
        "qm set 104 --hostpci0 mapping=rtx5090,pcie=1; qm start 104",
        goes_on=True,
        mended_by="qm shutdown 104",
    ),
    "another VM that runs with the card by its address": Case(
        ["VM 104 (gaming) runs with it"], "qm set 104 --hostpci2 01:00,pcie=1; qm start 104"
    ),
    "two VMs with the card that start with the host": Case(
        ["VM 104 (gaming) both have onboot: 1", "allowSharedOnboot"],
        "qm set 104 --hostpci0 mapping=rtx5090,pcie=1 --onboot 1",
    ),
    "the card given by hand, by its address": Case(
        ["given to VM 103 (Sandbox) by its mapping", "qm set 103 --delete hostpci0"],
        "qm stop 103; qm set 103 --hostpci0 01:00,pcie=1",
    ),
    "a guest that won't go off": Case(
        ["it is still on", "shutdown.otherwise: stop"],
        fault=("guest-ignores-shutdown", 103),
        vm={"shutdown": {"timeout": 1}},
        goes_on=True,
    ),
    "a start that fails": Case(
        ["the task ended with: out of luck", "has its old configuration back"],
        fault=("task-fails", "qmstart=out of luck"),
        goes_on=True,
    ),
    "a node that doesn't answer to its cluster": Case(
        ["595 No route to host", "pvecm status"], fault=("api-answers", "GET /nodes/pve/qemu=595 No route to host")
    ),
    "somebody else who changes it again and again": Case(
        ["checksum mismatch", "nothing was overwritten"], fault=("foreign-change", 9), goes_on=True
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_and_the_vm_is_as_it_was(bound: Stack, name: str) -> None:
    case = CASES[name]
    second_vm(bound)
    bound.lab.run(case.host or "true")
    before, ran = conf(bound, 103), running(bound)
    if case.fault:
        bound.lab.fault(*case.fault)
    bound.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"], **case.vm}}
    message = bound.up(ok=False).message
    for text in case.says:
        assert text in message, message
    assert "wanted: " in message and "next:   " in message
    if name == "somebody else who changes it again and again":
        assert "hostpci" not in conf(bound, 103)  # their description was written, ours was not
    elif name == "a start that fails":
        assert conf(bound, 103) == before  # the fault holds for the second start as well
    else:
        assert (conf(bound, 103), running(bound)) == (before, ran)
    if case.goes_on:
        if case.fault:
            bound.lab.fault(case.fault[0], None)
        bound.lab.run(case.mended_by or "true")
        bound.up()
        assert "mapping=rtx5090,pcie=1" in conf(bound, 103)


def test_an_api_that_answers_too_late_is_named(bound: Stack) -> None:
    before = conf(bound, 103)
    bound.lab.fault("api-seconds", 3)
    bound.host["timeouts"] |= {"api": 1}
    bound.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    message = bound.up(ok=False).message
    assert "no answer from https://127.0.0.1" in message and "systemctl status pveproxy" in message
    assert conf(bound, 103) == before


def test_a_change_by_somebody_else_is_kept_and_ours_made(bound: Stack) -> None:
    bound.lab.fault("foreign-change", 1)
    bound.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    up = bound.up()
    assert "somebody else has changed VM 103" in up.output
    assert "#changed by somebody else" in conf(bound, 103)
    assert with_card(bound)["0000:01:00.0"] == 103


def test_an_answer_that_is_lost_changes_nothing(bound: Stack) -> None:
    bound.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    for request in ("PUT /nodes/pve/qemu/103/config", "POST /nodes/pve/qemu/103/status/start"):
        bound.lab.fault("api-drops", request)
        bound.config["homelab:vms"]["sandbox"]["gpus"] = ["rtx5090"]
        bound.up()
        assert with_card(bound)["0000:01:00.0"] == 103
        bound.lab.fault("api-drops", None)
        bound.config["homelab:vms"]["sandbox"]["gpus"] = []
        bound.up()
        assert with_card(bound) == {}


def test_a_guest_that_wont_go_off_is_switched_off_where_that_is_set(bound: Stack) -> None:
    bound.lab.fault("guest-ignores-shutdown", 103)
    sandbox = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"], "shutdown": {"timeout": 1, "otherwise": "stop"}}
    bound.config["homelab:vms"] = {"sandbox": sandbox}
    bound.up()
    assert with_card(bound)["0000:01:00.0"] == 103


def test_a_mapping_of_another_device_is_not_taken(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("rtx5090", vms={})
    other = "id=10ec:8125,iommugroup=16,node=pve,path=0000:05:00.0,subsystem-id=1043:87d7"
    stack.lab.run(f"pvesh create /cluster/mapping/pci --id rtx5090 --map {other}")
    before = (stack.lab.root / MAPPING).read_text()
    message = stack.up(ok=False).message
    assert "for another device of this node" in message and "gpus.<gpu>.mapping" in message
    assert (stack.lab.root / MAPPING).read_text() == before
    stack.host["gpus"]["rtx5090"]["mapping"] = "big"
    stack.up()
    stack.destroy()
    assert (stack.lab.root / MAPPING).read_text() == before
