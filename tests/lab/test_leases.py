"""A VM with two cards: whatever it gives back in one run, it is shut down once and started once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider import gpu_lease
from homelab.provider.gpu_lease import GpuLeaseWork
from homelab.provider.vm_cards import VmCardsWork
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox.machine import Machine
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.vm_cards import VmCards
from homelab.shapes import BootSeen, ShutdownInputs
from lab import Lab
from tests import forked_agent
from tests.lab.test_proxmox_api import host_of
from tests.sampling import sample
from tests.waiting import wait_until

NODE, VM = "pve", 103
CARDS = {"first": "0000:1d:00", "second": "0000:1e:00"}
SHUTDOWN = ShutdownInputs(timeout=5, otherwise="fail")
ONE_RESTART = ["shutdown", "start"]


class KilledError(BaseException):
    pass


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("two-identical", state=tmp_path_factory.mktemp("leases") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Both cards are bound and mapped."""
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    forked_agent.in_place_of_what_is_sent(monkeypatch, shared_lab)
    for name, slot in CARDS.items():
        for function in "01":
            shared_lab.rebind(f"{slot}.{function}", "vfio-pci")
        group = (shared_lab.root / f"sys/bus/pci/devices/{slot}.0/iommu_group").resolve().name
        entry = f"id=10de:2204,iommugroup={group},node={NODE},path={slot},subsystem-id=1458:403b"
        shared_lab.run(f"pvesh create /cluster/mapping/pci --id {name} --map {entry}")
    yield shared_lab
    shared_lab.reset()


def texts(lab: Lab, *cards: str | dict[str, object], leaves: bool = False) -> dict[str, str]:
    """The stack's configuration. ``cards``: that the VM is to have from now on; ``leaves``: the VM is taken out of it."""
    host = host_of(lab).model_dump(mode="json", by_alias=True)
    host["gpus"] = {name: {"match": "10de:2204", "address": slot} for name, slot in CARDS.items()}
    vms: dict[str, object] = {"another": {"host": NODE, "vmid": 104, "gpus": []}}
    vms |= {} if leaves else {"sandbox": {"host": NODE, "vmid": VM, "gpus": list(cards)}}
    return {"hosts": json.dumps({NODE: host}), "vms": json.dumps(vms)}


def cards() -> VmCards.Inputs:
    given = [{"gpu": name, "mapping": name, "slot": slot} for name, slot in CARDS.items()]
    return VmCards.Inputs(
        host=NODE, node=NODE, vm="sandbox", vmid=VM, shutdown=SHUTDOWN, cards=given, display="keep", shared_onboot=False, power="keep",
        instance="", goes_away=False, boot=BootSeen(id="b", stopped=[], at=0),
    )  # fmt: skip


def given(lab: Lab) -> VmCards.Outputs:
    """The VM runs with both cards, which it has from this program, and without its balloon."""
    lab.run(f"qm stop {VM}; qm set {VM} --balloon 1024")
    made = VmCardsWork(texts(lab, *CARDS)).create(cards())
    done = lab.run(f"qm start {VM}; qm status {VM}")
    assert "running" in done.stdout, done.stderr
    return made


def lose(stack: dict[str, str], *cards: str) -> list[BaseException | None]:
    """Their leases are deleted side by side, as the engine does."""
    together = threading.Barrier(len(cards))

    def deleted(card: str) -> BaseException | None:
        inputs = GpuLease.Inputs(
            host=NODE, node=NODE, mapping=card, slot=CARDS[card], vm="sandbox", vmid=VM, shutdown=SHUTDOWN
        )
        together.wait()
        try:
            GpuLeaseWork(stack).delete(inputs, GpuLease.Outputs(by_hand=False))
        except (HomelabError, KilledError) as error:
            return error
        return None

    with ThreadPoolExecutor(len(cards)) as pool:
        return list(pool.map(deleted, cards))


def conf(lab: Lab) -> str:
    return (lab.root / f"etc/pve/qemu-server/{VM}.conf").read_text().partition("[")[0]


