"""homelab/vm/plan.py: what a VM is to have for its cards, what stands against it, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from homelab.facts.guests import CardUser, GuestConfig
from homelab.findings import JudgedGuest
from homelab.properties import same, strings
from homelab.vm import plan, preview, refusals
from homelab.vm.cards import VmCard, Wish
from remote_scripts.notes.guest_note import Note, identity
from remote_scripts.reading.guests import _lines_of_vm
from tests.rows import rows
from tests.unit.hosts import desktop

FIRST = VmCard("first", "first", "0000:01:00")
SECOND = VmCard("second", "second", "0000:41:00")
OWN = VmCard("first", "first", "0000:01:00", take_over=True)
PARTS = "0000:01:00.0;0000:01:00.1"
Q35 = {"name": "Sandbox", "machine": "pc-q35-9.2", "bios": "ovmf", "memory": "32768"}
MAPPINGS = (
    "gpu0\n\tmap id=10de:2204,iommugroup=1,node=pve,path=0000:01:00\n\tmap id=10de:2204,node=pve2,path=0000:41:00\n"
)
FACTS = desktop(guests={"running": [], "configs": [], "mappings": MAPPINGS}, cluster={"node": "pve"})
DEVICES = {f"0000:{slot}.0": slot for slot in ("01:00", "41:00", "05:00")} | {"0000:01:00.1": "sound"}


def wish(*cards: VmCard, **more: Any) -> Wish:
    return Wish("sandbox", 103, list(cards), **more)


class Vm:
    """A VM's configuration, and what is noted of it, as a run leaves both."""

    def __init__(self, config: dict[str, str]) -> None:
        self.config, self.note, self.devices = dict(config), Note(), dict(DEVICES)

    @property
    def base(self) -> dict[str, str]:
        return self.note.base(self.config, self.devices)

    def planned(self, *cards: VmCard, **more: Any) -> JudgedGuest:
        """By what a reading of the host passes on: an option that is set and not read would be set again for ever."""
        lines = _lines_of_vm({"": [f"{key}: {value}" for key, value in self.config.items()]})
        config = GuestConfig("vm", 103, lines).options
        seen = plan.SeenVm(config, self.note.base(config, self.devices), self.note.originals)
        return plan.judge_vm(seen, wish(*cards, **more), FACTS)

    def up(self, *cards: VmCard, half: bool = False, **more: Any) -> dict[str, str]:
        decided = self.planned(*cards, **more)
        assert decided.refusals == []
        self.set_to(decided.options, half=half)
        return self.config

    def destroy(self) -> dict[str, str]:
        self.set_to({})
        return self.config

    def set_to(self, options: dict[str, str | None], *, half: bool = False) -> None:
        base = self.base
        target = {**{key: base.get(key) for key in self.note.values}, **options}
        self.note = self.note.of_change(self.config, self.devices, options, target, "p/s/sandbox")
        for key, value in [*target.items()][: len(target) // 2 if half else None]:
            self.config.pop(key, None)
            if value is not None:
                self.config[key] = value
        if not half:
            self.note = self.note.after_change(options)


@pytest.mark.parametrize(
    ("card", "value"),
    [
        (FIRST, "mapping=first,pcie=1"),
        (VmCard("g", "g", "0000:01:00", x_vga=True, rombar=False), "mapping=g,pcie=1,rombar=0,x-vga=1"),
        (VmCard("g", "g", "0000:01:00", by_address=True, romfile="a.rom", pcie=False), "host=0000:01:00,romfile=a.rom"),
    ],
)
def test_a_card_becomes_a_hostpci_value(card: VmCard, value: str) -> None:
    assert card.in_place_of("") == value


def test_cards_get_the_lowest_free_numbers_and_keep_them() -> None:
    vm = Vm({**Q35, "hostpci0": "0000:05:00.0"})
    vm.up(FIRST, SECOND)
    assert vm.config["hostpci1"] == "mapping=first,pcie=1" and vm.config["hostpci2"] == "mapping=second,pcie=1"
    vm.up(SECOND)
    assert "hostpci1" not in vm.config and vm.config["hostpci2"] == "mapping=second,pcie=1"
    vm.up(FIRST, SECOND)
    assert vm.config["hostpci1"] == "mapping=first,pcie=1"


BY_ADDRESS = dataclasses.replace(FIRST, by_address=True)


@rows("card", [FIRST, OWN, BY_ADDRESS, dataclasses.replace(OWN, by_address=True)])
@rows("other", [{}, {"hostpci0": "0000:05:00.0"}])
def test_a_card_that_its_owner_has_moved_to_another_number_stays_there(card: VmCard, other: dict[str, str]) -> None:
    vm = Vm(Q35)
    vm.up(card)
    vm.config = moved = Q35 | other | {"hostpci3": vm.config["hostpci0"]}
    assert vm.planned(card).change == {} and vm.destroy() == moved


def test_an_exchanged_card_takes_the_number_that_is_free() -> None:
    vm = Vm(Q35)
    vm.up(SECOND)
    assert vm.planned(FIRST).change == {"hostpci0": "mapping=first,pcie=1"}
    vm.up(FIRST)
    assert vm.planned(SECOND, FIRST).change == {"hostpci1": "mapping=second,pcie=1"}


def test_a_usb_device_by_a_mapping_of_that_name_is_no_card() -> None:
    assert Vm(Q35 | {"usb0": "mapping=first"}).planned(FIRST).change == {"hostpci0": "mapping=first,pcie=1"}


def test_the_machine_model_is_changed_where_that_is_asked_for_alone() -> None:
    assert list(Vm(Q35).planned(FIRST, machine="q35").change) == ["hostpci0"]
    vm = Vm({"machine": "pc-i440fx-9.2"})
    no_pcie = dataclasses.replace(FIRST, pcie=False)
    assert list(vm.planned(no_pcie).change) == ["hostpci0"]
    vm.up(FIRST, machine="q35")
    assert vm.planned(no_pcie).change == {"hostpci0": "mapping=first", "machine": "pc-i440fx-9.2"}


def test_a_property_that_the_settings_no_longer_have_goes() -> None:
    vm = Vm(Q35)
    assert vm.up(dataclasses.replace(OWN, rombar=False))["hostpci0"] == "mapping=first,pcie=1,rombar=0"
    assert vm.planned(OWN).change == {"hostpci0": "mapping=first,pcie=1"}


def test_cards_keep_their_hostpci_numbers_on_a_node_with_swapped_slots() -> None:
    vm = Vm(Q35)
    vm.up(FIRST, SECOND)
    there = [VmCard("first", "first", SECOND.slot), VmCard("second", "second", FIRST.slot)]
    assert vm.planned(*there).change == {} == vm.planned(*there[::-1]).change


def test_what_is_as_wanted_already_stays_somebody_elses() -> None:
    decided = Vm(Q35 | {"hostpci0": "pcie=1,mapping=first"}).planned(FIRST)
    assert (decided.options, decided.change, decided.refusals) == ({}, {}, [])


def test_only_what_has_to_change_changes_and_comes_back() -> None:
    config = Q35 | {"balloon": "2048", "machine": "pc-i440fx-9.2", "vga": "std", "hookscript": "local:snippets/a.pl"}
    vm = Vm(config)
    vm.up(FIRST, machine="q35", display="none")
    assert vm.config == config | {"hostpci0": "mapping=first,pcie=1", "machine": "q35", "balloon": "0", "vga": "none"}
    assert vm.planned(FIRST, machine="q35", display="none").change == {}
    vm.up(machine="q35", display="none")
    assert vm.config == config | {"machine": "q35", "vga": "none"}
    assert vm.destroy() == config and vm.note.values == {}


@pytest.mark.parametrize("config", [{}, {"balloon": "0"}, {"balloon": "32768"}])
def test_memory_that_is_fixed_already_is_left_alone(config: dict[str, str]) -> None:
    assert list(Vm(Q35 | config).planned(FIRST).options) == ["hostpci0"]


@pytest.mark.parametrize("later", [{"hostpci0": "mapping=first,pcie=1,x-vga=1", "balloon": "1024"}, {}])
def test_what_somebody_else_has_changed_since_is_not_taken_back(later: dict[str, str]) -> None:
    vm = Vm(Q35 | {"balloon": "2048"})
    vm.up(FIRST)
    vm.config = Q35 | later
    assert vm.destroy() == Q35 | later


@rows("before", [{}, {"hostpci0": "0000:01:00,pcie=1"}])
@rows("value", ["mapping=first,pcie=1", "mapping=first,pcie=1,rombar=0", "mapping=other"])
def test_while_a_value_is_replaced_the_vm_may_have_either(before: dict[str, str], value: str) -> None:
    vm = Vm(Q35 | before)
    vm.up(OWN)
    vm.up(dataclasses.replace(OWN, rombar=False), half=True)
    vm.config["hostpci0"] = value
    assert vm.destroy() == Q35 | ({"hostpci0": value} if "other" in value else before)


@rows(("case", "by_hand", "cards", "expected"), [
    ("with a screen and a ROM", {"hostpci0": "0000:01:00,pcie=1,x-vga=1,romfile=3060.rom"}, [OWN], {"hostpci0": "mapping=first,pcie=1,x-vga=1,romfile=3060.rom"}),
    ("with ids and a mediated device",
        {"hostpci2": "host=01:00,sub-vendor-id=0x1043,mdev=nvidia-63,rombar=0"}, [OWN],
        {"hostpci2": "mapping=first,sub-vendor-id=0x1043,mdev=nvidia-63,rombar=0"},
    ),
    ("options before the address", {"hostpci0": "pcie=1,host=01:00.0"}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
    ("by a mapping of the same name", {"hostpci0": "mapping=first,x-vga=1"}, [OWN], {"hostpci0": "mapping=first,x-vga=1"}),
    ("the settings say otherwise",
        {"hostpci0": "01:00,pcie=1,x-vga=1,romfile=old.rom"},
        [VmCard("first", "first", "0000:01:00", take_over=True, pcie=False, romfile="new.rom", driver="keep")],
        {"hostpci0": "mapping=first,x-vga=1,romfile=new.rom,driver=keep"},
    ),
    ("a line for each function",
        {"hostpci0": "01:00.1,pcie=1", "hostpci1": "0000:01:00.0,pcie=1,x-vga=1", "hostpci2": "05:00.0"}, [OWN],
        {"hostpci1": "mapping=first,pcie=1,x-vga=1", "hostpci2": "05:00.0"},
    ),
    # Of a slot that holds others, too, a mapping offers the graphics function alone (ADR 12).
    ("a line for each function of a slot that it shares",
        {"hostpci0": "01:00.0,pcie=1,romfile=a.rom", "hostpci1": "01:00.1,pcie=1,romfile=b.rom"}, [dataclasses.replace(OWN, slot=PARTS)],
        {"hostpci0": "mapping=first,pcie=1,romfile=a.rom", "hostpci1": "01:00.1,pcie=1,romfile=b.rom"},
    ),
    ("all functions of it in one line",
        {"hostpci0": f"{PARTS},pcie=1"}, [dataclasses.replace(OWN, slot=PARTS, by_address=True)], {"hostpci0": f"{PARTS},pcie=1"},
    ),
    ("all functions in one line", {"hostpci0": "01:00.0;01:00.1,pcie=1"}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
    ("by its address all the same",
        {"hostpci0": "01:00,pcie=1,x-vga=1"}, [VmCard("first", "first", "0000:01:00", take_over=True, by_address=True)], {"hostpci0": "01:00,pcie=1,x-vga=1"},
    ),
    ("a card that nobody gave it", {}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
])  # fmt: skip
@rows("half", [False, True])
def test_a_line_set_by_hand_is_taken_over_and_put_back(
    case: str, by_hand: dict[str, str], cards: list[VmCard], expected: dict[str, str], half: bool
) -> None:
    vm = Vm(Q35 | by_hand)
    if half:
        vm.up(*cards, half=True)
    assert vm.up(*cards) == Q35 | expected
    again = vm.planned(*cards)
    assert (again.change, again.refusals) == ({}, [])
    third = VmCard("third", "third", "0000:61:00")
    vm.up(*cards, third)
    assert {key: value for key, value in vm.config.items() if "third" not in value} == Q35 | expected
    vm.up(*cards)
    if half:
        other = Vm(vm.config)
        other.note = vm.note
        other.set_to({}, half=True)
        vm = other
    assert vm.destroy() == Q35 | by_hand and vm.note.values == {}


@pytest.mark.parametrize("anew", ["hostpci0", "hostpci3"])
@pytest.mark.parametrize("by_hand", [{"hostpci0": "01:00.0,pcie=1", "hostpci1": "01:00.1"}, {}])
def test_a_line_that_its_owner_has_set_anew_is_what_comes_back(by_hand: dict[str, str], anew: str) -> None:
    vm = Vm(Q35 | by_hand)
    vm.up(OWN)
    vm.config = later = Q35 | {anew: "01:00,pcie=1,romfile=better.rom"}
    later = dict(later)
    assert any("put back as it is" in line for line in vm.planned(OWN).remarks)
    assert vm.up(OWN) == Q35 | {anew: "mapping=first,pcie=1,romfile=better.rom"}
    assert vm.destroy() == later


@pytest.mark.parametrize("by_hand", [{}, {"hostpci0": "01:00,pcie=1"}])
@pytest.mark.parametrize("half", [False, True])
def test_a_line_of_homelabs_that_its_owner_has_edited_doesnt_come_back(by_hand: dict[str, str], half: bool) -> None:
    vm = Vm(Q35 | by_hand)
    vm.up(OWN)
    vm.config["hostpci0"] = edited = "mapping=first,pcie=1,x-vga=1"
    if half:
        vm.set_to({"hostpci0": "mapping=first,pcie=1"}, half=True)
        vm.config["hostpci0"] = edited
    vm.set_to({"hostpci0": "mapping=first,pcie=1"})
    assert vm.destroy() == Q35 | by_hand


@pytest.mark.parametrize("more", [{}, {"hostpci0": "mapping=first,pcie=1", "hostpci3": "01:00.1"}])
def test_an_original_is_kept_though_its_owner_takes_the_option_away_or_adds_one(more: dict[str, str]) -> None:
    vm = Vm(Q35 | {"hostpci0": "01:00,pcie=1"})
    vm.up(OWN)
    vm.config = Q35 | more
    vm.up(OWN)
    assert vm.note.originals["hostpci0"] == "01:00,pcie=1"


@pytest.mark.parametrize("line", ["mapping=first,pcie=1,romfile=b.rom", "01:00,pcie=1"])
def test_a_device_isnt_put_back_beside_a_line_that_gives_it(line: str) -> None:
    vm = Vm(Q35 | {"hostpci0": "01:00.1", "hostpci2": "01:00.0,pcie=1"})
    vm.up(OWN)
    vm.config = Q35 | {"hostpci2": line}
    assert vm.destroy() == Q35 | {"hostpci2": line}


@pytest.mark.parametrize("more", [{"hostpci2": "01:00.0,pcie=1"}, {"hostpci5": "mapping=second"}])
def test_a_line_that_is_back_already_and_another_cards_dont_keep_a_device_away(more: dict[str, str]) -> None:
    by_hand = {"hostpci0": "01:00.1", "hostpci2": "01:00.0,pcie=1"}
    vm = Vm(Q35 | by_hand)
    vm.up(OWN, SECOND)
    vm.config = Q35 | {"hostpci2": vm.config["hostpci2"]} | more
    assert vm.destroy() == Q35 | by_hand | more


def test_of_two_cards_one_that_its_owner_gives_anew_leaves_the_others_line() -> None:
    by_hand = {"hostpci0": "01:00,pcie=1", "hostpci1": "41:00,pcie=1,x-vga=1"}
    vm, both = Vm(Q35 | by_hand), (OWN, dataclasses.replace(SECOND, take_over=True))
    vm.up(*both)
    vm.config |= (anew := {"hostpci0": "01:00,pcie=1,romfile=b.rom"})
    vm.up(*both)
    assert vm.destroy() == Q35 | by_hand | anew


def test_an_address_that_is_another_devices_by_now_is_not_put_back() -> None:
    """There it may be the host's own network card."""
    vm = Vm(Q35 | {"hostpci0": "01:00.0,pcie=1,x-vga=1", "hostpci1": "01:00.1"})
    vm.up(OWN)
    vm.devices |= {"0000:03:00.0": "01:00", "0000:01:00.0": "a network card"}
    del vm.devices["0000:01:00.1"]
    assert vm.planned(dataclasses.replace(OWN, slot="0000:03:00")).change == {}, "it is given as its owner gave it"
    assert vm.destroy() == Q35


def test_an_address_without_a_device_is_put_back_while_none_is_there() -> None:
    line = {"hostpci0": "0000:99:00.0,pcie=1"}
    note = Note().of_change(line, {}, {"hostpci0": "mapping=x"}, {"hostpci0": "mapping=x"}, "p/s/a")
    assert note.base({"hostpci0": "mapping=x"}, {}) == line
    assert note.base({"hostpci0": "mapping=x"}, {"0000:99:00.0": "a network card"}) == {}


def test_a_mapping_by_hand_is_used_instead_of_a_second_one() -> None:
    config = Q35 | {"hostpci1": "mapping=gpu0,pcie=1,x-vga=1"}
    (error,) = Vm(config).planned(OWN).refusals
    assert "set mapping: gpu0 for the host's gpus.first" in error.next
    named = Vm(config).planned(VmCard("first", "gpu0", "0000:01:00", take_over=True))
    assert (named.options, named.refusals) == ({}, [])
    assert Vm(config).planned(SECOND).refusals == []
    vm = Vm(Q35)
    vm.up(VmCard("first", "gpu0", "0000:01:00"))
    assert vm.planned(FIRST).refusals == [], "it was given under its former name"


def test_what_this_program_wrote_by_address_takes_no_yes() -> None:
    vm = Vm(Q35)
    vm.up(BY_ADDRESS)
    assert vm.up(FIRST) == Q35 | {"hostpci0": "mapping=first,pcie=1"}


@rows(("case", "line", "card", "said"), [
    ("without a yes", "01:00,pcie=1,x-vga=1", FIRST, "vms.sandbox.gpus: {gpu: first, takeOver: true}"),
    ("a mapping, without a yes", "mapping=first,romfile=a.rom", FIRST, "takeOver: true"),
    ("by address, otherwise", "01:00,pcie=1,x-vga=1", VmCard("first", "first", "0000:01:00", by_address=True), "takeOver: true"),
    ("with another device",
        "0000:01:00;0000:02:00.0,pcie=1,x-vga=1", OWN,
        "`qm set 103 --hostpci0 '0000:01:00,pcie=1,x-vga=1' --hostpci1 '0000:02:00.0,pcie=1'`",
    ),
    ("with functions that a mapping doesn't offer", f"{PARTS},pcie=1", dataclasses.replace(OWN, slot=PARTS), "byAddress: true"),
    ("with more functions", "01:00,pcie=1", VmCard("first", "first", "0000:01:00.0;0000:01:00.1", take_over=True), "gpus.first.functions"),
])  # fmt: skip
def test_a_line_set_by_hand_is_left_alone_with_the_way_on(case: str, line: str, card: VmCard, said: str) -> None:
    (error,) = Vm(Q35 | {"hostpci0": line}).planned(card).refusals
    assert said in error.next and line in error.found and "--delete" not in error.next


ROMS = {"hostpci0": "01:00.0,pcie=1,romfile=a.rom", "hostpci1": "01:00.1,pcie=1,romfile=b.rom"}


@rows(
    ("lines", "card", "lost"),
    [
        (ROMS, OWN, "romfile=b.rom"),
        (ROMS, dataclasses.replace(OWN, by_address=True), "romfile=b.rom"),
        (ROMS, dataclasses.replace(OWN, slot=PARTS, by_address=True), "romfile=b.rom"),
        ({"hostpci0": "mapping=first,pcie=1", "hostpci1": "01:00.1,rombar=0"}, OWN, "rombar=0"),
        (ROMS, dataclasses.replace(OWN, romfile="c.rom"), None),
        ({"hostpci0": "01:00.0,pcie=1,x-vga=1", "hostpci1": "01:00.1,rombar=1,pcie=1"}, OWN, None),
    ],
)
def test_lines_of_one_card_become_one_where_none_loses_a_property(
    lines: dict[str, str], card: VmCard, lost: str | None
) -> None:
    """What the settings say themselves is no loss."""
    errors = Vm(Q35 | lines).planned(card).refusals
    assert [error.found.partition(": ")[0] for error in errors] == (["hostpci1"] if lost else [])
    for error in errors:
        assert lost is not None and lost in error.why and "take first out of vms.sandbox.gpus" in error.next


def test_lines_that_an_earlier_run_has_taken_over_are_refused_no_more() -> None:
    """The VM doesn't have them: nobody can change them, and they come back as they were."""
    seen = plan.SeenVm(Q35 | {"hostpci0": "mapping=first,pcie=1,romfile=a.rom"}, Q35 | ROMS, {**ROMS})
    decided = plan.judge_vm(seen, wish(OWN), FACTS)
    assert (decided.change, decided.refusals) == ({}, [])


def test_another_mapping_for_another_function_of_the_slot_stays_beside() -> None:
    """Its owner has one for the card's sound."""
    sound = "sound\n\tmap id=10de:22e8,iommugroup=2,node=pve,path=0000:01:00.1\n"
    config = Q35 | {"hostpci0": "mapping=sound", "hostpci1": "mapping=first,pcie=1"}
    facts = dataclasses.replace(FACTS, guests=dataclasses.replace(FACTS.guests, mappings=sound))
    decided = plan.judge_vm(plan.SeenVm(config, config, {}), wish(dataclasses.replace(OWN, slot=PARTS)), facts)
    assert (decided.change, decided.refusals) == ({}, [])


@rows(
    ("lines", "card", "waits"),
    [
        ({"hostpci0": "01:00,pcie=1,romfile=a.rom"}, OWN, ["hostpci0"]),
        ({"hostpci0": "0000:01:00.0,pcie=1"}, dataclasses.replace(OWN, slot=PARTS), ["hostpci0"]),
        ({"hostpci0": "0000:01:00.0,pcie=1"}, OWN, []),  # it gets the sound, too
        ({"hostpci0": "01:00.0,pcie=1", "hostpci1": "01:00.1"}, OWN, []),
        ({"hostpci0": "01:00,pcie=1"}, dataclasses.replace(OWN, x_vga=True), []),
        ({}, OWN, []),
    ],
)
def test_a_vm_that_runs_isnt_restarted_for_the_form_of_its_option(
    lines: dict[str, str], card: VmCard, waits: list[str]
) -> None:
    decided = Vm(Q35 | lines).planned(card)
    assert decided.waits == waits and "hostpci0" in decided.change
    running = dataclasses.replace(decided, runs=True, will_run=True)
    config = GuestConfig("vm", 103, "name: Sandbox\n")
    assert ("it isn't restarted" in preview._head("sandbox", config, running)) is bool(waits)
    vm = Vm(Q35 | lines)
    vm.up(card)
    assert vm.planned(card).waits == waits, "until its next start"


@rows(
    ("line", "slot", "more"),
    [
        ("0000:01:00.0,pcie=1", "0000:01:00", "0000:01:00.1; to keep it at 0000:01:00.0, name that in gpus.first.func"),
        ("0000:01:00.0,pcie=1", "0000:01:00.0", ""),
        ("01:00,pcie=1", "0000:01:00", ""),
    ],
)
def test_a_card_of_which_the_owner_has_given_a_part_is_said_to_become_all_of_it(
    line: str, slot: str, more: str
) -> None:
    remarks = Vm(Q35 | {"hostpci0": line}).planned(dataclasses.replace(OWN, slot=slot)).remarks
    assert [f"than its owner's line gives: {more}" in one for one in remarks if "gets more" in one] == [True] * bool(
        more
    )


def test_a_hookscript_of_the_owners_is_named() -> None:
    hook = {"hookscript": "local:snippets/gpu.sh"}
    assert any("local:snippets/gpu.sh" in one for one in Vm(Q35 | hook).planned(FIRST).remarks)
    of_handover = Vm(Q35 | {"hookscript": "local:snippets/homelab-handover.sh"}).planned(FIRST)
    without_card = Vm(Q35 | hook).planned()
    assert not any("hookscript" in one for one in [*of_handover.remarks, *without_card.remarks])


def user(vmid: int = 104, *, running: bool = False, onboot: bool = False) -> CardUser:
    return CardUser(vmid=vmid, name="gaming", running=running, onboot=onboot)


@rows(
    ("line", "closed"),
    [
        ("mapping=first,pcie=1,x-vga=1", True),
        ("mapping=first,romfile=a.rom", True),
        ("mapping=first,mdev=nvidia-63", True),
        ("mapping=first,pcie=1,rombar=1,x-vga=0", False),
        ("mapping=first", False),  # it gains pcie=1, as the settings have it
    ],
)
def test_a_mapping_by_hand_loses_no_option_without_a_yes(line: str, closed: bool) -> None:
    vm = Vm(Q35 | {"hostpci0": line})
    assert [error.found for error in vm.planned(FIRST).refusals] == [f"hostpci0: {line}, set by hand"] * closed
    assert vm.planned(OWN).refusals == []
    if not closed:
        vm.up(FIRST)
        assert vm.planned(FIRST).change == {}


def test_what_was_given_and_changed_since_is_drift_where_it_loses_nothing() -> None:
    vm = Vm(Q35)
    vm.up(FIRST)
    vm.config["hostpci0"] = "mapping=first"
    decided = vm.planned(FIRST)
    assert (decided.change, decided.refusals) == ({"hostpci0": "mapping=first,pcie=1"}, [])
    vm.config["hostpci0"] = "01:00,pcie=1"
    assert len(vm.planned(FIRST).refusals) == 1
    vm.config |= {"hostpci0": "mapping=first,pcie=1", "hostpci3": "01:00,pcie=1"}
    # A person's turn, as nothing of it changes.
    assert len(vm.planned(FIRST).met) == 1 and vm.planned(FIRST).refusals == [], "the VM would have the card twice"


def test_a_lock_stands_against_a_change_and_is_named_with_its_remedy() -> None:
    (error,) = Vm(Q35 | {"lock": "backup"}).planned(FIRST).refusals
    assert "qm unlock 103" in str(error)


@pytest.mark.parametrize(
    ("config", "users", "said"),
    [
        (Q35, [user(running=True)], "VM 104 (gaming) runs with it"),
        (Q35 | {"onboot": "1"}, [user(onboot=True)], None),
        (Q35, [user(103, running=True)], None),
        (Q35, [user()], None),
    ],
)
def test_who_has_a_card_already(config: dict[str, str], users: list[CardUser], said: str | None) -> None:
    errors = [*refusals.of_users(config, wish(FIRST), {"first": users}, FACTS)]
    assert [said in str(error) for error in errors] == [True] * bool(said) if said else errors == []
    told = refusals.remarks(config, wish(FIRST), {"first": users}, {}, FACTS)
    is_off = any(not other.running and other.vmid != 103 for other in users)
    assert any("which doesn't run with it now, has first as well" in remark for remark in told) is is_off


def test_i440fx_is_refused_for_pci_express_alone() -> None:
    (error,) = Vm({"name": "old"}).planned(FIRST).refusals
    assert "vms.sandbox.machine: q35" in error.next
    assert Vm({}).planned(dataclasses.replace(FIRST, pcie=False)).refusals == []
    assert Vm({}).planned(FIRST, machine="q35").refusals == []
    assert Vm({"hostpci0": "01:00"}).planned(OWN).refusals == []
    assert Vm({}).planned().refusals == []


def test_what_a_card_means_for_a_vm_is_said() -> None:
    (remark,) = Vm({"machine": "q35"}).planned(FIRST).remarks
    assert "OVMF is recommended" in remark
    assert Vm({"machine": "q35"}).planned().remarks == Vm(Q35).planned(FIRST).remarks == []


@pytest.mark.parametrize(
    ("config", "of_it"),
    [
        ({"smbios1": "serial=2,uuid=1-A", "meta": "ctime=1"}, "1-a"),
        ({"smbios1": "serial=2", "meta": "ctime=1"}, "ctime=1"),
        ({}, ""),
    ],
)
def test_a_vms_identity_is_its_uuid_or_else_the_time_when_it_was_made(config: dict[str, str], of_it: str) -> None:
    assert identity(config) == of_it


def test_options_are_read_as_text_without_the_digest() -> None:
    assert strings({"digest": "1a", "cores": 2, "name": "a"}) == {"cores": "2", "name": "a"}


@rows(
    ("one", "other", "equal"),
    [
        ("mapping=a,pcie=1", "pcie=1,mapping=a", True),
        ("01:00,pcie=1", "host=0000:01:00,pcie=1", True),
        ("0000:01:00.0;01:00.1", "01:00.0;0000:01:00.1", True),
        ("mapping=a", "mapping=b", False),
        ("mapping=a", None, False),
        (None, None, True),
    ],
)
def test_values_that_mean_the_same(one: str | None, other: str | None, equal: bool) -> None:
    assert same("hostpci0", one, other) is equal
