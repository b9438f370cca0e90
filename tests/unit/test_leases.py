"""Which card a lease takes out of its VM, and which one its owner had given it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider import gpu_lease
from homelab.provider.gpu_lease import GpuLeaseWork
from homelab.provider.peers import PeerNotes
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.gpu_lease import GpuLease
from homelab.shapes import ShutdownInputs
from tests.unit.test_created_vms import texts
from tests.unit.test_new_guests import error_of

SHUTDOWN = ShutdownInputs(timeout=5, otherwise="fail")
NOBODYS = GpuLease.Inputs(host="pve1", node="pve1", mapping="card", slot="0000:01:00")
LEASE = GpuLease.Inputs(
    host="pve1", node="pve1", mapping="card", slot="0000:01:00", vm="a", vmid=103, shutdown=SHUTDOWN
)
SHARED = {"pve1": {"gpus": {"card": {"match": "10de:2b85", "use": "shared"}}, "nvidia": {}}}
TWO = {"pve1": {"gpus": {"card": {"match": "10de:2b85"}, "second": {"match": "10de:2684"}}}}


def entry(*cards: str, vmid: int = 103) -> dict[str, Any]:
    return {"a": {"host": "pve1", "vmid": vmid, "gpus": [*cards]}}


@pytest.fixture(autouse=True)
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lease, "_TURNS", {})


class Recording(GpuLeaseWork):
    """`error`: what taking the card out of the VM ends with."""

    error: Exception | None = None

    def __init__(self, vms: dict[str, Any], about: dict[str, Any]) -> None:
        super().__init__(texts(vms, about).texts)
        self.done: list[str] = []

    def _take_out(self, inputs: GpuLease.Inputs, vmid: int, shutdown: ShutdownInputs) -> None:
        self.done.append("taken out")
        if self.error:
            raise self.error

    def _give_back(self, inputs: GpuLease.Inputs, vmid: int, shutdown: ShutdownInputs) -> None:
        self.done.append("given back")


@pytest.mark.parametrize(
    ("vms", "about", "by_hand", "done"),
    [
        ({}, {}, False, ["taken out", "given back"]),
        ({}, {}, True, ["given back"]),
        ({}, SHARED, False, ["given back"]),
        (entry("card"), {}, False, []),
        (entry("card"), {}, True, []),
        (entry(), {}, False, ["taken out"]),
        (entry(), {}, True, []),
        (entry("second"), TWO, False, ["taken out"]),
        (entry("card", vmid=104), {}, False, ["taken out", "given back"]),
    ],
)
def test_a_card_is_taken_out_that_the_vm_is_not_to_keep(
    vms: dict[str, Any], about: dict[str, Any], by_hand: bool, done: list[str]
) -> None:
    work = Recording(vms, about)
    work.delete(NOBODYS, GpuLease.Outputs(by_hand=by_hand))
    assert work.done == []
    work.delete(LEASE, GpuLease.Outputs(by_hand=by_hand))
    assert work.done == done


@pytest.mark.parametrize("kind", [NotThereError, ElsewhereError])
def test_a_vm_that_has_gone_has_taken_its_card_along(kind: type[Any]) -> None:
    work = Recording({}, {})
    work.error = error_of(kind)
    work.delete(LEASE, GpuLease.Outputs(by_hand=False))
    assert work.done == ["taken out", "given back"]


def test_what_has_failed_for_one_card_of_a_vm_is_not_tried_for_the_next() -> None:
    work = Recording({}, {})
    work.error = HomelabError(wanted="off", found="on", why="", next="")
    for _ in range(2):
        with pytest.raises(HomelabError, match="on"):
            work.delete(LEASE, GpuLease.Outputs(by_hand=False))
    assert work.done == ["taken out"]


GIVEN = {"hostpci0": "mapping=card,pcie=1", "smbios1": "uuid=1"}


def noted(before: str | None = None, ours: str = "mapping=card,pcie=1", uuid: int = 1) -> dict[str, Any]:
    return {"identity": f"uuid={uuid}", "record": {"hostpci0": {"ours": ours, "before": before}}, "restore": {}}


@pytest.mark.parametrize(
    ("config", "here", "there", "by_hand"),
    [
        ({}, {}, {}, False),
        ({"hostpci0": "mapping=other"}, {}, {}, False),
        (GIVEN, noted(), {}, False),
        (GIVEN, {}, {}, True),
        (GIVEN, noted("0000:01:00,pcie=1"), {}, True),  # taken over
        (GIVEN, noted("0000:03:00,pcie=1"), {}, False),
        (GIVEN, noted(uuid=2), {}, True),  # another VM's
        (GIVEN, noted(ours="mapping=other"), {}, True),
        ({**GIVEN, "hostpci1": "0000:01:00.1"}, noted(), {}, True),
        (GIVEN, {}, {"pve2": noted()}, False),
        (GIVEN, {}, {"pve2": noted("01:00.0")}, True),
        (None, {}, {}, False),
    ],
)
def test_what_isnt_noted_its_owner_has_given(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, str] | None, here: Any, there: Any, by_hand: bool
) -> None:
    asked: list[str] = []

    class Machine:
        def config(self) -> dict[str, str]:
            if config is None:
                raise error_of(NotThereError)
            return config

    def noted_by(*_: Any) -> Any:
        return here

    def noted_by_peers(*_: Any) -> PeerNotes:
        asked.append("peers")
        return PeerNotes(there, {"pve3": "off"} if silent else {})

    work: Any = GpuLeaseWork(texts({}, {}).texts)
    monkeypatch.setattr(work, "machine", lambda *_: Machine())
    monkeypatch.setattr(gpu_lease, "noted_by", noted_by)
    monkeypatch.setattr(gpu_lease, "noted_by_peers", noted_by_peers)
    silent = False
    assert work.create(NOBODYS).by_hand is False
    assert work.create(LEASE).by_hand is by_hand
    silent = True
    if by_hand:  # a node that doesn't answer may have noted it
        with pytest.raises(HomelabError, match="to know what pve3 noted about VM 103"):
            work.create(LEASE)
    else:
        assert work.create(LEASE).by_hand is False
    assert bool(asked) is (by_hand or bool(there))


@pytest.mark.parametrize(("about", "by_hand"), [({}, True), (SHARED, False)])
def test_of_a_card_that_is_handed_over_the_vms_own_settings_say_it(
    monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], by_hand: bool
) -> None:
    work: Any = GpuLeaseWork(texts({}, about).texts)
    monkeypatch.setattr(work, "_by_hand", lambda _: True)
    found = work.create(LEASE)
    assert found.by_hand is by_hand
    # Once a VM has it that stays as it was; until then it is looked at.
    before = GpuLease.Outputs(by_hand=not by_hand)
    assert work.update(LEASE, LEASE, before) == before and work.update(LEASE, NOBODYS, before) == found


ALL: Any = {
    "hostpci0": {"ours": "mapping=card", "before": None, "slot": "0000:01:00"},
    "hostpci1": {"ours": "mapping=second", "before": None, "slot": "0000:03:00"},
    "vga": {"ours": "none", "before": "std"},
}
WITH_ALL = {"hostpci0": "mapping=card", "hostpci1": "mapping=second", "vga": "none", "smbios1": "uuid=1"}
ADDRESS = {"hostpci0": "0000:01:00", "smbios1": "uuid=1"}
BY_ADDRESS = {"hostpci0": {"ours": "0000:01:00", "before": None}}
SECOND_BY_ADDRESS = {"a": {"host": "pve1", "vmid": 103, "gpus": [{"gpu": "second", "byAddress": True}]}}


@pytest.mark.parametrize(
    ("vms", "about", "config", "record", "guest", "change"),
    [
        ({}, TWO, GIVEN, {}, "a", ({}, ["hostpci0"])),
        ({}, TWO, ADDRESS, {}, "a", None),  # its owner's
        ({}, TWO, ADDRESS, BY_ADDRESS, "a", ({}, ["hostpci0"])),
        ({}, TWO, ADDRESS, BY_ADDRESS, "b", ({}, ["hostpci0"])),
        ({}, TWO, {"smbios1": "uuid=1"}, {}, "a", None),
        ({}, TWO, {"smbios1": "uuid=1"}, BY_ADDRESS, "a", ({}, [])),  # of a killed run: it may wait for the next start
        ({}, TWO, WITH_ALL, ALL, "a", ({"vga": "std"}, ["hostpci0", "hostpci1"])),
        (entry("second"), TWO, WITH_ALL, ALL, "a", ({"vga": "std"}, ["hostpci0"])),
        (entry("second", vmid=104), TWO, WITH_ALL, ALL, "a", ({"vga": "std"}, ["hostpci0", "hostpci1"])),
        ({}, TWO, WITH_ALL, ALL, "b", ({}, ["hostpci0"])),  # another entry keeps the rest
        (SECOND_BY_ADDRESS, TWO, WITH_ALL, ALL, "a", ({}, ["hostpci0"])),
        ({}, TWO, GIVEN | {"smbios1": "uuid=2"}, ALL, "a", ({}, ["hostpci0"])),  # another VM's note
    ],
)
@pytest.mark.parametrize("left_off", [False, True])
def test_the_card_goes_with_what_came_for_it_and_the_rest_stays(
    monkeypatch: pytest.MonkeyPatch,
    vms: dict[str, Any],
    about: dict[str, Any],
    config: dict[str, str],
    record: Any,
    guest: str,
    change: tuple[dict[str, str], list[str]] | None,
    left_off: bool,
) -> None:
    done: list[Any] = []

    def noted_by(*_: Any) -> Any:
        return {"identity": "uuid=1", "record": record, "restore": {}, "guest": guest} if record else {}

    def converge(_inputs: Any, _machine: Any, target: Any, keys: list[str], *_: Any) -> None:
        wanted = target(config)
        assert {*wanted.keys} <= {*keys}
        done.append((wanted.values, wanted.delete))

    machine = SimpleNamespace(config=lambda: config, was_left_off=lambda: left_off)
    work: Any = GpuLeaseWork(texts(vms, about).texts)
    monkeypatch.setattr(gpu_lease, "noted_by", noted_by)
    monkeypatch.setattr(work, "machine", lambda *_: machine)
    monkeypatch.setattr(work, "converge", converge)
    work._take_out(LEASE, 103, SHUTDOWN)
    assert done == ([change] if change else [({}, [])] * left_off)


@pytest.mark.parametrize(
    ("note", "given_back"),
    [
        ({}, False),
        ({"guest": "a"}, True),
        ({"guest": "b"}, False),
        ({"guest": "a", "stack": "p/s"}, True),
        ({"guest": "a", "stack": "q/s"}, False),
    ],
)
def test_a_vm_that_has_left_is_given_back_what_this_stack_has_noted(
    monkeypatch: pytest.MonkeyPatch, note: dict[str, str], given_back: bool
) -> None:
    done: list[Any] = []

    def noted_by(*_: Any) -> Any:
        return note

    monkeypatch.setattr(gpu_lease, "noted_by", noted_by)
    monkeypatch.setattr(gpu_lease, "give_back_noted", lambda *about: done.append(about[2:4]))
    work = GpuLeaseWork(texts({}, {}).texts, "urn:pulumi:s::p::homelab:gpu:Lease::a")
    work._give_back(LEASE, 103, SHUTDOWN)
    assert done == [(103, note)] * given_back
