"""homelab/facts/kernel_log.py: real texts are recognised, for the card that they are about, and healthy ones are not."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from homelab import tables
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.facts.kernel_log import Sign, signs
from homelab.host import gates, plan
from homelab.host.judge import judge_host, verified
from homelab.resources.work import started
from homelab.shapes import CardFunction
from tests.conftest import shared
from tests.rows import rows
from tests.unit.hosts import desktop, device, gpu, seen, settings, tree
from tests.unit.test_doctor import diagnose_host, reading

TEXTS: dict[str, list[str]] = tables.read(Path(__file__).parent / "kernel_texts.yaml")
CARD = ["0000:01:00.0", "0000:01:00.1"]
HEALTHY = [
    "[ 0.03] DMAR: IOMMU enabled",
    "[ 0.07] DMAR-IR: Enabled IRQ remapping in x2apic mode",
    "[ 0.07] x2apic: IRQ remapping doesn't support X2APIC mode",
    "[ 0.38] iommu: Default domain type: Passthrough (set via kernel command line)",
    "[ 0.49] pci 0000:01:00.0: Adding to iommu group 16",
    "[ 0.5] pci 0000:01:00.0: BAR 5 [io  size 0x0080]: can't assign; no space",
    "[ 0.5] pci 0000:01:00.0: ROM [mem size 0x00080000 pref]: can't assign; no space",
    "[ 0.5] pci 0000:01:00.0: BAR 6: no space for [mem size 0x00080000 pref]",
    "[ 0.5] pci 0000:01:00.0: VF BAR 1 [mem size 0x1000000000 64bit pref]: can't assign; no space",
    "[ 0.5] pci 0000:00:01.1: bridge window [io  size 0x1000]: can't assign; no space",
    # It stays awake, and works.
    "[ 5.1] snd_hda_intel 0000:01:00.1: Refused to change power state from D0 to D3hot",
    "[ 5.1] snd_hda_intel 0000:01:00.1: Refused to change power state, currently in D0",
    "[ 7.1] vfio-pci 0000:01:00.0: resetting",
    "[ 7.2] vfio-pci 0000:01:00.0: reset done",
    "[ 7.2] vfio-pci 0000:01:00.0: not ready 1023ms after FLR; waiting",
    "[ 7.2] vfio-pci 0000:01:00.0: vgaarb: VGA decodes changed: olddecodes=io+mem,decodes=io+mem:owns=none",
    "[ 9.9] pcieport 0000:00:01.1: AER: Corrected error message received from 0000:01:00.0",
    "[ 9.9] pcieport 0000:00:01.1: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
    "[ 9.9] pcieport 0000:00:01.1: pciehp: Slot(1): Link Down/Up ignored",
    "[ 9.9] vfio-pci 0000:01:00.0: enabling device (0000 -> 0003)",
]


def test_of_what_the_kernel_says_of_a_healthy_iommu_nothing_is_put_out() -> None:
    healthy = [*HEALTHY, "[ 0.03] AMD-Vi: Unknown option - 'on'", "[ 0.03] AMD-Vi: Interrupt remapping enabled"]
    assert kernel_log.of_iommu(healthy) == []
    sick = f"[ 0.07] {TEXTS['no-remapping'][1]}"
    assert kernel_log.of_iommu([*healthy, sick]) == [sick]


def names(facts: HostFacts, functions: list[str] | None = None) -> list[str]:
    found = [*kernel_log.of_card(facts, "gpus.a", functions or CARD), *kernel_log.of_host(facts, "pve")]
    wanted = {row.wanted: row.name for row in signs()}
    return [wanted[trouble.error.wanted.partition(": ")[2]] for trouble in found]


def test_a_sign_is_told_by_words_of_its_own() -> None:
    assert len({row.wanted for row in signs()}) == len(signs())


@rows("row", [row for row in signs() if not row.harmless and row.after is None], ids=lambda row: row.name)
def test_a_real_text_is_quoted_as_it_was_printed(row: Sign) -> None:
    text = f"[ 9.1] {TEXTS[row.name][0].splitlines()[0]}"
    facts = desktop(kernel_log="\n".join([*HEALTHY, text]))
    (trouble,) = [*kernel_log.of_card(facts, "gpus.a", CARD), *kernel_log.of_host(facts, "gpus.a")]
    assert (trouble.error.wanted, trouble.error.found) == (f"gpus.a: {row.wanted}", f"the kernel says: {text}")
    assert trouble.stops is row.stops


@rows("row", [row for row in signs() if row.of in ("card", "port") and not row.harmless], ids=lambda row: row.name)
@rows(
    ("mine", "others"),
    [
        (":01:00.", ":02:00."),  # a disk
        (":01:00.", ":0b:00."),  # another card
        ("0000:01:00.", "0001:01:00."),  # the same slot of another domain
    ],
)
def test_what_is_about_another_device_is_not_about_the_card(row: Sign, mine: str, others: str) -> None:
    for text in TEXTS[row.name]:
        other = text.replace(mine, others).replace("0000:00:01.1", "0000:00:02.1")
        assert other != text and names(desktop(kernel_log=other)) == []


def test_a_source_id_of_intels_iommu_names_a_function() -> None:
    line = "DMAR: VT-d detected Invalidation Time-out Error: SID {:x}"
    assert kernel_log.addresses_in(line.format(0x6508 | 1)) == ["0000:65:01.1"]
    assert names(desktop(kernel_log=line.format(0x100))) == ["invalidation-timeout"]
    assert names(desktop(kernel_log=line.format(0x200))) == []
    assert names(desktop(kernel_log=line.format(0))) == ["invalidation-unnamed"]


def test_what_a_shared_port_says_of_another_device_behind_it_is_that_ones() -> None:
    line = "pcieport 0000:00:01.1: AER: Uncorrectable (Fatal) error message received from 0000:09:00.0"
    assert names(desktop(kernel_log=line)) == []


def test_another_function_of_the_slot_is_not_the_card() -> None:
    line = "[1] xhci_hcd 0000:01:00.3: Unable to change power state from D3cold to D0, device inaccessible"
    assert names(desktop(kernel_log=line)) == []
    assert names(desktop(kernel_log=line), ["0000:01:00.3"]) == ["inaccessible"]
    line = "DMAR: [DMA Write NO_PASID] Request device [05:00.0] fault addr 0xeb61a000 [fault reason 0x05] PTE Write"
    assert names(desktop(kernel_log=line)) == []


@rows(
    ("name", "cure"),
    [
        ("no-room", "[ 1.1] pci 0000:01:00.0: BAR 1 [mem 0x4000000000-0x47ffffffff 64bit pref]: assigned"),
        ("no-room", "[ 1.1] pci 0000:01:00.0: BAR 1: assigned [mem 0x4000000000-0x47ffffffff 64bit pref]"),
        ("link-down", "[ 502.0] pcieport 0000:00:01.1: pciehp: Slot(1): Link Up"),
        ("bus-fatal", "[ 32.0] pcieport 0000:00:01.1: AER: device recovery successful"),
        ("bus-error", "[ 32.0] pcieport 0000:00:01.1: AER: device recovery successful"),
        ("no-remapping", "[ 0.9] DMAR-IR: Enabled IRQ remapping in xapic mode"),
    ],
)
def test_a_later_line_cures_what_came_before_it_alone(name: str, cure: str) -> None:
    text = TEXTS[name][0]
    assert names(desktop(kernel_log=f"{text}\n{cure}")) == []
    assert names(desktop(kernel_log=f"{text}\n{cure}\n{text}")) == [name]


def test_a_window_that_got_its_room_says_nothing_of_another_one() -> None:
    text, other = TEXTS["no-room"][0], "[ 1.1] pci 0000:01:00.0: BAR 3 [mem 0x40-0x4f 64bit pref]: assigned"
    assert names(desktop(kernel_log=f"{text}\n{other}")) == ["no-room"]


def test_a_card_whose_configuration_space_is_all_ones_is_lost() -> None:
    (trouble,) = kernel_log.of_card(desktop(lost=["0000:01:00.0", "0000:0b:00.0"]), "gpus.a", CARD)
    assert "0000:01:00.0" in trouble.error.found and "0b:00" not in trouble.error.found and trouble.stops


@rows(
    ("gpu", "line", "is_its"),
    [
        ({"match": "10de:2b85"}, "pcieport 0000:00:01.1: pciehp: Slot(0-1): Card not present", True),
        ({"address": "01:00"}, "vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up", True),
        ({"match": "10de:2b85"}, "vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up", True),
        ({"match": "10de:2204"}, "vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up", False),
        ({"match": "10de:2b85"}, "pcieport 0000:00:02.1: pciehp: Slot(0-1): Card not present", False),
    ],
)
def test_a_card_that_is_gone_from_the_bus_has_its_history(gpu: dict[str, str], line: str, is_its: bool) -> None:
    here = [one for one in desktop().devices if one.slot != "0000:01:00"]
    words = {**vars(desktop().cmdline), "running": "homelab.vfio=0000:01:00.0=10de:2b85"}
    facts = replace(desktop(cmdline=words, kernel_log=f"[ 9.1] {line}"), devices=here)
    (error,) = gates.check(facts, settings({"gpu": gpu}))[1]
    assert (line in error.found, "look at its power and its slot" in error.next) == (is_its, not is_its)


def test_of_a_card_that_has_gone_from_the_bus_its_ports_messages_are_told_with_it() -> None:
    text, settings_ = TEXTS["link-down"][0], settings()
    without = [one for one in desktop().devices if one.slot != "0000:01:00"]
    gone = replace(desktop(kernel_log=text), devices=without)
    (error,) = gates.check(gone, settings_)[1]
    assert "graphics cards here: " in error.found and text in error.found and "link went down" in error.why
    (finding,) = [one for one in diagnose_host(reading(facts=gone), settings_).findings if text in one.found]
    assert "power cables" in finding.next
    # of another port, behind which something is, and of a card that is there, it says nothing
    other = text.replace("0000:00:01.1", "0000:00:02.1")
    (error,) = gates.check(replace(gone, kernel_log=other), settings_)[1]
    assert other not in error.found


def test_what_to_do_names_the_card_that_the_message_names() -> None:
    log = "[1.0] vfio-pci 0000:01:00.1: not ready 65535ms after FLR; giving up"
    (trouble,) = kernel_log.of_card(desktop(kernel_log=log), "gpus.a", CARD)
    assert "/sys/bus/pci/devices/0000:01:00.1/reset_method" in trouble.error.next


@rows(
    ("line", "is_past"),
    [
        ("nvidia 0000:01:00.0: not ready 65535ms after resume; giving up", True),
        ("nouveau 0000:01:00.0: Refused to change power state, currently in D3", True),
        ("vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up", False),
        ("nvidia 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer", False),
        ("pci 0000:01:00.0: BAR 1 [mem size 0x800000000 64bit pref]: can't assign; no space", False),
    ],
)
def test_what_is_said_under_an_earlier_driver_of_a_card_that_works_now_is_past(line: str, is_past: bool) -> None:
    load = "[ 50.1] nvidia-nvlink: Nvlink Core is being initialized, major device number 511"
    earlier, works = f"[ 9.1] {line}\n{load}", {"nvidia_minors": {"0000:01:00.0": 0}}
    assert bool(names(desktop(kernel_log=earlier, **works))) is not is_past
    assert names(desktop(kernel_log=earlier)) and names(desktop(kernel_log=f"{load}\n[ 60.1] {line}", **works))
    assert len(names(desktop(kernel_log=earlier, lost=CARD[:1], **works))) == (2 if "BAR 1" in line else 1)


def test_what_cures_a_card_does_so_under_any_driver() -> None:
    log = f"{TEXTS['no-room'][0]}\nnvidia 0000:01:00.0: BAR 1: assigned [mem 0x40-0x4f]\nnvidia-nvlink: Nvlink Core is being initialized"
    assert names(desktop(kernel_log=log, nvidia_minors={"0000:01:00.0": 0})) == []


@rows(
    ("lines", "of"),
    [
        (["[ 9.1] {init}"], ["pve"]),
        (["[ 9.1] {module}"], ["pve"]),
        (["[ 9.1] {init}", "[ 9.2] {mine}"], ["0000:01:00"]),
        (["[ 9.1] pve kernel: {init}", "[ 9.2] pve kernel: {mine}"], ["0000:01:00"]),
        (["[ 9.1] {init}", "[ 9.2] {mine}", "[ 9.3] {other}"], ["0000:01:00", "0000:03:00"]),
        # A module is no card's.
        (["[ 9.1] {module}", "[ 9.2] {mine}"], ["0000:01:00", "pve"]),
        # The cause hides what follows from it, whichever of them names the card.
        (["[ 8.1] NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", "[ 9.1] {init}"], ["0000:01:00"]),
        (["[ 8.1] NVRM: RmFetchGspRmImages: No firmware image found", "[ 9.1] {mine}"], ["pve"]),
    ],
)
def test_a_line_that_names_no_card_is_told_once(lines: list[str], of: list[str]) -> None:
    texts = {
        "init": "NVRM: RmInitAdapter failed! (0x22:0x56:894)",
        "mine": "NVRM: GPU 0000:01:00.0: rm_init_adapter failed, device minor number 0",
        "other": "NVRM: GPU 0000:03:00.0: rm_init_adapter failed, device minor number 1",
        "module": "nvidia_drm: Unknown symbol drm_gem_mmap (err -2)",
    }
    facts = desktop(*gpu("0000:03:00", 18), kernel_log="\n".join(lines).format(**texts))
    for cards in ({}, {"big": {"address": "0000:01:00"}}):  # whether or not the settings name it
        told = [
            one for one in diagnose_host(reading(facts=facts), settings(cards)).findings if "kernel log: " in one.found
        ]
        assert {one.wanted.partition(": ")[0].replace("gpus.big", "0000:01:00") for one in told} == {*of}
        assert len(told) == len(of)


def test_a_long_log_is_quoted_by_head_and_tail() -> None:
    lines = [f"[{n}.0] vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up" for n in range(100)]
    (trouble,) = kernel_log.of_card(desktop(kernel_log="\n".join(lines)), "gpus.a", CARD)
    assert "[0.0]" in trouble.error.found and "[99.0]" in trouble.error.found and ": 96 …" in trouble.error.found
    assert kernel_log.excerpt("a\nb\nc\nd\ne\n", 4) == "a | b | … lines left out here: 1 … | d | e"
    assert kernel_log.excerpt("a\n\nb\n") == "a | b" and kernel_log.excerpt("") == ""


# -- what the facts say beside it ----------------------------------------------------------------------------------------


@rows(
    ("card", "slot", "narrow"),
    [
        ((1, 8), (1, 16), "x1 of x8"),
        ((4, 16), (4, 8), "x4 of x8"),
        ((4, 16), (4, 4), ""),  # the slot has no more
        ((8, 8), (8, 16), ""),
        ((0, 16), (0, 16), ""),  # there is no link, or nothing was read
        ((63, 63), (63, 63), ""),  # the card is gone: every bit is one
    ],
)
def test_a_link_with_fewer_lanes_than_card_and_slot_is_its_seat(
    card: tuple[int, int], slot: tuple[int, int], narrow: str
) -> None:

    def with_lanes(card: tuple[int, int], slot: tuple[int, int], **changes: Any) -> HostFacts:
        of = {address: card for address in CARD} | {"0000:00:01.1": slot}
        devices = [asdict(one) | {"lanes": of.get(one.address, (0, 0))} for one in desktop().devices]
        return desktop(devices=devices, **changes)

    xid = "NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus."
    calm, lost = (with_lanes(card, slot, kernel_log=log) for log in ("", xid))
    report = diagnose_host(reading(facts=calm), settings())
    assert [narrow in note and "put the card into its slot anew" in note for note in report.notes] == [True] * bool(
        narrow
    )
    (finding,) = [one for one in diagnose_host(reading(facts=lost), settings()).findings if "79" in one.found]
    assert ("take another release of the driver" in finding.next) is not bool(narrow)


def test_a_client_of_another_release_is_a_containers_where_the_hosts_libraries_fit() -> None:
    log = "NVRM: API mismatch: the client 'ffmpeg' (pid 10) has the version 570.86.10, but this kernel module has the version 580.95.05."
    nvidia: dict[str, Any] = {"version": "580.95.05"}
    for libraries, is_containers in (("580.95.05", True), ("570.86.10", False), ("", False)):
        facts = replace(desktop(kernel_log=log, nvidia=nvidia), systems={"host": seen(libraries=libraries)})
        (trouble,) = kernel_log.troubles(facts, "pve", {"gpus.a": CARD}, with_host=False)
        assert ("reboot it" not in trouble.error.next) is is_containers


# -- captures of real machines -------------------------------------------------------------------------------------------
def eight() -> HostFacts:
    """The host with eight RTX 3080, as its files tell it."""
    ids = shared("real_hosts", "pve-8x3080-gpu-lost", "host_nvidia_bdf.txt").read_text(encoding="utf-8").split()
    cards = []
    for group, address in enumerate(ids):
        port = f"0000:{int(address[5:7], 16) - 1:02x}:08.0"
        path = f"../../../devices/pci0000:80/{port}/{address}"
        cards.append(device(address, "10de:2206", "030000", group, driver="vfio-pci", path=path))
        audio = address[:-1] + "1"
        cards.append(device(audio, "10de:1aef", "040300", group, driver="vfio-pci", path=path[:-1] + "1"))
    log = shared("real_hosts", "pve-8x3080-gpu-lost", "host_journal_vfio.txt").read_text(encoding="utf-8")
    return desktop(devices=cards, kernel_log=log)


def test_the_doctor_names_the_lost_card_among_eight_and_no_other() -> None:
    facts = eight()
    seen = reading(facts=facts)
    report = diagnose_host(seen, settings({}))
    lost = [one for one in report.findings if "device inaccessible" in one.found]
    assert len(lost) == 1 and lost[0].wanted.startswith("0000:88:00:") and not report.well
    assert not any("0000:89:00" in f"{one.wanted} {one.found}" for one in report.findings)
    assert "the card is lost" in diagnose_host(seen, settings({})).text()


def test_of_the_lost_card_the_cause_is_told_and_not_its_echoes() -> None:
    assert names(eight(), ["0000:88:00.0", "0000:88:00.1"]) == ["inaccessible"]
    assert names(eight(), ["0000:89:00.0", "0000:89:00.1"]) == []


@pytest.mark.parametrize(
    ("capture", "file"),
    [
        ("pve-i5-7200u-journal", "journal_k_iommu.txt"),
        ("cezanne-igpu-rtx2060", "dmesg_amd_vi.txt"),
        ("i5-9400f-rx580-rx550", "dmesg_iommu.txt"),
    ],
)
def test_the_log_of_a_real_healthy_host_has_no_sign(capture: str, file: str) -> None:
    assert names(desktop(kernel_log=shared("real_hosts", capture, file).read_text(encoding="utf-8"))) == []


def test_the_doctor_names_a_firmware_without_vt_d() -> None:
    log = shared("real_hosts", "pve-b660-vtd-off-in-bios", "dmesg_iommu.txt").read_text(encoding="utf-8")
    off = {"tables": [], "groups": 0, "kernel_log": log}
    report = diagnose_host(reading(facts=desktop(iommu=off, cpu_vendor="GenuineIntel")), settings())
    assert not report.well
    assert any("firmware" in f"{one.wanted} {one.next}" for one in report.findings)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("legacy_bios_grub_stale_esp.txt", ["AAAA-0002"]),
        ("uefi_systemd_boot_stale_esp.txt", ["AAAA-0001"]),
        ("uefi_grub.txt", []),
    ],
)
def test_the_doctor_names_a_boot_partition_that_is_gone(file: str, named: list[str]) -> None:
    status = shared("real_hosts", "pve-boot-status-variants", file).read_text(encoding="utf-8")
    said = "\n".join(line for line in status.splitlines() if line.startswith("WARN: "))
    report = diagnose_host(reading(facts=desktop(boot_warnings=said)), settings({}))
    found = [one.found for one in report.findings if "proxmox-boot-tool keeps" in one.wanted]
    assert len(found) == len(named) and all(name in text for name, text in zip(named, found, strict=True))
    assert not (named and report.well)


# -- who asks --------------------------------------------------------------------------------------------------------------
LOST = TEXTS["inaccessible"][0]
FUNCTIONS: list[CardFunction] = [
    {"address": address, "id": "10de:2b85", "subsystem": "", "class": "030000"} for address in CARD
]
WANT = plan.Wanted("", "homelab.vfio=x", dict.fromkeys(CARD, ""), [], {"rtx5090": {"name": "", "keep": False, "slot": "0000:01:00", "path": "0000:01:00", "use": "vm", "functions": FUNCTIONS, "iommuGroup": 16}})  # fmt: skip


def test_the_verification_after_a_reboot_fails_for_a_lost_card() -> None:
    errors, remarks = verified(desktop(kernel_log=LOST), settings(), "pve", WANT)
    (error,) = [one for one in errors if LOST in one.found]
    assert error.wanted.startswith("pve, gpus.rtx5090: ") and remarks == []


def test_the_verification_only_tells_what_need_not_stop_anybody() -> None:
    errors, (remark,) = verified(desktop(kernel_log=TEXTS["bus-error"][0]), settings(), "pve", WANT)
    assert remark.startswith("the kernel says: pcieport") and not any("pcieport" in one.found for one in errors)


def test_a_host_without_a_card_for_a_vm_may_lack_interrupt_remapping() -> None:
    facts = desktop(kernel_log=TEXTS["no-remapping"][0])
    assert any("the kernel says" in one.found for one in verified(facts, settings(), "pve", WANT)[0])
    assert verified(facts, settings({}), "pve", plan.Wanted("", "", {}, [], {})) == ([], [])


@rows("use", ["vm", "shared", "lxc", "host"])
@rows("broken", [{"kernel_log": TEXTS["no-room"][0]}, {"lost": CARD[:1]}])
def test_what_neither_a_restart_nor_a_driver_mends_is_refused_before_anything_is_changed(
    broken: dict[str, Any], use: str
) -> None:
    facts, host = desktop(**broken), settings({"rtx5090": {"match": "10de:2b85", "use": use}}, nvidia={})
    (error,) = gates.check(facts, host)[1]
    assert error.wanted.startswith("gpus.rtx5090: ") and error.next.startswith("switch ")
    told = [one for one in diagnose_host(reading(facts=facts), host).findings if one.found == error.found]
    assert [one.wanted for one in told] == [error.wanted], "the doctor says it once"
    judged = tree(facts, host)
    voices = [*(one.found for one in judged.refusals), *judged.told_host.met]
    assert sum(error.found in voice for voice in voices) == 1, "and so do refresh, preview and show"


@pytest.mark.parametrize("use", ["vm", "lxc"])
def test_what_the_kernel_says_of_a_card_is_told_before_anything_is_changed(use: str) -> None:
    fault = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    said = [TEXTS["bus-fatal"][0], TEXTS["reset-failed"][0], TEXTS["not-ready"][0], fault]
    facts = desktop(kernel_log="\n".join([*said, TEXTS["rom-unreadable"][0], LOST.replace(":01:", ":09:")]))
    host = settings({"rtx5090": {"match": "10de:2b85", "use": use}})
    judged = judge_host(facts, host)
    assert judged.refusals == [] and all(sum(line in told for told in judged.met) == 1 for line in said)
    assert not any("PCI ROM" in told or ":09:" in told for told in [*judged.met, *judged.remarks])


GONE = desktop(lost=["0000:01:00.0"])
HAS_IT = {"reservations": "0000:01:00.0 103 pid:4711\n0000:01:00.1 103 pid:4711\n"}


def of_host(monkeypatch: pytest.MonkeyPatch, *readings: HostFacts | HomelabError) -> None:
    """``readings``: the host, as each time that it is asked; the last one for as long as it is."""
    answers = list(readings)

    def read(*_: Any, **__: Any) -> HostFacts:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, HomelabError):
            raise answer
        return replace(
            answer, guests=replace(answer.guests, running=frozenset({103}), reservations=HAS_IT["reservations"])
        )

    monkeypatch.setattr("homelab.remote.ssh.read", read)
    # What changes is waited for, however busy this machine is.
    monkeypatch.setattr(started, "CARD_SECONDS", 60 if len(readings) > 1 else 0.05)
    monkeypatch.setattr(started, "CARD_POLL_SECONDS", 0.01)


def after_start(monkeypatch: pytest.MonkeyPatch, before: HostFacts, *after: HostFacts) -> str:
    """What a start is blamed for; empty: nothing."""
    of_host(monkeypatch, *after)
    try:
        started.require_cards(settings(), "sandbox", 103, before, [])
    except HomelabError as error:
        return error.found
    return ""


@pytest.mark.parametrize("path", ["0000:01:00", "0000:01:00.0;0000:01:00.1"])
def test_a_vm_isnt_touched_for_a_card_that_doesnt_answer(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    of_host(monkeypatch, GONE)
    with pytest.raises(HomelabError, match="can't be read: every bit is one"):
        started.awake(settings(), 103, [path])
    assert started.awake(settings(), 103, []).lost == GONE.lost


def test_a_start_after_which_the_card_doesnt_answer_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "can't be read: every bit is one; VM 103 runs" in after_start(monkeypatch, desktop(), GONE)


def test_a_card_that_is_in_the_midst_of_a_reset_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    of_host(monkeypatch, GONE, desktop())
    assert started.awake(settings(), 103, ["0000:01:00"]).lost == []
    assert after_start(monkeypatch, desktop(), GONE, desktop()) == ""


def test_cards_that_nobody_names_are_not_taken_for_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HAS_IT, "reservations", "")
    config = GuestConfig("vm", 103, "hostpci0: mapping=a\n")
    silent = replace(GONE, guests=replace(GONE.guests, configs=[config]))
    assert after_start(monkeypatch, desktop(), silent).startswith("the host names none, ")


def test_only_the_kernels_messages_since_the_start_count(monkeypatch: pytest.MonkeyPatch) -> None:
    said = desktop(kernel_log=LOST)
    assert LOST in after_start(monkeypatch, desktop(), said)
    assert after_start(monkeypatch, said, said) == ""


FAILED = HomelabError(wanted="VM 103 started", found="start failed: QEMU exited with code 1", why="why", next="next")


def test_a_start_that_failed_is_told_with_what_the_kernel_says_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    of_host(monkeypatch, desktop(kernel_log=LOST))
    error = started.explained(FAILED, settings(), 103, ["0000:01:00"])
    assert "QEMU exited with code 1" in error.found and LOST in error.found
    assert "the card is lost" in error.why and error.next.startswith("switch the host off")


@pytest.mark.parametrize(
    "facts",
    [
        desktop(),
        desktop(kernel_log=LOST.replace(":01:00", ":05:00")),
        desktop(kernel_log=TEXTS["rom-unreadable"][0]),  # harmless
        HomelabError(wanted="a", found="b", why="c", next="d"),
    ],
)
def test_any_other_failure_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, facts: HostFacts | HomelabError) -> None:
    of_host(monkeypatch, facts)
    error = started.explained(FAILED, settings(), 103, ["0000:01:00"])
    assert (error.found, error.why, error.next) == (FAILED.found, FAILED.why, FAILED.next)


def test_a_host_that_was_told_to_go_on_without_interrupt_remapping_goes_on() -> None:
    text = TEXTS["no-remapping"][0]
    assert names(desktop(kernel_log=text)) == ["no-remapping"]
    assert names(desktop(kernel_log=text, unsafe_interrupts=True)) == []
