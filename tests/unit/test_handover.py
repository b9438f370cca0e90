"""use: shared, what it means for a host: settings, gates, the plan, drift, and what is said while a card is away."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.host import gates, handover, plan
from homelab.settings import Host, Vm, parse
from homelab.show import reading as show
from homelab.show import tree as shown
from homelab.vm.preview import wish_of
from remote_scripts.cards import card_handover
from remote_scripts.layers import handover as layer
from remote_scripts.notes.card import Card
from remote_scripts.notes.record import State
from tests.rows import rows
from tests.unit.hosts import conf, desktop, device, driven, settings, told, tree, values, vm_note
from tests.unit.test_doctor import diagnose_host, reading

SHARED: dict[str, Any] = {"rtx5090": {"match": "10de:2b85", "use": "shared"}}
VM = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["rtx5090"]})
NOTED = {"vm": "103", "boot": "1", "since": 1700000000, "why": "in use by ollama (PID 7)"}


def host(**changes: Any) -> Host:
    return settings(SHARED, **({"nvidia": {"driver": "580"}} | changes))


def facts(qemu: str = "9.1.2", **changes: Any) -> HostFacts:
    return desktop(packages={"qemu-server": qemu}, **changes)


# -- settings --------------------------------------------------------------------------------------------------------
@rows(
    ("card", "of_host", "said"),
    [
        ({"match": "1002:7550"}, {}, "use: shared is for NVIDIA's cards"),
        ({"allowConsole": True}, {}, "expected no allowConsole"),
        ({"allowContainers": [901]}, {}, "expected no allowContainers"),
        ({"passthroughTest": True}, {}, "expected no passthroughTest"),
        ({"reset": "bus"}, {}, "expected no reset"),
        ({"functions": ["0000:01:00.0"]}, {}, "expected no functions"),
        ({}, {"nvidia": None}, "use: shared needs nvidia, also for a driver that is installed already"),
    ],
)
def test_what_does_not_go_with_it_is_said(card: dict[str, Any], of_host: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings({"rtx5090": {**SHARED["rtx5090"], **card}}, **({"nvidia": {"driver": "580"}} | of_host))


def test_a_vm_and_containers_may_have_the_card() -> None:
    one = values(SHARED, nvidia={"driver": "580"})
    vms = {"gaming": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    containers = {"ai": {"host": "pve", "ctid": 901, "gpus": ["rtx5090"]}}
    texts = {"hosts": json.dumps({"pve": one}), "vms": json.dumps(vms), "containers": json.dumps(containers)}
    assert parse(texts).hosts["pve"].hands_over == ["rtx5090"]
    twice = {
        **vms,
        "other": {"host": "pve", "vmid": 104, "gpus": ["rtx5090"]},
        "cardless": {"host": "pve", "vmid": 105},
    }
    both = parse({**texts, "vms": json.dumps(twice)})
    assert handover.takers(both.hosts["pve"], both.hosts["pve"].vms) == {"rtx5090": [103, 104]}
    alone = {**one, "gpus": {"rtx5090": {"match": "10de:2b85"}}}
    with pytest.raises(HomelabError, match="one VM at a time can have it: give it to one, or set use: shared"):
        parse({"hosts": json.dumps({"pve": alone}), "vms": json.dumps(twice)})


# -- gates and plan --------------------------------------------------------------------------------------------------
def test_the_card_stays_with_its_driver_at_boot_and_the_iommu_is_on() -> None:
    want = plan.wanted(facts(), host())
    assert (want.functions, want.vfio_words) == ({}, "") and "amd_iommu=on" in want.iommu_words
    card = handover.card("rtx5090", want.gpus["rtx5090"], [103])
    assert card == Card(
        name="rtx5090", functions={"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}, vms=(103,)
    )
    assert card.gpu == "0000:01:00.0"


@pytest.mark.parametrize(
    ("use", "bound", "offered", "handed"),
    [("vm", True, True, False), ("shared", False, True, True), ("lxc", False, False, False)],
)
def test_a_change_of_use_is_a_change_of_one_plan(use: str, bound: bool, offered: bool, handed: bool) -> None:
    """From any to any: what the next boot binds, whether VMs can have it at all, and what hands it over each follow from the use alone."""
    one = settings({"rtx5090": {"match": "10de:2b85", "use": use}}, nvidia={"driver": "580"})
    for driver in ("vfio-pci", "nvidia"):
        want = plan.wanted(facts(devices=driven(driver)), one)
        assert bool(want.vfio_words) is bound
        assert ("amd_iommu=on" in want.iommu_words) is offered
        assert bool(handover.takers(one, [VM])) is handed


@pytest.mark.parametrize(
    ("qemu", "hostpci"),
    [
        ("9.0.25", "mapping=rtx5090,driver=keep,pcie=1"),
        ("8.4.6", "mapping=rtx5090,pcie=1"),
        ("", "mapping=rtx5090,pcie=1"),
    ],
)
def test_proxmox_is_told_to_leave_the_driver_alone_where_it_can_be_told(qemu: str, hostpci: str) -> None:
    want = plan.wanted(facts(qemu), host())
    (card,) = wish_of("gaming", VM, host(), want.gpus).cards
    assert card.in_place_of("") == hostpci
    assert plan.wanted(facts(qemu), settings()).gpus["rtx5090"]["keep"] is False  # a VM's own: Proxmox VE unbinds it


def test_the_hosts_screen_and_a_card_of_another_maker_are_refused() -> None:
    screen = [{**asdict(one), "boot_vga": int(one.address == "0000:01:00.0")} for one in desktop().devices]
    (error,) = tree(facts(devices=screen), host()).refusals
    assert "not to be the host's console" in error.wanted
    amd = settings({"igpu": {"address": "0000:0b:00", "use": "shared"}}, nvidia={"driver": "580"})
    assert "it is not one of NVIDIA's, as a whole" in [error.found for error in tree(facts(), amd).refusals]


def test_without_groups_the_boot_has_failed() -> None:
    want = plan.wanted(facts(), host())
    running = facts(iommu={"tables": ["IVRS"], "groups": 0, "kernel_log": ""})
    assert "IOMMU groups in /sys/kernel/iommu_groups" in [error.wanted for error in plan.verify(running, host(), want)]


TAKER = "name: gaming\nhostpci0: 0000:01:00,driver=keep"


def on_nvidia(running: bool, **changes: Any) -> HostFacts:
    """A host whose driver has the card that VM 103 names."""
    guests = {"running": [103] * running, "configs": [conf("vm", 103, TAKER)]}
    on_driver = driven("nvidia", "0000:01:00.0")
    return facts(devices=on_driver, nvidia_minors={"0000:01:00.0": 0}, guests=guests, **changes)


def test_a_container_has_it_although_a_vm_names_it() -> None:
    found = on_nvidia(running=False)
    want = plan.wanted(found, host())
    assert container_plan.cards(found, want.gpus, {"gaming": VM}).slots == {0: "0000:01:00"}


@pytest.mark.parametrize(
    ("running", "noted", "enabled", "free"),
    [(False, True, True, True), (True, True, True, False), (False, False, True, False), (False, True, False, False)],
)
def test_a_card_that_was_shared_becomes_the_containers_alone_by_one_up(
    running: bool, noted: bool, enabled: bool, free: bool
) -> None:
    """The VM still names it when the run begins, and loses it by that run: it must be off, have it from this program, and its hookscript must be at work."""
    ledger = vm_note(103, TAKER, "hostpci0") if noted else {}
    found = on_nvidia(running, handover={"enabled": enabled}, ledger=ledger)
    alone = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}}, nvidia={"driver": "580"})
    slots = container_plan.cards(found, plan.wanted(found, alone).gpus, {}).slots
    assert slots == ({0: "0000:01:00"} if free else {})


def test_a_card_that_is_taken_in_turn_is_taken_from_no_vm_by_a_run() -> None:
    lines = "machine: q35\nname: gaming\nhostpci0: 0000:01:00,driver=keep"
    guests = {"running": [104], "configs": [conf("vm", 104, lines), conf("vm", 103, "machine: q35")]}
    for one, found in ((host(), ["VM 104 (gaming) runs with it"]), (settings(), [])):
        seen = facts(guests=guests, ledger=vm_note(104, lines, "hostpci0"))
        errors = told(seen, one, {"gaming": VM}, stack="p/s")[1]
        assert [error.found for error in errors] == found
        assert all(seen.card("0000:01:00") in error.wanted for error in errors), "as an `up` names it"


# -- drift, and what is away -----------------------------------------------------------------------------------------
def test_what_hands_over_drifts_where_it_is_ours() -> None:
    want = plan.wanted(facts(), host())
    lost = {"enabled": False, "lost_hooks": ["103"]}
    managed = [{"layer": "handover", "path": "/usr/local/sbin/homelab-handover", "state": "changed"}]
    assert plan.drift(facts(handover={"enabled": False}), want)["handover"] == []
    assert plan.drift(facts(handover=lost, managed=managed), want)["handover"] == [
        "/usr/local/sbin/homelab-handover was changed by hand",
        "homelab-handover.service or its timer is not enabled",
        "VM 103 has lost the hookscript that hands it its card: the host's timer sets it again within a minute. Leave "
        "the VM off until then, or containers that use the card hang. To be rid of it for good, take the card out of "
        "the VM in the settings and run `pulumi up`",
    ]


def test_while_a_card_is_away_nothing_is_changed() -> None:
    assert not [*handover.refused(facts())]
    (error,) = handover.refused(facts(handover={"away": "gpus.rtx5090 is with VM 103 since then"}))
    assert error.found == "gpus.rtx5090 is with VM 103 since then"
    assert "shut down the VM that has it (gpus.rtx5090 is with VM 103 since then)" in error.next


@rows(
    ("state", "said"),
    [
        ("VM", "with VM 103 since 2023-11-1"),
        ("HELD", "in use by ollama (PID 7)"),
        ("STUCK", "in use by ollama (PID 7)"),
        ("DEAD", "in use by ollama (PID 7)"),
        ("DRAINING", "on its way to or from VM 103 (DRAINING)"),
    ],
)
def test_show_and_doctor_say_where_it_is(state: str, said: str) -> None:
    found = facts(handover={"cards": {"rtx5090": NOTED | {"state": state}}}, guests={"running": []})
    assert said in handover.state_text(found, "rtx5090")
    assert handover.state_text(replace(found, boot_id="2"), "rtx5090") == ""
    cards = show.of_reading(found, host())
    wanted = show.planned(cards, tree(found, host(), {"gaming": VM}))
    lines = [node.line for node in shown.of_host("pve", cards, wanted).walk()]
    assert any(line.startswith("in turn: ") and said in line for line in lines), lines
    assert "vfio-pci" not in "".join(lines), "it stays with the host's driver until the VM starts"
    report = diagnose_host(reading(facts=found), host())
    assert any(said in cell for row in report.tables[0].rows for cell in row)
    about = [one for one in report.findings if "handed over whole" in one.wanted]
    assert [said in one.found for one in about] == [True] * (state in ("HELD", "STUCK", "DEAD"))


def test_every_state_that_a_host_notes_is_shown_by_the_doctor() -> None:
    """By what the host's own program notes: a new state needs its words."""
    for state in set(get_args(State)) - {"HOST"}:
        found = facts(handover={"cards": {"rtx5090": NOTED | {"state": state}}}, guests={"running": []})
        (row,) = diagnose_host(reading(facts=found), host()).tables[0].rows
        assert handover.state_text(found, "rtx5090") in row[1]