def runs(lab: Lab) -> bool:
    return "running" in lab.run(f"qm status {VM}").stdout


def power(lab: Lab, mark: Any) -> list[str]:
    """The requests that concern the VM's power, in their order."""
    calls = [call for call in lab.api_calls(mark) if call["method"] == "POST" and "/status/" in call["path"]]
    return [call["path"].rpartition("/")[2] for call in calls]


@pytest.mark.parametrize("leaves", [True, False], ids=["the VM leaves the stack", "it stays, without cards"])
def test_a_vm_that_loses_both_cards_is_restarted_once(lab: Lab, leaves: bool) -> None:
    made, mark, stack = given(lab), lab.mark(), texts(lab, leaves=leaves)
    assert lose(stack, *CARDS) == [None, None]
    assert power(lab, mark) == ONE_RESTART and runs(lab)
    assert "hostpci" not in conf(lab)
    # What had to change for the cards came back with the same restart: nothing is left to its VmCards.
    assert "balloon: 1024" in conf(lab)
    VmCardsWork(stack).delete(cards(), made)
    assert power(lab, mark) == ONE_RESTART


def test_a_vm_that_keeps_a_card_keeps_what_that_needs(lab: Lab) -> None:
    given(lab)
    mark = lab.mark()
    assert lose(texts(lab, "second"), "first") == [None]
    assert power(lab, mark) == ONE_RESTART and runs(lab)
    assert "balloon: 0" in conf(lab) and "first" not in conf(lab) and "mapping=second" in conf(lab)


def test_a_value_that_a_killed_run_was_about_to_replace_goes_too(lab: Lab) -> None:
    """It gave the card by its address, and a mapping was noted in its place; which options are those of a card that is given by its address, VmCards
    says alone.
    """
    given(lab)
    by_address = f"{CARDS['first']},pcie=1"
    lab.run(f"qm stop {VM}; qm set {VM} --hostpci0 {by_address}")
    note = lab.root / f"var/lib/homelab/ledger/vm/{VM}"
    noted = json.loads(note.read_text())
    noted["record"]["hostpci0"]["was"] = by_address
    note.write_text(json.dumps(noted))
    assert lose(texts(lab, {"gpu": "second", "byAddress": True}), "first") == [None]
    assert CARDS["first"] not in conf(lab) and "mapping=second" in conf(lab)


def test_a_vm_that_does_not_go_off_is_asked_once_and_keeps_both_cards(lab: Lab) -> None:
    given(lab)
    before, mark = conf(lab), lab.mark()
    lab.fault("guest-ignores-shutdown", True)
    errors = lose(texts(lab, leaves=True), *CARDS)
    assert ["it is still on" in str(error) for error in errors] == [True, True]
    assert power(lab, mark) == ["shutdown"] and runs(lab)
    assert conf(lab) == before and "delete" not in lab.run(f"qm pending {VM}").stdout


@pytest.mark.parametrize("step", sample(["_shut_down", "start", "_runs_again"], 1, "a VM's restart"))
def test_a_run_that_is_killed_between_is_finished_by_the_next_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """After the change is written, while the VM is off, and when it runs again: the state has both leases still."""
    given(lab)
    # A shutdown in the very second of the note counts as one that came after it.
    stopped = int(time.time())
    wait_until(lambda: int(time.time()) > stopped)
    mark, stack = lab.mark(), texts(lab, leaves=True)

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as once:
        once.setattr(Machine, step, killed)
        (error,) = lose(stack, "first")
        assert isinstance(error, KilledError)
    monkeypatch.setattr(gpu_lease, "_TURNS", {})
    assert lose(stack, *CARDS) == [None, None]
    assert power(lab, mark) == ONE_RESTART and runs(lab)
    assert "hostpci" not in conf(lab) and "balloon: 1024" in conf(lab)
    assert "delete" not in lab.run(f"qm pending {VM}").stdout
    assert not (lab.root / f"var/lib/homelab/ledger/power/{VM}").exists()
