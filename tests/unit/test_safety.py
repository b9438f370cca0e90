"""homelab/vm/safety.py: what a copy of a guest has in it, whose it is, and whether it is made already."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.host.facts import GuestConfig, HostFacts
from homelab.settings import Container, Vm
from homelab.vm import safety
from tests.unit.hosts import desktop

VOLUME = "local-lvm:vm-200-disk-1"


@pytest.mark.parametrize(
    ("kind", "option", "left_out"),
    [
        ("lxc", {"rootfs": f"{VOLUME},size=8G"}, []),
        ("lxc", {"mp0": f"{VOLUME},mp=/data,size=8G"}, ["mp0"]),
        ("lxc", {"mp0": f"{VOLUME},backup=0,mp=/data"}, ["mp0"]),
        ("lxc", {"mp0": f"{VOLUME},mp=/data,backup=1"}, []),
        ("lxc", {"mp12": f"{VOLUME},backup=yes,mp=/data"}, []),
        ("lxc", {"mp0": "/srv/films,mp=/films"}, []),
        ("lxc", {"mp0": f"{VOLUME},mp=/backup=1"}, ["mp0"]),
        ("qemu", {"scsi1": f"{VOLUME},size=8T"}, []),
        ("qemu", {"scsi1": f"{VOLUME},backup=0,size=8T"}, ["scsi1"]),
        ("qemu", {"virtio3": f"{VOLUME},backup=off"}, ["virtio3"]),
        ("qemu", {"ide2": "local:iso/a.iso,media=cdrom,backup=0"}, []),
    ],
)
def test_what_a_backup_leaves_out(kind: str, option: dict[str, str], left_out: list[str]) -> None:
    assert list(safety.left_out(kind, option)) == left_out


@pytest.mark.parametrize("option", ["mp=/data,size=8G", "mp=/data,backup=0"])
def test_a_container_whose_volume_no_backup_has_is_told_what_to_do(option: str) -> None:
    error = safety.no_backup("containers.ai", "lxc", 200, {"mp0": f"{VOLUME},{option}"})
    assert error and f"mp0 (/data, {VOLUME})" in error.found
    assert "backup=1" in error.next and "containers.ai.safety to snapshot" in error.next
    assert safety.no_backup("vms.ai", "qemu", 200, {"scsi1": f"{VOLUME},backup=0"}) is None


def test_what_leads_back_from_a_containers_backup_says_what_it_removes() -> None:
    said = safety.advice("lxc", 200, "pve", "backup", "local:backup/a.tar.zst")
    assert "removes every volume of the container first" in said and "backup=1" in said
    assert "unused" in safety.advice("qemu", 103, "pve", "backup", "local:backup/a.vma.zst")


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("qemu", {"smbios1": "uuid=1"}, {"smbios1": "uuid=2"}),
        ("qemu", {"meta": "ctime=1"}, {"meta": "ctime=2"}),
        ("lxc", {"net0": "name=eth0,hwaddr=BC:24:11:00:00:01"}, {"net0": "name=eth0,hwaddr=BC:24:11:00:00:02"}),
        ("lxc", {"rootfs": "local-lvm:vm-200-disk-0,size=8G"}, {"rootfs": "local-zfs:subvol-200-disk-0,size=8G"}),
    ],
)
def test_another_guest_of_the_same_id_is_known(kind: str, one: dict[str, str], other: dict[str, str]) -> None:
    assert safety.identity_of(kind, one) != safety.identity_of(kind, other)


def test_a_container_stays_the_same_when_its_networks_settings_change() -> None:
    one = {"net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp", "net1": "hwaddr=AA:00:00:00:00:01"}
    other = {"net1": "hwaddr=BC:24:11:00:00:01,ip=manual,bridge=vmbr1", "net0": "hwaddr=aa:00:00:00:00:01"}
    assert safety.identity_of("lxc", one) == safety.identity_of("lxc", other) != ""


def facts(kind: str, lines: str, note: dict[str, Any] | None) -> HostFacts:
    config = GuestConfig(kind=kind, id=200, lines=lines)
    ledger = {} if note is None else {"safety/200": json.dumps(note)}
    return desktop().model_copy(
        update={"guests": desktop().guests.model_copy(update={"configs": [config]}), "ledger": ledger}
    )


MADE = {
    "safety": "backup",
    "storage": "local",
    "identity": "uuid=1",
    "guest": "mine",
    "name": "n",
    "copy": "local:backup/a",
}


@pytest.mark.parametrize(
    ("note", "made"),
    [
        (MADE, True),
        (MADE | {"guest": "other"}, True),
        (None, False),
        ({key: value for key, value in MADE.items() if key != "copy"}, False),
        (MADE | {"storage": "nas"}, False),
        (MADE | {"safety": "snapshot", "storage": ""}, False),
        (MADE | {"identity": "uuid=2"}, False),
    ],
    ids=["made", "under another name", "no note", "only begun", "elsewhere", "a snapshot", "of another VM"],
)
def test_a_plan_believes_a_copy_that_is_made_of_this_guest_and_no_other_note(
    note: dict[str, Any] | None, made: bool
) -> None:
    vm = Vm.model_validate({"host": "pve", "vmid": 200, "gpus": [], "safety": "backup", "backupStorage": "local"})
    host = facts("vm", f"smbios1: uuid=1\nscsi1: {VOLUME},backup=0", note)
    line = f"first a backup of it on local, without scsi1 ({VOLUME}); it stays when the stack is destroyed"
    assert safety.planned(vm, host) == ([] if made else [line])


def test_a_plan_names_what_a_containers_backup_lacks() -> None:
    about = {"host": "pve", "ctid": 200, "gpuAssignment": "0", "safety": "backup", "backupStorage": "local"}
    host = facts("lxc", f"rootfs: local-lvm:a\nmp0: {VOLUME},mp=/data\nmp1: /srv,mp=/srv", None)
    said = safety.planned(Container.model_validate(about), host)
    assert f"without /srv of the host, mp0 ({VOLUME})" in said[0]
