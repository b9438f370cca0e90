"""IOMMU groups as they are predicted, with `pcie_acs_override=` and without (homelab/facts/acs.py, HostFacts.group_of)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from homelab.cards import group_gates, remapping
from homelab.cards import remarks as card_remarks
from homelab.facts import acs
from homelab.facts.host import HostFacts
from homelab.host import gates
from remote_scripts.reading.answer import Vital
from tests.rows import rows
from tests.unit.hosts import cmdline, desktop, device, gpu, settings

PVE = "6.17.2-1-pve"


def z370(groups: bool = True, **changes: Any) -> HostFacts:
    """As the capture z370-2080ti-2060: two root ports of one slot, without ACS, and a card behind each; the root disk is behind the second."""
    group = 1 if groups else None

    def behind(port: str, *devices: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**one, "path": f"../../../devices/pci0000:00/{port}/{one['address']}"} for one in devices]

    devices = [
        device("0000:00:01.0", "8086:1901", "060400", group, express="root port"),
        device("0000:00:01.1", "8086:1905", "060400", group, express="root port"),
        *behind("0000:00:01.0", *(one | {"express": "endpoint"} for one in gpu(group=group))),
        *behind("0000:00:01.1", device("0000:02:00.0", "10de:1f08", "030000", group, express="endpoint")),
    ]
    log = "DMAR-IR: Enabled IRQ remapping in x2apic mode"
    iommu = {"tables": ["DMAR"], "groups": 12 if groups else 0, "kernel_log": log}
    return desktop(**({"devices": devices, "cpu_vendor": "GenuineIntel", "iommu": iommu} | changes))


def apart(facts: HostFacts, **changes: Any) -> list[dict[str, Any]]:
    """The devices, of which the card is in a group of its own."""
    own = {"group": 15, **changes}
    return [one | (own if one["address"].startswith("0000:01") else {}) for one in asdict(facts)["devices"]]


def others(facts: HostFacts, slot: str = "0000:01:00") -> set[str]:
    return {one.address for one in facts.others_in_group(slot)}


@rows(
    ("words", "kernel", "found"),
    [
        ("pcie_acs_override=downstream", PVE, "downstream"),
        ("pcie_acs_override=multifunction,downstream", PVE, "downstream,multifunction"),
        ("pcie_acs_override=id:8086:1901,ID:10DE:1F08", PVE, "id:8086:1901"),  # `ID:` isn't `id:` to the kernel
        ("pcie_acs_override=id:8086:1901 pcie_acs_override=downstream", PVE, "downstream,id:8086:1901"),
        ("pcie_acs_override=id:8086,id:,nonsense,,", PVE, ""),
        ("pcie_acs_override= pci_acs_override=downstream", PVE, ""),  # as the patch's own documentation misspells it
        ("pcie_acs_override=downstream", "6.12.48+deb13-amd64", ""),  # no kernel of Proxmox VE's
    ],
)  # fmt: skip
def test_the_word_is_understood_as_the_kernel_does(words: str, kernel: str, found: str) -> None:
    assert str(acs.override(f"quiet {words} ro", kernel)) == found


@rows("groups", [True, False])
@rows(
    ("override", "left"),
    [
        (None, {"0000:02:00.0"}),
        ("downstream", set()),
        ("multifunction", {"0000:02:00.0"}),  # root ports are no endpoints
        ("id:8086:1901", set()),
        ("id:8086:1905", set()),  # one isolating port of two is enough
        ("id:10de:2b85", {"0000:02:00.0"}),
    ],
)
def test_groups_are_those_that_the_next_boot_makes_with_the_override(
    override: str | None, left: set[str], groups: bool
) -> None:
    host = settings(iommu={"acsOverride": override})
    assert others(remapping.to_be(z370(groups), host)) == left
    assert bool(gates.check(z370(groups), host)[1]) is bool(left)


def test_one_that_is_set_by_hand_counts_too_running_or_for_the_next_boot() -> None:
    word = "pcie_acs_override=downstream"
    split = apart(z370())
    assert others(z370(groups=False, cmdline=cmdline(word))) == set()
    assert others(z370(cmdline=cmdline("quiet", word))) == set()
    assert others(z370(devices=split, cmdline=cmdline(word))) == set()
    # Taken away from the next boot, it joins again what it had divided.
    assert others(z370(devices=split, cmdline=cmdline(word, "quiet"))) == {"0000:02:00.0"}


def test_the_override_changes_nothing_for_acs_conventional_pci_or_below_shared_bridges() -> None:
    path = "../../../devices/pci0000:00/0000:00:1c.0/0000:03:00.0"
    old = [
        device("0000:00:1c.0", "8086:a110", "060400", express="root port"),
        device("0000:03:00.0", "1b21:1080", "060400"),  # PCIe to PCI
        *({**one, "path": f"{path}/{one['address']}"} for one in gpu("0000:04:00", group=None)),
        device("0000:04:01.0", "13f6:8788", "040100", path=f"{path}/0000:04:01.0"),
    ]
    found = z370(groups=False, devices=old, cmdline=cmdline("pcie_acs_override=downstream,multifunction"))
    assert others(found, "0000:04:00") == {"0000:04:01.0"}
    below = "x/0000:00:1c.0"
    switch = [
        device("0000:00:1c.0", "8086:a110", "060400", express="root port"),
        device(
            "0000:03:00.0", "1022:43e9", "060400", express="downstream port", acs=True, path=f"{below}/0000:03:00.0"
        ),
        *({**one, "path": f"x/0000:00:1c.0/0000:03:00.0/{one['address']}"} for one in gpu("0000:04:00", group=None)),
        device("0000:05:00.0", "144d:a80c", "010802", path="x/0000:00:1c.0/0000:05:00.0"),
    ]
    # A port that isolates is of no use below a root port that doesn't.
    assert others(z370(groups=False, devices=switch), "0000:04:00") == {"0000:05:00.0"}


def test_functions_of_one_slot_part_where_each_is_taken_for_isolating() -> None:
    slot = [device(f"0000:00:1f.{n}", "8086:a2c9", code, express="root complex integrated endpoint") for n, code in enumerate(("030000", "040300", "020000"))]  # fmt: skip
    together = z370(groups=False, devices=slot)
    apart = z370(groups=False, devices=slot, cmdline=cmdline("pcie_acs_override=multifunction"))
    assert others(together, "0000:00:1f") == {"0000:00:1f.2"} and others(apart, "0000:00:1f") == set()


def with_disk(**changes: Any) -> HostFacts:
    """The root disk is behind the other root port of the card's slot."""
    disk = device(
        "0000:02:00.0", "144d:a80c", "010802", 1, express="endpoint", path="x/0000:00:01.1/0000:02:00.0", driver="nvme"
    )
    devices = [one for one in asdict(z370())["devices"] if one["address"] != "0000:02:00.0"]
    vital = [{"kind": "storage", "name": "/ (ext4)", "devices": ["0000:02:00.0", "0000:00:01.1"], "trouble": ""}]
    return z370(**({"devices": [*devices, disk], "vital": vital} | changes))


