"""The tree of what is judged of a host (homelab/judged/tree.py): what counts as a refusal of what `up` does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab.host.plan import PlannedReboot
from homelab.judged.tree import Tree
from remote_scripts.both.reboot import Reason
from tests.unit.hosts import tree, vm_note
from tests.unit.test_cards import facts_config, two_in_one_group, vm

LINES = "machine: q35\nname: one\nhostpci0: mapping=one,pcie=1"


def judged(lines: str = LINES, *names: str, second: str = "", ha: str = "", mapping: str = "") -> Tree:
    """VM 103, which has its card, and VM 104, which is to get another one of the same group, in this order."""
    facts, host = two_in_one_group()
    entry = "id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2"
    mappings = f"one\n\tmap {entry}\n{mapping}"
    configs = [facts_config(103, lines), *([facts_config(104, second)] if second else [])]
    guests = replace(facts.guests, configs=configs, running=frozenset([103]), mappings=mappings)
    cluster = replace(facts.cluster, ha=replace(facts.cluster.ha, resources=ha))
    facts = replace(facts, guests=guests, cluster=cluster, ledger=vm_note(103, LINES, "hostpci0"))
    vms = {"one": vm(103, "one"), "two": vm(104, "two")}
    host = host.model_copy(update={"node": "pve"})
    return tree(facts, host, {name: vms[name] for name in names or ("one",)}, stack="p/s")


@pytest.mark.parametrize("names", [("one", "two"), ("two", "one")])
def test_a_card_of_a_group_that_another_vm_has_is_refused_whoever_comes_first(names: tuple[str, str]) -> None:
    found = judged(LINES, *names, second="machine: q35\nname: two")
    assert found.vms["one"][1].steps == [] and found.vms["two"][1].steps
    assert any("both cards are in one IOMMU group" in error.found for error in found.parts_refused)


RESTART = PlannedReboot(reboot="yes", boot_id="1", reasons=(Reason(said="iommu=pt is not there"),))


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"lines": LINES.replace("q35", "pc")}, "machine: pc"),
        ({"mapping": "\tmap id=144d:a80c,node=pve,path=0000:05:00\n"}, "there is one of that name, for another device"),
    ],
)
def test_what_stands_against_a_guest_is_refused_with_the_steps_of_any_other_part(
    about: dict[str, str], found: str
) -> None:
    """It is a person's turn where nothing changes."""
    changing = judged(**about)
    assert changing.host.steps and any(found in error.found for error in changing.parts_refused)
    still = replace(changing, host=replace(changing.host, steps=[]), mappings={}, systems={})
    mapping = replace(changing.mappings["one"], steps=[])
    still = replace(still, mappings={"one": mapping})
    assert still.parts_refused == []
    assert any(found in line for part in still.parts() for line in part.met)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lock: backup", "it is locked (backup)"),
        ("hostpci1: mapping=old", "there is no mapping old"),  # it runs, and wouldn't start again
    ],
)
def test_what_holds_a_guest_for_now_is_refused_where_it_changes_or_the_host_restarts(line: str, found: str) -> None:
    held = judged(f"{LINES}\n{line}")
    assert held.host.steps and held.vms["one"][1].steps == [] and held.parts_refused == []
    restarting = replace(held, reboot=RESTART)
    assert [found in error.found for error in restarting.parts_refused] == [True]
    assert replace(held, reboot=replace(RESTART, reboot="no")).parts_refused == []


def test_a_locked_guest_that_leaves_the_settings_is_refused_with_its_change() -> None:
    tree = judged(f"{LINES}\nlock: backup", "two", second="machine: q35\nname: two")
    assert tree.leaving["vms.sandbox"].steps
    assert "it is locked (backup)" in [error.found for error in tree.parts_refused]
