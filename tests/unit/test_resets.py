"""What isn't fit to give (homelab/cards/unfit.py): the data, what a plan says of it and of resets, what is refused."""

from __future__ import annotations

import re
from typing import Any

from homelab.cards import remarks as card_remarks
from homelab.cards import unfit
from homelab.facts.host import HostFacts
from homelab.host import gates, plan
from tests.rows import rows
from tests.unit.hosts import desktop, device, settings


def one(ids: str, methods: str | None = "flr bus", **changes: Any) -> HostFacts:
    state = {} if methods is None else {"0000:01:00.0": {"reset_method": methods}}
    return desktop(devices=[device("0000:01:00.0", ids, "030000", 16, **changes)], card_states=state)


def notes(facts: HostFacts) -> str:
    host = settings({"gpu": {"address": "01:00"}})
    return "\n".join(card_remarks.remarks(facts, host, gates.check(facts, host)[0]))


def test_every_row_has_an_id_of_its_own_first() -> None:
    """A row behind another one that has the same ids would never count."""
    for row in unfit.rows():
        for ids in row.ids:
            assert re.fullmatch("[0-9a-f]{4}:[0-9a-f]{4}(-[0-9a-f]{4})?", ids) and ids[5:9] <= ids[-4:]
        first = row.ids[0].partition("-")[0]
        vendor, number = first.split(":")
        (found,) = desktop(devices=[device("0000:01:00.0", f"{vendor}:{number}", "030000")]).devices
        assert next(one for one in unfit.rows() if one.has(found)) is row


@rows(
    ("ids", "said"),
    [
        ("10de:2b85", "never came back from a function-level reset (flr)"),
        ("1002:1900", "may start only once for each boot of the host"),
        ("1002:67df", "the module vendor-reset resets them"),
        ("1002:67e0", "the module vendor-reset resets them"),
        ("1002:7550", "suspend to RAM"),
        ("1002:73bf", "of single ones"),
        ("1002:744c", "of single ones"),
        ("1002:7480", "of single ones"),
        ("1002:74a1", "the card's configuration space reads as ones until the host reboots"),
        ("8086:4c8a", "hung after the guest was restarted"),
        ("1002:164e", "can freeze the whole host; save what runs on the host"),
        ("1002:13c0", "owners got it to work with OVMF and ROM files"),
        ("1a03:2000", "the remote console (IPMI, iDRAC, iLO) shows no host any more"),
        ("102b:0522", "it is the screen of the server's management controller (BMC)"),
        ("102b:0533", "it is the screen of the server's management controller (BMC)"),
    ],
)
def test_what_is_known_of_a_card_is_a_note(ids: str, said: str) -> None:
    assert said in notes(one(ids))
    assert reasons(one(ids)) == []


@rows(
    ("ids", "beside", "warned"),
    [("10de:2330", "10de:22a3", True), ("10de:20b0", "10de:1af1", True), ("10de:2330", "1022:14db", False)],
)
def test_one_card_of_a_board_with_nvswitches_is_told_by_the_switches(ids: str, beside: str, warned: bool) -> None:
    switch = device("0000:05:00.0", beside, "068000", 114)
    facts = desktop(devices=[device("0000:01:00.0", ids, "030200", 16), switch])
    assert ("CUDA may fail in it (802, system not yet initialized)" in notes(facts)) is warned


@rows("use", ["vm", "shared"])
def test_what_is_known_of_a_card_is_said_of_each_that_vms_get(use: str) -> None:
    facts = one("10de:2b85")
    host = settings({"gpu": {"address": "01:00", "use": use}}, nvidia={"driver": "580"})
    assert sum("never came back" in one for one in card_remarks.remarks(facts, host, {"gpu": "0000:01:00"})) == 1


@rows("ids", ["10de:2684", "8086:e212", "1002:67bf", "102b:0535", "8086:56a6", "1002:", "10de:2b86"])
def test_of_other_cards_nothing_is_said(ids: str) -> None:
    assert unfit.row_of(one(ids), "0000:01:00") is None


@rows(
    ("ids", "methods", "warned"),
    [
        ("10de:2b85", "flr bus", True),
        ("10de:2b85", "bus", False),
        ("10de:2b85", None, False),
        ("10de:2c02", "flr bus", False),
        ("10de:2c02", "bus", True),
        ("1002:67df", None, True),
        ("1002:67df", "", True),
    ],
)
def test_it_counts_how_the_kernel_resets_the_card(ids: str, methods: str | None, warned: bool) -> None:
    assert (unfit.row_of(one(ids, methods), "0000:01:00") is not None) is warned


def test_where_vendor_reset_is_loaded_nothing_is_warned_of() -> None:
    assert "vendor-reset" not in notes(one("1002:67df", "device_specific bus"))


def reasons(facts: HostFacts) -> list[str]:
    host = settings({"gpu": {"address": "01:00"}})
    return [error.found for error in gates.check(facts, host)[1]]


def test_a_virtual_function_is_reset_by_itself() -> None:
    facts = one("1002:74a1", physfn="0000:02:00.0")
    assert unfit.row_of(facts, "0000:01:00") is None


def test_a_card_that_doesnt_answer_is_refused_before_anything_is_changed() -> None:
    lost = desktop(lost=["0000:01:00.0"])
    (found,) = [error.found for error in gates.check(lost, settings())[1]]
    assert found == "the configuration space of 0000:01:00.0 can't be read: every bit is one"
    assert gates.check(desktop(lost=["0000:0b:00.0"]), settings())[1] == []


def test_the_plan_says_how_each_function_is_reset() -> None:
    states = {"0000:01:00.0": {"reset_method": "flr bus"}, "0000:01:00.1": {"reset_method": ""}}
    facts = desktop(card_states=states)
    reboot = plan.PlannedReboot("no", "1")
    text = plan.describe("pve", facts, settings(), plan.wanted(facts, settings()), reboot)
    assert "    reset: 0000:01:00.0 by flr, bus; 0000:01:00.1 by none\n" in text
    assert "reset:" not in plan.describe("pve", desktop(), settings(), plan.wanted(desktop(), settings()), reboot)
