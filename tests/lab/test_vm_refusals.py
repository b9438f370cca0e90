"""What stands against a change of a VM and only its node can tell: each is named with its remedy, and the VM is as it was.

What the VM's configuration alone tells: tests/unit/test_vm_plan.py. As `up` says it: tests/e2e/test_gpu_vm.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.remote.ssh import Session
from homelab.shapes import ShutdownInputs
from homelab.vm.work import VmCardsWork
from lab import Lab
from remote_scripts.guests import power
from tests import forked_agent
from tests.lab.stack_kit import CARDS_URN, NODE, VM, given_card, map_card, stack_of

MAPPED = "mapping=rtx5090,pcie=1"


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The card is mapped; VM 103 runs without it, and beside it there is VM 104, which is off."""
    monkeypatch.setattr(power, "STEADY_SECONDS", 0.3)
    forked_agent.in_place_of_what_is_sent(monkeypatch, lab)
    map_card(lab)
    lab.run("qm create 104 --name gaming --machine q35 --bios ovmf --cores 4 --memory 8192 --ostype l26")
    return lab


def give(lab: Lab, *, vmid: int = VM, timeout: int = 5, otherwise: Literal["fail", "stop"] = "fail") -> None:
    """The card is given to a VM, as an `up` does it."""
    shutdown = ShutdownInputs(timeout=timeout, otherwise=otherwise)
    VmCardsWork(stack_of(lab), CARDS_URN).create(given_card(vmid=vmid, shutdown=shutdown))


def conf(lab: Lab) -> str:
    return (lab.root / f"etc/pve/qemu-server/{VM}.conf").read_text()


def running(lab: Lab) -> set[str]:
    lines = lab.run("qm list").stdout.splitlines()[1:]
    return {line.split()[0] for line in lines if line.split()[2] == "running"}


@dataclass
class Obstacle:
    """``host``: done by hand before; ``fault``: set before; ``vmid``: of the VM that is to get the card."""

    says: list[str]
    host: str = ""
    fault: tuple[str, Any] | None = None
    vmid: int = VM


# What cures them: tests/lab/test_advice.py.
OBSTACLES = {
    "a VM that isn't there": Obstacle(["VM 555"], vmid=555),
    "another VM that runs with the card by its address": Obstacle(
        ["VM 104 (gaming) runs with it", "qm shutdown 104"], "qm set 104 --hostpci2 01:00,pcie=1; qm start 104"
    ),
    "a guest that won't go off": Obstacle(["VM 103", "shutdown.otherwise: stop"], fault=("guest-ignores-shutdown", VM)),
    "somebody else who changes it again and again": Obstacle(
        ["changed from elsewhere 3 times", "nothing was changed"], fault=("foreign-change", 9)
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_against_it_is_said_and_the_vm_is_as_it_was(lab: Lab, name: str) -> None:
    obstacle = OBSTACLES[name]
    lab.run(obstacle.host or "true")
    before, ran = conf(lab), running(lab)
    if obstacle.fault:
        lab.fault(*obstacle.fault)
    with pytest.raises(HomelabError) as raised:
        give(lab, vmid=obstacle.vmid, timeout=1)
    for text in obstacle.says:
        assert text in str(raised.value)
    assert raised.value.wanted and raised.value.next
    if name == "somebody else who changes it again and again":
        assert "hostpci" not in conf(lab)  # their description was written, ours was not
    else:
        assert (conf(lab), running(lab)) == (before, ran)


def test_nothing_is_done_where_the_host_doesnt_list_its_vms(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Session.read

    def unlisted(session: Session, **what: Any) -> HostFacts:
        found = read(session, **what)
        return replace(found, guests=replace(found.guests, unlisted="Connection refused"))

    monkeypatch.setattr(Session, "read", unlisted)
    before, ran = conf(lab), running(lab)
    with pytest.raises(HomelabError, match="API on the host gives no answer: Connection refused"):
        give(lab)
    assert (conf(lab), running(lab)) == (before, ran)


def test_a_change_by_somebody_else_a_guest_that_stays_on_and_a_lost_answer_are_outlasted(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:

    def has_card(lab: Lab) -> bool:
        """Does VM 103 run with it?"""
        file = lab.root / "run/qemu-server/pci-id-reservations"
        return file.exists() and f"0000:01:00.0 {VM} " in file.read_text()

    lab.fault("foreign-change", 1)
    lab.fault("guest-ignores-shutdown", VM)
    lab.fault("api-drops", f"POST /nodes/{NODE}/qemu/{VM}/status/start")
    give(lab, timeout=1, otherwise="stop")
    assert "was changed from elsewhere a moment ago" in "".join(capsys.readouterr())
    assert "#changed by somebody else" in conf(lab) and has_card(lab)


def test_a_vm_that_is_off_gets_the_card_and_stays_off(lab: Lab) -> None:
    lab.run(f"qm stop {VM}")
    mark = lab.mark()
    give(lab)
    assert MAPPED in conf(lab) and running(lab) == set()
    assert len(lab.api_calls(mark)) <= 23
