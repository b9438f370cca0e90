"""homelab/vm/config.py: what a VM is to have for its cards, what stands against it, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.host.facts import CardUser, Guests
from homelab.properties import same
from homelab.shapes import Record
from homelab.vm.config import (
    Change,
    VmCard,
    Wish,
    change_to,
    check,
    drift,
    identity,
    is_ours,
    left_behind,
    may_have_record,
    not_put_back,
    noted_of,
    recorded,
    settled,
    strings,
    taken_over,
    undo,
    wanted,
)

FIRST = VmCard("first", "first", "0000:01:00")
SECOND = VmCard("second", "second", "0000:41:00")
OWN = VmCard("first", "first", "0000:01:00", take_over=True)
Q35 = {"name": "Sandbox", "machine": "pc-q35-9.2", "bios": "ovmf", "memory": "32768"}


def wish(*cards: VmCard, **more: Any) -> Wish:
    return Wish("sandbox", 103, list(cards), **more)


def planned(config: dict[str, str], wanted: Wish, record: Record | None = None) -> Change:
    made, restore = recorded(config, wanted, record or {})
    return change_to(config, made, restore)


@pytest.mark.parametrize(
    ("card", "value"),
    [
        (FIRST, "mapping=first,pcie=1"),
        (VmCard("g", "g", "0000:01:00", x_vga=True, rombar=False), "mapping=g,pcie=1,rombar=0,x-vga=1"),
        (VmCard("g", "g", "0000:01:00", by_address=True, romfile="a.rom", pcie=False), "host=0000:01:00,romfile=a.rom"),
        (VmCard("g", "g", "0000:01:00", legacy_igd=True, pcie=False), "mapping=g,legacy-igd=1"),
    ],
)
def test_a_card_becomes_a_hostpci_value(card: VmCard, value: str) -> None:
    assert card.hostpci == value


@pytest.mark.parametrize("card", [FIRST, OWN, VmCard("first", "first", "0000:01:00", by_address=True, take_over=True)])
def test_a_line_of_the_users_where_the_cards_own_one_was_stays(card: VmCard) -> None:
    """The user has moved the card to another number, and given its number to another device."""
    record: Record = {"hostpci0": {"ours": card.hostpci, "before": None, "slot": card.slot}}
    moved = {**Q35, "hostpci0": "0000:05:00.0", "hostpci1": card.hostpci}
    change = planned(moved, wish(card), record)
    assert "hostpci0" not in change.keys
    assert "hostpci0" not in wanted(strings(moved), wish(card), record)


def test_cards_get_the_lowest_free_numbers_and_keep_them() -> None:
    config = {**Q35, "hostpci0": "0000:05:00.0"}
    made, _ = recorded(config, wish(FIRST, SECOND), {})
    assert {key: entry["ours"] for key, entry in made.items()} == {
        "hostpci1": "mapping=first,pcie=1",
        "hostpci2": "mapping=second,pcie=1",
    }
    # The first goes: the second stays where it is. It comes back, by another name: to the number that is free.
    now = {**config, "hostpci2": "mapping=second,pcie=1", "hostpci1": "mapping=first,pcie=1"}
    left, restore = recorded(now, wish(SECOND), made)
    assert (list(left), list(restore)) == (["hostpci2"], ["hostpci1"])
    renamed = VmCard("big", "big", "0000:41:00")
    assert planned(now, wish(renamed), left).values == {"hostpci2": "mapping=big,pcie=1"}
    assert planned(now, wish(renamed), made) == Change({"hostpci2": "mapping=big,pcie=1"}, ["hostpci1"])


def test_a_usb_device_by_a_mapping_of_that_name_is_no_card() -> None:
    assert planned(Q35 | {"usb0": "mapping=first"}, wish(FIRST)) == Change({"hostpci0": "mapping=first,pcie=1"})


def test_the_machine_model_is_changed_where_that_is_asked_for_alone() -> None:
    old = {"machine": "pc-i440fx-9.2"}
    assert planned(old, wish(dataclasses.replace(FIRST, pcie=False))).keys == ["hostpci0"]
    assert planned(Q35, wish(FIRST, machine="q35")).keys == ["hostpci0"]
    made, _ = recorded(old, wish(FIRST, machine="q35"), {})
    after = done(old, change_to(old, made, {}))
    assert recorded(after, wish(FIRST, machine="q35"), made) == (made, {})
    assert change_to(after, *recorded(after, wish(FIRST), made)) == Change({"machine": "pc-i440fx-9.2"})


def test_a_number_that_another_card_gets_is_not_taken_away() -> None:
    former: Record = {"hostpci0": {"ours": "mapping=second,pcie=1", "before": None}}
    new: Record = {"hostpci0": {"ours": "mapping=first,pcie=1", "before": None}}
    config = {"hostpci0": "mapping=second,pcie=1"}
    assert change_to(config, new, former) == Change({"hostpci0": "mapping=first,pcie=1"})
    assert change_to(config, {"hostpci0": {"ours": "", "before": "01:00.1"}}, {}) == Change({}, ["hostpci0"])
    assert Change(delete=["hostpci0"]) and not Change()


def test_a_former_card_doesnt_get_a_number_that_another_card_has() -> None:
    """The cards of two VMs were exchanged, and one comes back."""
    now = {**Q35, "hostpci0": "mapping=first,pcie=1"}
    record: Record = {"hostpci0": {"ours": "mapping=second,pcie=1", "before": None, "slot": "0000:41:00"}}
    assert planned(now, wish(SECOND, FIRST), record).values == {"hostpci1": "mapping=second,pcie=1"}
    # The exchange itself: the other VM has taken it by then, and its number is free.
    assert planned(Q35, wish(FIRST), record).values == {"hostpci0": "mapping=first,pcie=1"}


def test_cards_keep_their_hostpci_numbers_on_a_node_with_swapped_slots() -> None:
    """A mapping is the card of that name on every node; a slot means another card there."""
    made, _ = recorded(Q35, wish(FIRST, SECOND), {})
    config = Q35 | {key: str(entry["ours"]) for key, entry in made.items()}
    there = [VmCard("first", "first", SECOND.slot), VmCard("second", "second", FIRST.slot)]
    for cards in (there, there[::-1]):
        moved, restore = recorded(config, wish(*cards), made)
        assert not change_to(config, moved, restore)
        assert {key: entry["slot"] for key, entry in moved.items()} == {"hostpci0": SECOND.slot, "hostpci1": FIRST.slot}


def test_a_card_whose_option_was_moved_by_hand_is_given_once() -> None:
    made, _ = recorded(Q35, wish(FIRST), {})
    config = Q35 | {"hostpci3": "mapping=first,pcie=1"}
    now, restore = recorded(config, wish(FIRST), made)
    assert not change_to(config, now, restore)


def test_there_are_sixteen_numbers() -> None:
    config = Q35 | {f"hostpci{number}": f"0000:{number + 2:02x}:00" for number in range(16)}
    with pytest.raises(Exception, match="all 16 are taken"):
        recorded(config, wish(FIRST), {})


def test_what_is_as_wanted_already_stays_somebody_elses() -> None:
    config = Q35 | {"hostpci0": "pcie=1,mapping=first"}
    made, _ = recorded(config, wish(FIRST), {})
    assert made == {}
    assert not planned(config, wish(FIRST))


def test_only_what_has_to_change_changes_and_comes_back() -> None:
    config = {
        "memory": "8192",
        "balloon": "2048",
        "machine": "pc-i440fx-9.2",
        "vga": "std",
        "bios": "ovmf",
        "cores": "2",
        "hookscript": "local:snippets/somebodys.pl",
    }
    wanted = wish(FIRST, machine="q35", display="none")
    made, _ = recorded(config, wanted, {})
    change = change_to(config, made, {})
    assert change.values == {"hostpci0": "mapping=first,pcie=1", "machine": "q35", "balloon": "0", "vga": "none"}
    after = config | change.values
    assert not planned(after, wanted, made)
    assert undo(after, made) == Change(
        {"machine": "pc-i440fx-9.2", "balloon": "2048", "vga": "std"}, delete=["hostpci0"]
    )
    # The card goes, the rest of the wish stays: the balloon comes back.
    less, restore = recorded(after, wish(machine="q35", display="none"), made)
    assert change_to(after, less, restore) == Change({"balloon": "2048"}, ["hostpci0"])


@pytest.mark.parametrize("config", [{}, {"balloon": "0"}, {"balloon": "32768"}])
def test_memory_that_is_fixed_already_is_left_alone(config: dict[str, str]) -> None:
    assert list(planned(Q35 | config, wish(FIRST)).values) == ["hostpci0"]


def test_what_somebody_else_has_changed_since_is_not_taken_back() -> None:
    record: Record = {
        "hostpci0": {"ours": "mapping=first,pcie=1", "before": None},
        "balloon": {"ours": "0", "before": "2048"},
    }
    assert undo({"hostpci0": "mapping=first,pcie=1,x-vga=1", "balloon": "1024"}, record) == Change()
    assert undo({}, record) == Change()


@pytest.mark.parametrize("before", [None, "0000:01:00"])
def test_while_a_value_is_replaced_the_vm_may_have_either(before: str | None) -> None:
    earlier, new = "mapping=first,pcie=1", "mapping=first,pcie=1,rombar=0"
    record: Record = {"hostpci0": {"ours": earlier, "before": before, "slot": FIRST.slot}}
    without_rom = wish(dataclasses.replace(FIRST, rombar=False))
    made, _ = recorded({"hostpci0": earlier}, without_rom, record)
    assert made["hostpci0"] == {**record["hostpci0"], "ours": new, "was": earlier}
    for value in (earlier, new):
        config = {"hostpci0": value}
        back = Change({"hostpci0": before}) if before else Change(delete=["hostpci0"])
        assert undo(config, made) == back and not_put_back(config, made) == [] and drift(config, made) == []
        assert noted_of(config, {"record": made, "restore": {}, "identity": ""}) == (made, {})
    assert undo({"hostpci0": "mapping=other"}, made) == Change()
    # Taken back, and tried again; the new value is in force; another one is wanted before that.
    assert recorded({"hostpci0": earlier}, without_rom, made)[0] == made
    assert recorded({"hostpci0": new}, without_rom, made)[0] == settled(made)
    assert (
        recorded({"hostpci0": earlier}, wish(dataclasses.replace(FIRST, x_vga=True)), made)[0]["hostpci0"]["was"]
        == earlier
    )


@pytest.mark.parametrize(
    ("config", "noted", "same"),
    [
        ({"smbios1": "uuid=1-a", "meta": "ctime=1"}, "uuid=1-A,serial=2", True),
        ({"smbios1": "uuid=1-b", "meta": "ctime=1"}, "uuid=1-a", False),
        ({"meta": "ctime=1"}, "ctime=1", True),
        ({"meta": "ctime=2"}, "ctime=1", False),
        ({}, "", True),
    ],
)
def test_what_is_noted_of_another_vm_of_the_same_id_doesnt_count(
    config: dict[str, str], noted: str, same: bool
) -> None:
    record: Record = {
        "hostpci0": {"ours": "mapping=first,pcie=1", "before": None},
        "balloon": {"ours": "0", "before": "2048"},
    }
    vm = config | {"hostpci0": "mapping=first,pcie=1", "balloon": "1024"}
    kept = {"hostpci0": record["hostpci0"]} if same else {}
    assert noted_of(vm, {"record": record, "restore": record, "identity": noted}) == (kept, kept)
    assert noted_of(vm, None) == ({}, {})
    assert identity(config | {"smbios1": "uuid=1-c"}) == "uuid=1-c"


@pytest.mark.parametrize(
    ("config", "may"),
    [
        ({"hostpci3": "mapping=first"}, True),
        ({"balloon": "0"}, True),
        ({"vga": "none"}, True),
        (Q35 | {"balloon": "1024", "vga": "std"}, False),
    ],
)
def test_a_vm_may_have_something_of_this_programs_by_its_options(config: dict[str, str], may: bool) -> None:
    assert may_have_record(config) is may


def test_options_are_read_as_text_without_the_digest() -> None:
    assert strings({"digest": "1a", "cores": 2, "name": "a"}) == {"cores": "2", "name": "a"}


MAPPINGS = (
    "gpu0\n\tmap id=10de:2204,iommugroup=1,node=pve,path=0000:01:00\n\tmap id=10de:2204,node=pve2,path=0000:41:00\n"
)


def asked(config: dict[str, str], wanted: Wish, record: Record | None = None) -> tuple[list[HomelabError], list[str]]:
    guests = Guests(running=frozenset(), unlisted=[], configs=[], mappings=MAPPINGS, reservations="")
    return taken_over(config, wanted, record or {}, guests, "pve")


# What its owner gave a VM a card by -> what it becomes, with takeOver.
BY_HAND: dict[str, tuple[dict[str, str], list[VmCard], dict[str, str]]] = {
    "with a screen and a ROM": (
        {"hostpci0": "0000:01:00,pcie=1,x-vga=1,romfile=3060.rom"},
        [OWN],
        {"hostpci0": "mapping=first,pcie=1,x-vga=1,romfile=3060.rom"},
    ),
    "with ids and a mediated device": (
        {"hostpci2": "host=01:00,sub-vendor-id=0x1043,mdev=nvidia-63,rombar=0"},
        [OWN],
        {"hostpci2": "mapping=first,sub-vendor-id=0x1043,mdev=nvidia-63,rombar=0"},
    ),
    "options before the address": ({"hostpci0": "pcie=1,host=01:00.0"}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
    "by a mapping of the same name": (
        {"hostpci0": "mapping=first,x-vga=1"},
        [OWN],
        {"hostpci0": "mapping=first,x-vga=1"},
    ),
    "the settings say otherwise": (
        {"hostpci0": "01:00,pcie=1,x-vga=1,romfile=old.rom"},
        [VmCard("first", "first", "0000:01:00", take_over=True, pcie=False, romfile="new.rom", driver="keep")],
        {"hostpci0": "mapping=first,x-vga=1,romfile=new.rom,driver=keep"},
    ),
    "a line for each function": (
        {"hostpci0": "01:00.1,pcie=1", "hostpci1": "0000:01:00.0,pcie=1,x-vga=1", "hostpci2": "05:00.0"},
        [OWN],
        {"hostpci1": "mapping=first,pcie=1,x-vga=1", "hostpci2": "05:00.0"},
    ),
    "all functions in one line": ({"hostpci0": "01:00.0;01:00.1,pcie=1"}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
    "two cards in one line": (
        {"hostpci0": "01:00;41:00,pcie=1,romfile=a.rom"},
        [OWN, VmCard("second", "second", "0000:41:00", take_over=True)],
        {"hostpci0": "mapping=first,pcie=1,romfile=a.rom", "hostpci1": "mapping=second,pcie=1"},
    ),
    "by its address all the same": (
        {"hostpci0": "01:00,pcie=1,x-vga=1"},
        [VmCard("first", "first", "0000:01:00", take_over=True, by_address=True)],
        {"hostpci0": "01:00,pcie=1,x-vga=1"},
    ),
    "a card that nobody gave it": ({}, [OWN], {"hostpci0": "mapping=first,pcie=1"}),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_line_set_by_hand_is_taken_over_and_put_back(case: str) -> None:
    by_hand, cards, expected = BY_HAND[case]
    config, wanted = Q35 | by_hand, wish(*cards)
    assert asked(config, wanted)[0] == []
    record, _ = recorded(config, wanted, {})
    change = change_to(config, record, {})
    after = {key: value for key, value in (config | change.values).items() if key not in change.delete}
    assert after == Q35 | expected
    # Nothing else comes of it later, also by what the host has noted, or with another card.
    noted, _ = noted_of(after, {"record": record, "restore": {}, "identity": ""})
    assert noted == record and recorded(after, wanted, record) == (record, {}) and drift(after, record) == []
    assert asked(after, wanted, record) == ([], [])
    more = wish(*cards, VmCard("third", "third", "0000:61:00"))
    grown, left = recorded(after, more, record)
    assert (left, {key: grown[key] for key in record}) == ({}, record)
    assert not {key for key in grown if key not in record} & {*config, *after}
    back = undo(after, record)
    assert {key: value for key, value in (after | back.values).items() if key not in back.delete} == config
    # The card goes and the VM stays: the same.
    _, restore = recorded(after, wish(), record)
    assert change_to(after, {}, restore) == back


def test_changes_to_a_card_taken_over_stay_and_are_reported() -> None:
    config = Q35 | {"hostpci0": "01:00.0,pcie=1", "hostpci1": "01:00.1", "hostpci2": "05:00"}
    record, _ = recorded(config, wish(OWN), {})
    changed = Q35 | {"hostpci0": "mapping=first,pcie=1,x-vga=1", "hostpci1": "06:00", "hostpci2": "07:00"}
    assert undo(changed, record) == Change()
    assert [line.split(",")[0] for line in not_put_back(changed, record)] == [
        "hostpci0 is mapping=first",
        "hostpci1 is 06:00",
    ]
    assert not_put_back(config, record) == [], "a snapshot was returned to: it has its lines"
    assert len(not_put_back(changed, record, moved=True)) == 2
    never: Record = {"hostpci0": {"ours": "mapping=first", "before": None, "slot": FIRST.slot}}
    assert not_put_back(changed, never) == []
    assert drift(config, record)[-1] == "hostpci1 is 01:00.1 instead of not there"
    assert is_ours("hostpci1", None, {"ours": "06:00", "was": ""})


def test_of_two_cards_one_that_its_owner_gives_anew_leaves_the_others_line() -> None:
    config = Q35 | {"hostpci0": "01:00,pcie=1", "hostpci1": "41:00,pcie=1,x-vga=1"}
    both = wish(OWN, dataclasses.replace(SECOND, take_over=True))
    record, _ = recorded(config, both, {})
    later = done(config, change_to(config, record, {})) | {"hostpci0": "01:00,pcie=1,romfile=b.rom"}
    again, _ = recorded(later, both, record)
    after = done(later, change_to(later, again, {}))
    assert done(after, undo(after, again)) == config | {"hostpci0": "01:00,pcie=1,romfile=b.rom"}


@pytest.mark.parametrize("more", [{}, {"hostpci0": "mapping=first,pcie=1", "hostpci3": "01:00.1"}])
def test_an_original_is_kept_though_its_owner_takes_the_option_away_or_adds_one(more: dict[str, str]) -> None:
    record, _ = recorded(Q35 | {"hostpci0": "01:00,pcie=1"}, wish(OWN), {})
    assert recorded(Q35 | more, wish(OWN), record)[0]["hostpci0"]["before"] == "01:00,pcie=1"
    if more:
        assert undo(Q35 | more, record) == Change({"hostpci0": "01:00,pcie=1"})


def test_a_property_that_the_settings_no_longer_have_goes() -> None:
    without_rom = wish(dataclasses.replace(OWN, rombar=False))
    made, _ = recorded(Q35, without_rom, {})
    after = done(Q35, change_to(Q35, made, {}))
    assert after["hostpci0"] == "mapping=first,pcie=1,rombar=0"
    assert planned(after, wish(OWN), made).values == {"hostpci0": "mapping=first,pcie=1"}


def done(config: dict[str, str], change: Change) -> dict[str, str]:
    return {key: value for key, value in (config | change.values).items() if key not in change.delete}


@pytest.mark.parametrize("anew", ["hostpci0", "hostpci3"])
@pytest.mark.parametrize("by_hand", [{"hostpci0": "01:00.0,pcie=1", "hostpci1": "01:00.1"}, {}])
def test_a_line_that_its_owner_has_set_anew_is_what_comes_back(by_hand: dict[str, str], anew: str) -> None:
    record, _ = recorded(Q35 | by_hand, wish(OWN), {})
    later = Q35 | {anew: "01:00,pcie=1,romfile=better.rom"}
    assert "put back as it is" in asked(later, wish(OWN), record)[1][0]
    again, restore = recorded(later, wish(OWN), record)
    after = done(later, change_to(later, again, restore))
    assert after == Q35 | {anew: "mapping=first,pcie=1,romfile=better.rom"}
    assert done(after, undo(after, again)) == later and restore == {}


def test_lines_that_an_interrupted_run_has_left_are_no_new_ones() -> None:
    config = Q35 | {"hostpci0": "01:00.1", "hostpci2": "01:00.0,pcie=1"}
    record, _ = recorded(config, wish(OWN), {})
    half = {key: value for key, value in config.items() if key != "hostpci0"}
    assert recorded(half, wish(OWN), record) == (record, {})
    noted, _ = noted_of(half, {"record": record, "restore": {}, "identity": ""})
    assert recorded(half, wish(OWN), noted) == (record, {})


@pytest.mark.parametrize("line", ["mapping=first,pcie=1,romfile=b.rom", "01:00,pcie=1"])
def test_a_device_isnt_put_back_beside_a_line_that_gives_it(line: str) -> None:
    config = Q35 | {"hostpci0": "01:00.1", "hostpci2": "01:00.0,pcie=1"}
    record, _ = recorded(config, wish(OWN), {})
    changed = Q35 | {"hostpci2": line}
    assert undo(changed, record) == Change()
    assert [told.split(" before")[0] for told in not_put_back(changed, record)][0] == "hostpci0 was 01:00.1"
    halfway = Q35 | {"hostpci2": "01:00.0,pcie=1"}
    assert undo(halfway, record) == Change({"hostpci0": "01:00.1"})
    # Another card by its mapping is none that gives it.
    both, _ = recorded(config, wish(OWN, SECOND), {})
    other = Q35 | {"hostpci2": "mapping=first,pcie=1", "hostpci5": "mapping=second"}
    assert undo(other, both).values == {"hostpci0": "01:00.1", "hostpci2": "01:00.0,pcie=1"}


@pytest.mark.parametrize("where", ["another slot", "another node"])
def test_an_address_that_is_another_devices_by_now_is_not_put_back(where: str) -> None:
    """There it may be the host's own network card."""
    config = Q35 | {"hostpci0": "01:00.0,pcie=1,x-vga=1", "hostpci1": "01:00.1"}
    record, _ = recorded(config, wish(OWN), {})
    after = Q35 | {"hostpci0": "mapping=first,pcie=1,x-vga=1"}
    moved = where == "another node"
    if not moved:
        there = VmCard("first", "first", "0000:03:00", take_over=True)
        record, restore = recorded(after, wish(there), record)
        assert restore == {} and not change_to(after, record, {})
    assert undo(after, record, moved=moved) == Change({}, ["hostpci0"])
    told = not_put_back(after, record, moved=moved)
    assert [line.split(" before")[0] for line in told] == [
        "hostpci0 was 01:00.0,pcie=1,x-vga=1",
        "hostpci1 was 01:00.1",
    ]
    balloon: Record = {"balloon": {"ours": "0", "before": "2048"}}
    assert undo({"balloon": "0"}, balloon, moved=moved) == Change({"balloon": "2048"})
    assert left_behind(record | balloon) == {key: {**record[key], "before": None} for key in record} | balloon


