"""homelab/host/gates.py: what is refused before a host is changed, and the one setting that opens each gate."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.host import gates
from homelab.host.facts import HostFacts
from homelab.settings import Host
from tests.unit.hosts import desktop, device, gpu, settings

NVME = device("0000:01:00.2", "144d:a80c", "010802", 16, driver="nvme", behind="nvme1n1")


def reasons(facts: HostFacts, host: Host) -> list[str]:
    return [error.found for error in gates.check(facts, host)[1]]


def test_a_card_alone_in_its_group_passes_every_gate() -> None:
    assert gates.check(desktop(), settings()) == ({"rtx5090": "0000:01:00"}, [])


def test_a_card_that_is_not_there_is_refused_with_those_that_are() -> None:
    (found,) = reasons(desktop(), settings({"g": {"match": "10de:2684"}}))
    assert (
        found == "graphics cards here: RTX 5090 [10de:2b85] at 0000:01:00.0; graphics card [1002:164e] at 0000:0b:00.0"
    )


def test_two_identical_cards_need_an_address() -> None:
    facts = desktop(*gpu("0000:03:00", 18))
    assert reasons(facts, settings()) == ["2: 0000:01:00, 0000:03:00"]
    chosen = settings({"g": {"match": "10de:2b85", "address": "03:00"}})
    assert gates.check(facts, chosen) == ({"g": "0000:03:00"}, [])


def test_a_card_under_two_names_is_refused() -> None:
    assert reasons(desktop(), settings({"a": {"match": "10de:2b85"}, "b": {"address": "01:00"}})) == [
        "both are the one in 0000:01:00"
    ]


def test_an_address_that_holds_something_else_is_refused() -> None:
    assert len(reasons(desktop(), settings({"g": {"address": "02:00"}}))) == 1
    assert len(reasons(desktop(), settings({"g": {"address": "01:00", "match": "10de:2684"}}))) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            device("0000:02:00.0", "144d:a80c", "010802", 16, behind="nvme0n1"),
            "NVMe disk [144d:a80c] (nvme0n1, / on pve-root)",
        ),
        (device("0000:05:00.0", "10ec:8125", "020000", 16, behind="enp5s0"), "network card [10ec:8125] (enp5s0)"),
        (device("0000:06:00.0", "1022:43f4", "0c0330", 16), "USB controller [1022:43f4]"),
        (device("0000:07:00.0", "1234:5678", "118000", 16), "signal processor [1234:5678]"),
        (device("0000:01:01.0", "10de:2684", "030000", 16), "graphics card [10de:2684]"),
    ],
)
def test_anything_else_in_the_group_is_refused_and_named(other: dict[str, Any], said: str) -> None:
    everything = [one for one in desktop().model_dump(by_alias=True)["devices"] if one["address"] != other["address"]]
    (found,) = reasons(desktop(devices=[*everything, other]), settings())
    assert found.endswith(said)


def test_bridges_in_the_group_do_no_harm() -> None:
    bridge = device("0000:00:01.0", "1022:14da", "060000", 16), device("0000:00:01.2", "1022:14db", "060400", 16)
    assert reasons(desktop(*bridge), settings()) == []


def test_a_group_member_may_go_along_when_it_is_named() -> None:
    usb = device("0000:06:00.0", "1022:43f4", "0c0330", 16)
    allowed = settings({"g": {"match": "10de:2b85", "allowGroupMembers": ["0000:06:00.0"]}})
    assert reasons(desktop(usb), allowed) == []
    assert len(reasons(desktop(usb, device("0000:06:00.1", "1022:43f5", "010601", 16)), allowed)) == 1


def without_groups(*more: dict[str, Any], acs: bool) -> HostFacts:
    devices: list[dict[str, Any]] = [
        device("0000:00:01.0", "8086:1901", "060400", acs=acs),
        *gpu(group=None, parent="0000:00:01.0"),
        *more,
    ]
    return desktop(
        devices=devices, iommu={"tables": ["DMAR"], "groups": 0, "kernel_log": ""}, cpu_vendor="GenuineIntel"
    )


def test_before_there_are_groups_the_topology_tells_what_shares_one() -> None:
    behind = device("0000:01:01.0", "144d:a80c", "010802", parent="0000:00:01.0")
    sibling = (
        device("0000:00:01.1", "8086:1905", "060400"),
        device("0000:02:00.0", "144d:a80c", "010802", parent="0000:00:01.1"),
    )
    elsewhere = (
        device("0000:00:1d.0", "8086:a298", "060400"),
        device("0000:04:00.0", "144d:a80c", "010802", parent="0000:00:1d.0"),
    )
    assert reasons(without_groups(*elsewhere, acs=False), settings()) == []
    assert reasons(without_groups(behind, acs=True), settings()) == []
    assert "0000:01:01.0" in reasons(without_groups(behind, acs=False), settings())[0]
    # z370-2080ti-2060: the functions of a root port's slot are not isolated from each other.
    assert "0000:02:00.0" in reasons(without_groups(*sibling, acs=False), settings())[0]


def test_an_iommu_switched_off_in_the_firmware_is_refused() -> None:
    off = {"tables": [], "groups": 0, "kernel_log": "DMAR: IOMMU enabled"}
    (found,) = reasons(desktop(iommu=off), settings())
    assert found == "no IVRS table in /sys/firmware/acpi/tables, and no IOMMU group"


@pytest.mark.parametrize(
    ("vendor", "word", "refused"),
    [
        ("AuthenticAMD", "amd_iommu=off", True),
        ("AuthenticAMD", "iommu=off", True),
        ("GenuineIntel", "iommu=off", True),
        ("GenuineIntel", "intel_iommu=off", False),  # a later intel_iommu=on wins
    ],
)
def test_a_word_that_the_kernel_never_takes_back_is_refused(vendor: str, word: str, refused: bool) -> None:
    cmdline = {"running": word, "configured": word, "others": f"quiet {word}", "generated": word}
    assert bool(reasons(desktop(cmdline=cmdline, cpu_vendor=vendor), settings())) is refused


def test_the_hosts_console_is_not_taken_unless_accepted() -> None:
    facts = desktop()
    console = settings({"igpu": {"match": "1002:164e"}})
    assert reasons(facts, console) == ["the firmware uses this card as its screen (boot_vga)"]
    assert reasons(facts, settings({"igpu": {"match": "1002:164e", "allowConsole": True}})) == []


@pytest.mark.parametrize(
    ("line", "uses"),
    [
        ("dev0: /dev/nvidia0,mode=0666", True),
        ("lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file", True),
        ("lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file", True),
        ("lxc.mount.entry: /dev/nvidia0 dev/nvidia7 none bind,create=file", True),
        ("lxc.mount.entry: /dev dev none rbind,create=dir", True),
        ("dev0: mode=0666,path=/dev/nvidia0", True),
        ("[pve:pending]\ndev0: /dev/nvidia0", True),
        ("dev0: /dev/nvidia0\n[pve:pending]\ndelete: dev0", False),
        ("[before]\ndev0: /dev/nvidia0", False),
        ("mp0: /srv/dev/nvidia0,mp=/x", False),
        ("dev0: /dev/nvidia1", False),
        ("dev0: /dev/nvidia01", False),
        ("hostname: nvidia0", False),
    ],
)
def test_a_card_that_containers_use_is_not_taken_from_them(line: str, uses: bool) -> None:
    guests = {
        "running": [],
        "configs": [{"kind": "lxc", "id": 950, "lines": f"unprivileged: 1\n{line}"}],
        "mappings": "",
        "reservations": "",
    }
    facts = desktop(guests=guests, nvidia_minors={"0000:01:00.0": 0, "0000:41:00.0": 1})
    assert reasons(facts, settings()) == (["containers that use it: 950"] if uses else [])
    assert reasons(facts, settings({"g": {"match": "10de:2b85", "allowContainers": [950]}})) == []


def test_a_card_for_containers_or_the_host_is_not_held_to_the_gates_of_passthrough() -> None:
    assert reasons(desktop(NVME), settings({"g": {"match": "10de:2b85", "use": "lxc"}})) == []


def test_a_full_boot_partition_is_refused_unless_the_initramfs_is_made_already() -> None:
    full = {"boot_free": 50 * 2**20, "largest_initramfs": 60 * 2**20}
    assert reasons(desktop(**full), settings()) == ["50 MiB free"]
    made = [{"layer": "vfio", "path": "/etc/initramfs-tools/scripts/init-top/homelab-vfio", "state": "ok"}]
    assert reasons(desktop(**full, managed=made), settings()) == []
    assert reasons(desktop(**full, managed=made, stale_initramfs=["6.17.2-1-pve"]), settings()) == ["50 MiB free"]
    assert reasons(desktop(**full), settings({})) == []


def test_missing_commands_and_an_unknown_boot_loader_are_refused_together() -> None:
    facts = desktop(missing_tools=["lspci"], loader="", loader_clues="LoaderInfo 'not set'")
    assert reasons(facts, settings()) == ["missing: lspci", "LoaderInfo 'not set'"]


def test_a_node_without_a_quorum_is_left_as_it_is() -> None:
    facts = desktop()
    alone = facts.model_copy(update={"cluster": facts.cluster.model_copy(update={"quorate": False, "node": "pve1"})})
    (found,) = gates.check(alone, settings())[1]
    assert "the node pve1" in found.wanted and "no quorum" in found.found and "nothing was changed" in found.why