@pytest.mark.parametrize("groups", [True, False])
def test_it_takes_no_card_out_of_a_group_with_the_root_disk(groups: bool) -> None:
    facts = with_disk()
    if not groups:
        bare = [one | {"group": None} for one in asdict(facts)["devices"]]
        facts = with_disk(devices=bare, iommu=replace(facts.iommu, groups=0))
    (error,) = gates.check(facts, settings(iommu={"acsOverride": "downstream"}))[1]
    assert "NVMe disk" in error.found and "carries / (ext4)" in error.found and "past the IOMMU" in error.why
    staying = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}}, iommu={"acsOverride": "downstream"})
    assert gates.check(facts, staying)[1] == []
    # Where what carries the disk isn't known, neither.
    unknown = Vital("storage", "/", [], "lsblk says nothing")
    (error,) = gates.check(replace(facts, vital=[unknown]), settings(iommu={"acsOverride": "downstream"}))[1]  # fmt: skip
    assert "lsblk says nothing" in error.found


@pytest.mark.parametrize("groups", [True, False])
def test_a_disk_that_is_in_another_group_anyway_is_no_reason(groups: bool) -> None:
    root = [{"kind": "storage", "name": "/", "devices": ["0000:02:00.0"], "trouble": ""}]
    facts = desktop(vital=root)
    if not groups:
        bare = [one | {"group": None} for one in asdict(facts)["devices"]]
        facts = desktop(vital=root, devices=bare, iommu=replace(facts.iommu, groups=0))
    assert gates.check(facts, settings(iommu={"acsOverride": "downstream"}))[1] == []


