"""A VM's transaction, asked for by the program over SSH (homelab/resources/work/vm_transaction.py)."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.errors import HomelabError, raise_all
from homelab.findings import JudgedGuest
from homelab.resources.work.vm_transaction import VmTransaction
from homelab.vm import plan
from homelab.vm.cards import VmCard, Wish
from lab import Lab
from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.both.terms import Terms
from tests import forked_agent
from tests.lab.stack_kit import host_of, map_card
from tests.lab.transaction_kit import CARD, LINES, NODE, OURS, VM
from tests.unit.hosts import desktop

WANTED = Wanted(vmid=VM, terms=Terms(owner="p/s/sandbox", shutdown=5))


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """VM 103 runs with the card, by a line for each function."""
    forked_agent.in_place_of_what_is_sent(monkeypatch, lab)
    map_card(lab)
    lines = " ".join(f"--{key} {value}" for key, value in LINES.items())
    lab.run(f"qm stop {VM}; qm set {VM} {lines}; qm start {VM}")
    return lab


def transaction(lab: Lab) -> VmTransaction:
    return VmTransaction(host_of(lab), "sandbox")


def planned(seen: Answer, **card: Any) -> JudgedGuest:
    wish = Wish("sandbox", VM, [VmCard(**{**CARD, **card})])
    return plan.judge_vm(plan.SeenVm(seen.config, seen.base, seen.originals), wish, desktop())


def decided(seen: Answer, **card: Any) -> JudgedGuest:
    found = planned(seen, **card)
    raise_all(found.refusals)
    return found


def hostpci(lab: Lab) -> list[str]:
    text = (lab.root / f"etc/pve/qemu-server/{VM}.conf").read_text()
    return [line for line in text.partition("\n[")[0].splitlines() if line.startswith("hostpci")]


def test_it_is_decided_brought_into_force_and_given_back(lab: Lab) -> None:
    assert planned(transaction(lab).read(WANTED)).change
    answer = transaction(lab).apply(WANTED, decided)
    assert answer.runs and answer.started and hostpci(lab) == [OURS]
    assert planned(transaction(lab).read(WANTED)).change == {}
    assert not transaction(lab).apply(WANTED, decided).started
    assert transaction(lab).revert(WANTED).runs
    assert hostpci(lab) == [f"{key}: {value}" for key, value in LINES.items()]


def test_what_is_refused_changes_nothing(lab: Lab) -> None:
    with pytest.raises(HomelabError, match="takeOver: true"):
        transaction(lab).apply(WANTED, lambda seen: decided(seen, take_over=False))
    assert not (lab.root / "etc/pve/homelab").exists()


def test_a_change_from_elsewhere_is_decided_upon_anew(lab: Lab) -> None:
    left = 1

    def decide(seen: Answer) -> JudgedGuest:
        nonlocal left
        if left:
            lab.run(f"qm set {VM} --description changed-{left}")
            left -= 1
        return decided(seen)

    assert transaction(lab).apply(WANTED, decide).done
    left = 10
    with pytest.raises(HomelabError, match="changed from elsewhere 3 times"):
        transaction(lab).apply(WANTED, decide)


def test_a_vm_that_is_gone_is_named_and_its_note_goes(lab: Lab) -> None:
    transaction(lab).apply(WANTED, decided)
    (lab.root / f"etc/pve/nodes/{NODE}/qemu-server/{VM}.conf").unlink()
    with pytest.raises(HomelabError, match="no node of its host's cluster has it"):
        transaction(lab).apply(WANTED, decided)
    transaction(lab).revert(WANTED)
    assert not (lab.root / f"etc/pve/homelab/qemu-{VM}").exists()
