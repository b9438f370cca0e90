"""The lab's kernel about 1:1 mappings, interrupts and the ACS override, and what the unmodified reading makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from homelab.cards import remapping
from homelab.facts.host import HostFacts, parse
from homelab.facts.kernel_log import of_text
from homelab.host import gates, plan
from lab import Lab
from lab.scenario import load_scenario, scenario_from
from remote_scripts.both.symptoms import Context
from tests.lab.host_kit import Host
from tests.lab.test_real_hosts import answered, read
from tests.unit.hosts import settings

CARD = {"gpu": {"address": "01:00"}}
REGION = "0x9d800000-0x9fffffff"


def booted(path: Path, scenario: str, **changes: Any) -> Host:
    whole = load_scenario(scenario)
    if changes:
        whole = scenario_from(whole.model_dump(by_alias=True, exclude_none=True) | changes, scenario, scenario)
    return Host(path, whole, running=True)


def started_with(host: Host, words: str) -> HostFacts:
    """What is read once it has started so."""
    line = f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"\n'
    host.write("/etc/default/grub.d/own.cfg", line)
    host.output("update-grub")
    assert host.reboot().comes_up
    return read(host.machine)


def test_a_card_for_which_the_firmware_wants_a_1_to_1_mapping_is_refused(tmp_path: Path) -> None:
    machine = booted(tmp_path, "one-to-one")
    found = read(machine.machine)
    assert found.iommu.direct[13] == [REGION] and 20 not in found.iommu.direct  # bus 16
    (error,) = gates.check(found, settings(CARD))[1]
    assert REGION in error.found


def test_intels_reserved_memory_is_relaxed_by_the_word(tmp_path: Path) -> None:
    firmware = {"one-to-one": [{"first": "01:00.1", "last": "01:00.1", "start": 0x7B800000, "end": 0x7FFFFFFF}]}
    machine = booted(tmp_path, "z370-two-cards-one-group", firmware=firmware)
    found = read(machine.machine)
    assert found.iommu.direct == {1: ["0x7b800000-0x7fffffff"]}
    host = settings(CARD, iommu={"relaxRmrr": True})
    assert "1:1" in "".join(str(error) for error in gates.check(found, settings(CARD))[1])
    assert "1:1" not in "".join(str(error) for error in gates.check(found, host)[1])
    relaxed = started_with(machine, remapping.words(found, host))
    assert relaxed.iommu.direct == {}


def with_acs(host: Host) -> HostFacts:
    return parse(answered(host.machine, guests=True, acs=True))


def test_the_groups_that_an_override_is_going_to_make_are_those_that_it_makes(tmp_path: Path) -> None:
    """The capture z370-2080ti-2060: both cards and both root ports in one group; apart after pcie_acs_override=downstream."""
    machine = booted(tmp_path, "z370-two-cards-one-group")
    host = settings(CARD | {"gpu": {"address": "02:00"}}, iommu={"acsOverride": "downstream"})
    before = with_acs(machine)
    assert len(before.others_in_group("0000:02:00")) == 4
    assert remapping.to_be(before, host).others_in_group("0000:02:00") == []
    assert gates.check(before, host)[1] == []
    after = started_with(machine, remapping.words(before, host))
    assert after.others_in_group("0000:02:00") == [] and after.functions("0000:02:00")[0].group == 16
    assert plan.wanted(after, host).iommu_words.endswith("pcie_acs_override=downstream")


def test_a_card_is_not_taken_out_of_the_group_of_the_root_disk(tmp_path: Path) -> None:
    found = with_acs(booted(tmp_path, "crowded-group"))
    host = settings({"gpu": {"match": "10de:2504"}}, iommu={"acsOverride": "downstream,multifunction"})
    (error,) = gates.check(found, host)[1]
    assert "nvme0n1" in error.found and "enp7s0" in error.found and "no setting allows that" in error.why


def test_without_interrupt_remapping_a_card_is_refused_and_with_the_word_it_is_given_away(tmp_path: Path) -> None:
    machine = booted(tmp_path, "intel-grub-bios", firmware={"mode": "bios", "remaps-interrupts": False})
    found = read(machine.machine)
    cards = {"gpu": {"address": "03:00", "allowConsole": True}}
    allowed = settings(cards, iommu={"allowUnsafeInterrupts": True})
    (error,) = gates.check(found, settings(cards))[1]
    assert "allowUnsafeInterrupts" in error.next
    assert gates.check(found, allowed)[1] == []
    on = started_with(machine, remapping.words(found, allowed))
    assert on.iommu.interrupts == "plain" and on.iommu.groups
    assert remapping.UNSAFE_INTERRUPTS in remapping.words(on, allowed)


def test_a_vm_does_not_start_with_such_a_card_and_its_task_says_what_qemu_says(tmp_path: Path) -> None:
    with Lab.start("one-to-one", state=tmp_path / "lab") as lab:
        done = lab.run("qm start 103", check=False)
        said = done.stdout + done.stderr
        (sign,) = of_text(said, Context())
        assert done.returncode != 0 and sign.error.symptom == "group-refused" and "group 13" in said
        assert "1:1 IOMMU mapping" in lab.run("dmesg").stdout