def test_a_card_is_taken_out_of_the_root_disks_group_by_no_way_around() -> None:
    """Not by a driver that a VM's start has left behind, and not if the disk came to the card later."""
    word, ours = "pcie_acs_override=downstream", "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"
    devices = apart(with_disk(), driver="vfio-pci")
    host = settings(iommu={"acsOverride": "downstream"})
    for running in (f"quiet {word}", f"quiet {word} {ours}"):
        (error,) = gates.check(with_disk(devices=devices, cmdline=cmdline(running, others="quiet")), host)[1]
        assert "carries / (ext4)" in error.found
    # A card of ours stays for once where what carries the disk can't be told; another doesn't come.
    unknown = [{"kind": "storage", "name": "/", "devices": [], "trouble": "lsblk says nothing"}]
    found = [
        gates.check(with_disk(devices=devices, vital=unknown, cmdline=cmdline(running, others="quiet")), host)[1]
        for running in (f"quiet {word}", f"quiet {word} {ours}")
    ]
    assert [len(errors) for errors in found] == [1, 0]
    # Nor does one that was bound without the override.
    before = with_disk(vital=unknown, cmdline=cmdline(f"quiet {ours}", others="quiet"))
    assert "lsblk says nothing" in gates.check(before, host)[1][0].found


def test_an_override_of_somebody_elses_is_said_and_not_refused() -> None:
    word = "pcie_acs_override=downstream"
    by_hand = with_disk(devices=apart(with_disk(), driver="nouveau"), cmdline=cmdline(f"quiet {word}"))
    assert gates.check(by_hand, settings())[1] == []
    said = "\n".join(card_remarks.remarks(by_hand, settings(), {"rtx5090": "0000:01:00"}))
    assert "set by hand, and left as it is" in said and "0000:02:00.0 NVMe disk" in said


def test_the_plan_says_what_the_override_risks_and_what_it_divides() -> None:
    host = settings(iommu={"acsOverride": "downstream"})
    facts = remapping.to_be(z370(), host)
    first, second = card_remarks.remarks(facts, host, {"rtx5090": "0000:01:00"})[:2]
    assert first.startswith("pcie_acs_override=downstream (iommu.acsOverride)") and "peer-to-peer DMA" in first
    assert second.startswith("gpus.rtx5090: without it") and "0000:02:00.0 graphics card" in second
    assert remapping.words(z370(), host).endswith(" pcie_acs_override=downstream")
    assert "override" not in "".join(card_remarks.remarks(z370(), settings(), {"rtx5090": "0000:01:00"}))


def test_it_is_offered_as_the_last_resort_where_it_would_not_be_refused() -> None:
    def advice(facts: HostFacts) -> str:
        return next(group_gates.isolation(facts, "a", settings().gpus["rtx5090"], "0000:01:00")).next

    assert "as the last resort iommu.acsOverride: downstream" in advice(z370())
    assert "acsOverride is no way out, and refused here" in advice(with_disk())
    assert "acsOverride" not in advice(z370(kernel="6.12.48+deb13-amd64"))
    assert all(advice(one).startswith("switch ACS on in the firmware's setup") for one in (z370(), with_disk()))


def test_ten_thousand_devices_are_grouped_at_once() -> None:
    many = [device(f"{bus // 256 + 1:04x}:{bus % 256:02x}:{slot:02x}.{n}", "8086:1901", "088000") for bus in range(40) for slot in range(32) for n in range(8)]  # fmt: skip
    facts = z370(groups=False, devices=[*asdict(z370(False))["devices"], *many])
    assert len(facts.devices) > 10_000 and others(facts) == {"0000:02:00.0"}