def test_what_the_doctor_says_of_the_timer_is_so() -> None:
    timer = layer.SERVICE.timer.splitlines()
    assert {"OnUnitInactiveSec=1min", "OnBootSec=2min"} <= {*timer}
    assert "AccuracySec=1s" in timer, "by default, systemd starts it up to a minute later"
    assert (card_handover.RETRY_SECONDS, card_handover.PAUSE_SECONDS) == (1800, 600), "says docs/cards-in-turn.md"


def test_where_a_card_is_whose_note_cant_be_read_is_not_known() -> None:
    found = facts(handover={"cards": {"rtx5090": NOTED | {"state": "HELD"}}})
    unread = "/var/lib/homelab/handover/{}.state: it is no file"
    other, own = (replace(found, unreadable=[unread.format(name)]) for name in ("other", "rtx5090"))
    assert "HELD since 2023" in handover.state_text(other, "rtx5090")
    assert "it is no file" in handover.state_text(own, "rtx5090")
    diagnose_host(reading(facts=found), host())


def test_only_a_whole_card_of_nvidias_is_handed_over() -> None:
    others = [
        device("0000:41:00.0", "1002:744c", "030000", 30),
        device("0000:42:00.0", "10de:26b9", "030200", 31, vfs=1),
        device("0000:42:00.4", "10de:26b9", "030200", 32, physfn="0000:42:00.0"),
        device("0000:43:00.0", "1002:744c", "030000", 33),
        device("0000:43:00.1", "10de:22e8", "040300", 33),
    ]
    places = {"0000:01:00": 0, "0000:41:00": 1, "0000:42:00": 0, "0000:42:00.4": 1, "0000:43:00": 1}
    card = host().gpus["rtx5090"]
    assert {place: len([*gates.handed_over(desktop(*others), "a", card, place)]) for place in places} == places


# -- what the host can't do without ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "name"), [("storage", "/ (ext4 on /dev/sda2)"), ("network", "the network (vmbr0)")])
def test_a_card_in_turn_never_takes_the_hosts_disk_or_network_along(kind: str, name: str) -> None:
    usb = device("0000:01:00.2", "10de:1ada", "0c0330", 16, driver="xhci_hcd")
    carried = {"kind": kind, "name": name, "devices": ["0000:01:00.2"], "trouble": ""}
    found = [
        error.found for error in gates.check(facts(devices=asdict(desktop(usb))["devices"], vital=[carried]), host())[1]
    ]
    assert any(f"0000:01:00.2 USB controller [10de:1ada] carries {name}" in one for one in found), found
