"""What stands against a VM's way to a node with its cards while it is off, and how it is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from homelab.host.facts import HaFiles
from homelab.vm.migration import OfflineMigration, against, described, gib
from tests.unit import hosts

ROWS = {
    "lvm": {"type": "lvmthin", "content": "images,rootdir", "enabled": 1, "active": 1, "avail": 64 << 30},
    "pool": {"type": "zfspool", "content": "images", "enabled": 1, "active": 1, "avail": 64 << 30},
    "files": {"type": "dir", "content": "images,iso", "enabled": 1, "active": 1, "avail": 64 << 30},
    "isos": {"type": "dir", "content": "iso", "enabled": 1, "active": 1, "avail": 64 << 30},
    "off": {"type": "lvmthin", "content": "images", "enabled": 0, "active": 0, "avail": 0},
    "san": {"type": "iscsidirect", "content": "images", "enabled": 1, "active": 1},
}
CONFIG = {"name": "Sandbox", "memory": "4096", "scsi0": "lvm:vm-103-disk-0,size=32G", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0"}  # fmt: skip
CARDS = {"rtx5090": {"match": "10de:2b85"}}
DISK = {"volid": "lvm:vm-103-disk-0"}


def a_move(*disks: dict[str, Any], config: dict[str, str] | None = None, **more: Any) -> OfflineMigration:
    said = {
        "local_disks": list(disks),
        "local_resources": [],
        "mapped-resources": [],
        "not_allowed_nodes": {"pve1": {}},
    }
    said |= more.pop("said", {})
    about: dict[str, Any] = {"here": ROWS, "there": ROWS, "bridges_here": frozenset({"vmbr0"}), "memory": 64 << 30}
    about |= {"bridges_there": frozenset({"vmbr0"}), "running": True, **more}
    return OfflineMigration("sandbox", 103, "pve3", "pve1", {**CONFIG, **(config or {})}, said=said, **about)


def of(volume: str, **more: Any) -> dict[str, Any]:
    return {"volid": volume, "size": 1 << 30, **more}


def not_allowed(**more: list[str]) -> dict[str, Any]:
    return {"not_allowed_nodes": {"pve1": {key.replace("_resources", "-resources"): one for key, one in more.items()}}}


SNAPSHOT = {"referenced_in_snapshot": {"before": 1}}


@pytest.mark.parametrize(
    ("move", "found", "advised"),
    [
        (a_move(said={"local_resources": ["usb0"]}, config={"usb0": "host=1:2"}), "it has devices of pve3: usb0: host=1:2", "qm set 103 --delete usb0"),
        (a_move(said=not_allowed(unavailable_resources=["hostpci1"]), config={"hostpci1": "mapping=nic"}), "no entry for pve1: hostpci1: mapping=nic", "add an entry for pve1"),
        (a_move(said=not_allowed(unavailable_storages=["nas"])), "it has disks on nas, which pve1 doesn't have", "make nas available there"),
        (a_move(DISK, there={**ROWS, "lvm": ROWS["off"]}), "and lvm is not enabled on pve1", "vms.sandbox.migrateStorage (files, pool)"),
        (a_move(DISK, there={}), "and pve1 has no lvm, or the API's user may not see it", "name a storage of pve1"),
        (a_move(DISK, storage="isos"), "isos takes no disk images", "migrateStorage"),
        (a_move({**DISK, "size": 65 << 30}), "65 GiB of its disks would be copied to lvm, which has 64 GiB left on pve1", "make room there"),
        (a_move(of("files:iso/a.iso", cdrom=1)), "is in one of its CD drives, and lies on pve3 alone", "eject it"),
        (a_move(of("san:lun1")), "of the type iscsidirect", "move the disk to another storage"),
        (a_move(of("files:100/base-100-disk-0.qcow2/103/vm-103-disk-0.qcow2")), "is a linked clone", "full clone"),
        (a_move(of("pool:vm-103-disk-0"), storage="lvm"), "of the type zfspool to lvm, of the type lvmthin", "name another storage"),
        (a_move(of("lvm:vm-103-disk-0", **SNAPSHOT)), "vm-103-disk-0 with its snapshots would be copied", "qm listsnapshot 103"),
        (a_move(of("files:103/vm-103-disk-0.raw", **SNAPSHOT)), "with its snapshots would be copied", "remove its snapshots"),
        (a_move(bridges_there=frozenset()), "net0 is on the bridge vmbr0, which pve1 doesn't have", "make vmbr0 on pve1"),
        (a_move(jobs=("103-0",)), "it is replicated (job 103-0)", "pvesr delete 103-0"),
        (a_move(memory=2 << 30), "it has 4 GiB of memory, and pve1 has 2 GiB in all", "give it less"),
        (a_move(DISK, by_ha=True), "it is under HA, with disks on storages of pve3 alone: lvm:vm-103-disk-0", "ha-manager remove vm:103"),
        (a_move(by_ha=True, said={"not_allowed_nodes": {"pve1": {"blocking-ha-resources": [{"sid": "vm:104"}]}}}), "keeps it apart from vm:104 on pve1", "change that rule"),
    ],
)  # fmt: skip
def test_what_proxmox_ve_would_refuse_or_the_vm_wouldnt_start_with_is_refused(
    move: OfflineMigration, found: str, advised: str
) -> None:
    (error,) = against(move, hosts.settings(CARDS), hosts.desktop())
    assert found in error.found and advised in error.next and "nothing was changed" in error.why


@pytest.mark.parametrize(
    "move",
    [
        a_move(),
        a_move(DISK),
        a_move(of("pool:vm-103-disk-0", **SNAPSHOT), of("files:103/vm-103-disk-1.qcow2", **SNAPSHOT)),
        a_move(of("lvm:vm-103-cloudinit"), config={"ide2": "lvm:vm-103-cloudinit,media=cdrom"}),
        # What is copied elsewhere needs no storage of that name; and this run writes its own cards' mappings first.
        a_move(DISK, storage="files", said=not_allowed(unavailable_storages=["lvm"])),
        a_move(said=not_allowed(unavailable_resources=["hostpci0"]), config={"hostpci0": "mapping=rtx5090"}),
        a_move(bridges_here=frozenset(), bridges_there=frozenset()),
        a_move(memory=0),
    ],
)
def test_what_goes_isnt_refused(move: OfflineMigration) -> None:
    assert against(move, hosts.settings(CARDS), hosts.desktop()) == []


RULE = "node-affinity: cards\n\tresources vm:103\n\tnodes {}\n"


@pytest.mark.parametrize(
    ("rules", "groups", "about", "why"),
    [
        ("", "", "", ""),
        (RULE.format("pve3"), "", "", "the rule cards is for pve3"),
        (RULE.format("pve1,pve3"), "", "", ""),
        (RULE.format("pve1:1,pve3:2"), "", "", "the rule cards prefers pve3"),
        (RULE.format("pve1:1,pve3:2"), "", "\tfailback 0\n", ""),
        (RULE.format("pve3") + "\tdisable 1\n", "", "", ""),
        ("", "group: g\n\tnodes pve2,pve3\n", "\tgroup g\n", "its group g is for pve2, pve3"),
        ("", "group: g\n\tnodes pve1:1,pve3:2\n", "\tgroup g\n", "its group g prefers pve3"),
        ("", "group: g\n\tnodes pve1:1,pve3:2\n\tnofailback 1\n", "\tgroup g\n", ""),
    ],
)
def test_a_vm_that_ha_would_take_away_again_is_refused(rules: str, groups: str, about: str, why: str) -> None:
    facts = hosts.desktop()
    files = HaFiles(resources=f"vm: 103\n{about}", rules=rules, groups=groups)
    cluster = facts.cluster.model_copy(update={"ha": files, "node": "pve1", "name": "home"})
    found = against(a_move(by_ha=True), hosts.settings(CARDS), facts.model_copy(update={"cluster": cluster}))
    assert [error.found for error in found] == ([f"it is under HA, and {why}"] if why else [])


def test_the_preview_says_from_where_to_where_how_long_and_what_is_copied() -> None:
    assert described(a_move(DISK, of("pool:vm-103-disk-1"), storage="files")) == [
        "  VM 103 (Sandbox) is on pve3, which has none of its cards: shut down, migrated to pve1 while it is off, started there with its cards",
        "    33 GiB of disks of pve3 alone are copied to files on pve1; the VM is off meanwhile",
        "    a destroy leaves it on pve1",
    ]
    off = described(a_move(running=False, by_ha=True, bridges_here=frozenset()))
    assert off[0].endswith("migrated to pve1 while it is off, stays off unless an earlier run has shut it down")
    assert off[1:4] == [
        "    no disk is copied: all of them are on storages that both nodes have",
        "    HA does it, as it is one of its services",
        "    whether pve1 has vmbr0 isn't known: the API's user may not see it",
    ]
    begun = dataclasses.replace(a_move(config={"lock": "migrate"}), said={}, under_way="UPID:x")
    assert "its migration to pve1, which an earlier run began, is waited for" in described(begun)[0]
    assert "lock" not in begun.free_config and against(begun, hosts.settings(CARDS), hosts.desktop()) == []
    assert gib(3 << 29) == "1.5 GiB"