NOT_TAKEN_OVER: dict[str, tuple[str, VmCard, str]] = {
    "without a yes": ("01:00,pcie=1,x-vga=1", FIRST, "vms.sandbox.gpus: {gpu: first, takeOver: true}"),
    "by address, otherwise": ("01:00,pcie=1,x-vga=1", VmCard("first", "first", "0000:01:00", by_address=True), "takeOver: true"),
    "with another device": (
        "0000:01:00;0000:02:00.0,pcie=1,x-vga=1",
        OWN,
        "`qm set 103 --hostpci0 '0000:01:00,pcie=1,x-vga=1' --hostpci1 '0000:02:00.0,pcie=1'`",
    ),
    "with more functions": (
        "01:00,pcie=1",
        VmCard("first", "first", "0000:01:00.0;0000:01:00.1", take_over=True),
        "gpus.first.functions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TAKEN_OVER)
def test_a_line_set_by_hand_is_left_alone_with_the_way_on(case: str) -> None:
    line, card, said = NOT_TAKEN_OVER[case]
    (error,), notes = asked(Q35 | {"hostpci0": line}, wish(card))
    assert said in error.next and line in error.found and "--delete" not in error.next
    assert notes == []


def test_a_mapping_by_hand_is_used_instead_of_a_second_one() -> None:
    config = Q35 | {"hostpci1": "mapping=gpu0,pcie=1,x-vga=1"}
    (error,), _ = asked(config, wish(OWN))
    assert "set mapping: gpu0 for the host's gpus.first" in error.next
    named = VmCard("first", "gpu0", "0000:01:00", take_over=True)
    assert asked(config, wish(named)) == ([], []) and recorded(config, wish(named), {})[0] == {}
    # Another card's, and one that this program has set under its former name.
    assert asked(config, wish(SECOND)) == ([], [])
    record: Record = {"hostpci1": {"ours": config["hostpci1"], "before": None, "slot": "0000:01:00"}}
    assert asked(config, wish(OWN), record) == ([], [])


@pytest.mark.parametrize(
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
    config = Q35 | {"hostpci0": line}
    assert [error.found for error in asked(config, wish(FIRST))[0]] == [f"hostpci0: {line}, set by hand"] * closed
    assert asked(config, wish(OWN))[0] == []
    # What this program has given, and somebody has changed since, is drift.
    record: Record = {"hostpci0": {"ours": "mapping=first,pcie=1", "before": None, "slot": "0000:01:00"}}
    assert asked(config, wish(FIRST), record) == ([], [])
    assert len(asked(Q35 | {"hostpci0": "01:00,pcie=1"}, wish(FIRST), record)[0]) == 1
    # Of a VM that has come from another node, that node may have given it.
    guests = Guests(running=frozenset(), unlisted=[], configs=[], mappings=MAPPINGS, reservations="")
    assert taken_over(config, wish(FIRST), {}, guests, "pve", certain=False) == ([], [])


def test_what_this_program_wrote_by_address_takes_no_yes() -> None:
    record: Record = {"hostpci0": {"ours": "host=0000:01:00,pcie=1", "before": None, "slot": "0000:01:00"}}
    assert asked(Q35 | {"hostpci0": "0000:01:00,pcie=1"}, wish(FIRST), record) == ([], [])


def test_drift_names_what_is_and_what_should_be() -> None:
    record: Record = {"hostpci0": {"ours": "mapping=first,pcie=1", "before": None}}
    assert drift({"hostpci0": "pcie=1,mapping=first"}, record) == []
    assert drift({"hostpci0": "mapping=other"}, record) == ["hostpci0 is mapping=other instead of mapping=first,pcie=1"]
    assert drift({}, record) == ["hostpci0 is not there instead of mapping=first,pcie=1"]


def test_remarks_name_what_a_vm_with_a_card_cant_do() -> None:
    _, notes = check(Q35 | {"parent": "before-update"}, wish(FIRST), {"first": []})
    assert any("none with RAM can be made or returned to" in note for note in notes)
    assert any("can't be migrated while it runs, nor suspended" in note for note in notes)
    assert check(Q35 | {"parent": "before-update"}, wish(), {})[1] == []


def user(vmid: int = 104, *, running: bool = False, onboot: bool = False) -> CardUser:
    return CardUser(vmid=vmid, name="gaming", running=running, onboot=onboot)


REFUSED: dict[str, tuple[dict[str, str], Wish, list[CardUser], str]] = {
    "locked": (Q35 | {"lock": "backup"}, wish(FIRST), [], "qm unlock 103"),
    "a template": (Q35 | {"template": "1"}, wish(FIRST), [], "it is a template"),
    "q35 for legacyIgd": (Q35, wish(dataclasses.replace(FIRST, legacy_igd=True)), [], "to i440fx"),
    "i440fx": ({"name": "old"}, wish(FIRST), [], "vms.sandbox.machine: q35"),
    "held": (Q35, wish(FIRST), [user(running=True)], "VM 104 (gaming) runs with it"),
    "both at boot": (Q35 | {"onboot": "1"}, wish(FIRST), [user(onboot=True)], "allowSharedOnboot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stands_against_a_change_is_named_with_its_remedy(case: str) -> None:
    config, wanted, others, said = REFUSED[case]
    errors, _ = check(config, wanted, {"first": others})
    assert len(errors) == 1
    assert said in str(errors[0])


ALLOWED: dict[str, tuple[dict[str, str], Wish, list[CardUser]]] = {
    "itself": (Q35 | {"onboot": "1"}, wish(FIRST), [user(103, running=True, onboot=True)]),
    "another one that is off": (Q35, wish(FIRST), [user()]),
    "both at boot, and accepted": (Q35 | {"onboot": "1"}, wish(FIRST, shared_onboot=True), [user(onboot=True)]),
    "i440fx without PCI Express": ({}, wish(VmCard("first", "first", "0000:01:00", pcie=False)), []),
    "i440fx for legacyIgd": ({}, wish(dataclasses.replace(FIRST, legacy_igd=True, pcie=False)), []),
    "i440fx that is to become q35": ({}, wish(FIRST, machine="q35"), []),
    "i440fx, with a line of its owner's without PCI Express": ({"hostpci0": "01:00"}, wish(OWN), []),
    "no card": ({}, wish(), []),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_does_not_stand_against_it(case: str) -> None:
    config, wanted, others = ALLOWED[case]
    assert check(config, wanted, {"first": others})[0] == []


def test_what_a_card_means_for_a_vm_is_said() -> None:
    config = {"machine": "q35", "balloon": "1024", "memory": "4096", "parent": "before-upgrade"}
    _, notes = check(config, wish(FIRST), {"first": [user()]})
    for text in (
        "OVMF is recommended",
        "balloon: 1024 becomes 0",
        "has snapshots",
        "can't be migrated",
        "which doesn't run with it now, has first as well",
    ):
        assert any(text in note for note in notes), text
    assert check(config, wish(), {})[1] == []
    assert not any(
        "doesn't run with it" in note for note in check(config, wish(FIRST), {"first": [user(running=True)]})[1]
    )


@pytest.mark.parametrize(
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
