"""A host is judged once (homelab/host/judge.py): preview, refresh and doctor say the same of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from homelab import earlier
from homelab.doctor.host import diagnose
from homelab.findings import Turn
from homelab.host import plan, stack_folder
from homelab.host.judge import judge_host
from homelab.judged import text
from homelab.judged.tree import Settings
from homelab.reading import planning
from tests.conftest import PROJECT, shared
from tests.rows import rows
from tests.unit.hosts import cmdline, desktop, settings, tree
from tests.unit.test_doctor import diagnose_host, reading
from tests.unit.test_plan import bound

HOST, WANT = settings(), plan.wanted(desktop(), settings())
OWNER, OURS = stack_folder.owner("p/s", HOST.name), earlier.AGENTS


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, []),
        ({"pending": ["initramfs"]}, ["the initramfs was not made after the last change"]),
        ({"rolled_back": "boot 1 was not confirmed"}, ["boot 1 was not confirmed"]),
        ({"boot_lacks": ["iommu=pt is no longer wanted"]}, ["iommu=pt is no longer wanted"]),
    ],
)
def test_what_the_next_up_mends_is_a_refreshs_drift_and_the_doctors_one_finding(
    changes: dict[str, Any], steps: list[str]
) -> None:
    facts = bound(**changes)
    judged = judge_host(facts, HOST, had=WANT)
    lines = list(dict.fromkeys(line for lines in judged.drift.values() for line in lines))
    found = [
        one
        for one in diagnose_host(reading(facts=facts), HOST).findings
        if one.turn is Turn.UP and "host" in one.wanted
    ]
    assert [one.found for one in found] == ["; ".join(lines)] * bool(lines)
    assert bool(lines) is bool(steps) and all(any(step in line for line in lines) for step in steps)


def misspelt(words: str) -> list[str]:
    facts = desktop(cmdline=cmdline(f"root=/dev/mapper/pve-root quiet {words}"))
    wanted = [error.wanted for error in judge_host(facts, settings({})).wrong]
    return [text.partition(" on the kernel command line, or nothing like it")[0] for text in wanted]


@rows(
    ("words", "meant"),
    [
        ("vifo-pci.ids=10de:2b85,10de:22e8", ["vfio-pci.ids"]),
        ("vfio_pci,ids=1002:744c", ["vfio-pci.ids"]),
        ("vfio-pci-ids=10de:2b85 vfio-pci.id=10de:2b85", ["vfio-pci.ids", "vfio-pci.ids"]),
        ("vfio.pci.ids=10de:2b85 vfio-pci:ids=10de:2b85", ["vfio-pci.ids", "vfio-pci.ids"]),
        ("amd_iomu=on intel_immou=on", ["amd_iommu", "intel_iommu"]),
        ("pcie_acs_overide=downstream", ["pcie_acs_override"]),
        ("modprobe.blacklst=nouveau initcall_blacklist=sysfb_init", ["modprobe.blacklist"]),
        ("vfio_pci.ids=10de:2b85 vfio-pci.ids=10de:2b85 amd-iommu=on iommu=pt amd_iommu=pt", []),
        # Words of other things.
        ("amd_pstate=active intel_pstate=disable intel_idle.max_cstate=1 pcie_aspm=off pci=noaer,realloc nvme.x=1", []),
        ("module.sig_enforce=1 iommu.strict=0 amd_iommu_intr=legacy initrd=/boot/x video=efifb:off nofb nomodeset", []),
        ("nvidia-drm.modeset=1 kvm.ignore_msrs=1 rd.driver.pre=vfio-pci systemd.mask=x vga=normal hugepagesz=1G", []),
    ],
)
def test_a_word_that_is_nearly_one_that_gives_cards_away_is_told_with_that_one(words: str, meant: list[str]) -> None:
    assert misspelt(words) == meant


def test_a_misspelt_word_is_told_before_the_first_change_and_by_the_doctor() -> None:
    word = "vifo-pci.ids=10de:2b85"
    facts = desktop(cmdline=cmdline(f"quiet {word}"))
    (finding,) = [one for one in diagnose_host(reading(facts=facts), settings()).findings if one.found == word]
    assert "vfio-pci.ids" in finding.wanted and "`update-grub`" in finding.next and finding.turn is Turn.PERSON
    assert word in text.of_plan(tree(facts, settings()))


LINE = re.compile(r"""(?:GRUB_CMDLINE_LINUX(?:_DEFAULT)?=|cmdline: *)["']?(.*?)["'}]*$""", re.MULTILINE)


@pytest.mark.parametrize("folder", ["real_hosts", "cases5", "cases6", "lab/scenarios"])
def test_no_command_line_of_a_real_host_is_taken_for_misspelt(folder: str) -> None:
    place = PROJECT / folder if "/" in folder else shared(folder)
    found = list[str]()
    for file in [path for path in place.rglob("*") if path.is_file()]:
        content = file.read_text(encoding="utf-8", errors="replace")
        found += [content] if "cmdline" in file.name else LINE.findall(content)
    assert found and [line for line in found if misspelt(line)] == []


def test_a_lost_note_of_what_a_boot_should_have_is_written_again_after_an_up() -> None:
    facts = bound(boot_lacks=None)
    assert judge_host(facts, HOST, had=WANT).drift["iommu"] == ["the host has no note of what its boot should have"]
    assert judge_host(facts, HOST).drift["iommu"] == [], "there may have been no `up`"


@rows(
    ("kept", "version", "is_lost"),
    [({}, "", True), ({}, "1", True), ({OWNER: ""}, "", True), ({OWNER: OURS}, "", False), ({OWNER: OURS}, "1", True)],
)
def test_the_agent_that_commands_run_is_missed_once(kept: dict[str, str], version: str, is_lost: bool) -> None:
    judged = judge_host(bound(agents=kept), HOST, stack="p/s", agent=version)
    assert any("agent is missing" in one.found for one in judged.findings) is is_lost is bool(judged.drift["agent"])
    assert judge_host(bound(agents=kept), HOST).drift["agent"] == [], "whose it would be isn't known"


NO_GROUPS = {"tables": ["IVRS"], "groups": 0, "kernel_log": "AMD-Vi: Interrupt remapping enabled"}
NO_INITRAMFS = {"wanted": "the default entry", "found": "there is no /boot/initrd.img-1", "why": "w", "next": "make it"}


@rows(
    ("changes", "wanted", "step"),
    [
        ({"iommu": NO_GROUPS}, "IOMMU groups", "switch on VT-d or AMD-Vi (IOMMU) in the firmware"),
        ({"next_boot": NO_INITRAMFS}, "the default entry", "there is no /boot/initrd.img-1; make it"),
    ],
)
def test_what_no_up_mends_is_told_by_refresh_preview_and_doctor_and_is_no_drift(
    changes: dict[str, Any], wanted: str, step: str
) -> None:
    facts = bound(**changes)
    judged = judge_host(facts, HOST, had=WANT)
    assert not any(judged.drift.values()) and judged.refusals == []
    (line,) = [line for line in judged.met if wanted in line]
    assert step in line
    (finding,) = [one for one in diagnose_host(reading(facts=facts), HOST).findings if wanted in one.wanted]
    assert finding.turn is Turn.PERSON


def test_a_verification_comes_after_the_boot_that_is_to_mend_it() -> None:
    lost = {"boot_lacks": ["amd_iommu=on is missing"], "cmdline": cmdline("quiet")}
    assert judge_host(bound(**lost), HOST, had=WANT).met == []


def test_a_refresh_after_a_card_has_left_the_settings_goes_on() -> None:
    assert judge_host(bound(), settings({}), had=WANT).met == []


MAPPING = "node=pve,path=0000:01:00,id=10de:2b85,subsystem-id=1043:88e2,iommugroup=16"
UNMAPPED: dict[str, Any] = {"running": []}
MAPPED = UNMAPPED | {"mappings": f"rtx5090\n\tmap {MAPPING}\n"}


@rows(
    ("changes", "turn"),
    [
        ({}, Turn.PERSON),  # there is nothing to refuse
        ({"pending": ["initramfs"]}, Turn.REFUSED),
        ({"guests": UNMAPPED}, Turn.REFUSED),  # also for a step of what is on it
    ],
)
def test_what_stands_against_any_change_is_refused_where_there_is_one_and_no_finding_says_up(
    changes: dict[str, Any], turn: Turn
) -> None:
    facts, host = bound(**{"loader": "", "guests": MAPPED} | changes), settings(node="pve")
    refusals, findings = tree(facts, host).refusals, diagnose_host(reading(facts=facts), host).findings
    (met,) = [one for one in findings if "boot loader" in one.wanted]
    assert met.turn is turn and [error.next for error in refusals] == [met.next] * (turn is Turn.REFUSED)
    assert {one.next for one in findings} == {met.next}


@rows(
    ("changes", "lost_hooks", "turns"),
    [
        ({}, [], set()),
        ({"pending": ["initramfs"]}, [], {Turn.UP, Turn.REFUSED}),
        ({}, ["103"], {Turn.UP, Turn.REFUSED}),
    ],
)
def test_a_shared_card_in_its_vm_is_nothing_wrong_and_stands_against_any_change(
    changes: dict[str, Any], lost_hooks: list[str], turns: set[Turn]
) -> None:
    facts = bound(agents={OWNER: OURS}, guests=MAPPED, **changes)
    away = replace(facts.handover, away="gpus.big is with VM 103", lost_hooks=lost_hooks)
    facts = replace(facts, handover=away)
    wanted = Settings("pve", settings(node="pve"), {}, {}, "p/s")
    report = diagnose(reading(facts=facts), planning.planned(wanted, facts=facts))
    assert {one.turn for one in report.findings} == turns
    refused = "shut down the VM that has it (gpus.big is with VM 103)"
    assert [step.startswith(refused) for step in report.next] == [True] * bool(turns)


def test_of_several_stacks_that_set_up_one_host_each_is_told() -> None:
    for agents, said in (
        ({OWNER: OURS}, []),
        ({OWNER: OURS, "p-other-pve-1": ""}, []),  # its agent is gone
        ({OWNER: OURS, "p-other-pve-1": OURS}, ["another one has set it up as well: p-other-pve-1"]),
    ):
        facts = bound(agents=agents)
        findings = diagnose_host(reading(facts=facts), HOST, stack="p/s").findings
        told = [one for one in findings if "set up by one stack" in one.wanted]
        assert [(one.found.partition(" (")[0], one.turn) for one in told] == [(text, Turn.PERSON) for text in said]
        assert not any(
            "set up by one stack" in one.wanted for one in diagnose_host(reading(facts=facts), HOST).findings
        )
