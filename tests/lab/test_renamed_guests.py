"""A guest that gets another name in the settings, or whose id another one has by now: neither is taken for the old one, and none is removed for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.guest.resource import Guest
from homelab.guest.work import GuestWork
from homelab.remote.proxmox import api as api_module
from homelab.settings import NewContainer, NewVm
from homelab.vm.work import VmCardsWork
from lab import Lab
from tests.lab.stack_kit import CARDS_URN, ID, NODE, TEMPLATE, given_card, made_guest, put_template, stack_of

# The old name begins as the new one does.
OLD, NEW = "media2", "media"


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    put_template(lab)
    return lab


def container(name: str, **options: Any) -> Guest.Inputs:
    new = NewContainer.model_validate({"ostemplate": f"local:vztmpl/{TEMPLATE}", "rootfs": "local-lvm:8"} | options)
    return made_guest("lxc", name, new.configuration(name))


def machine(name: str, **options: Any) -> Guest.Inputs:
    new = NewVm.model_validate({"scsi0": "local-lvm:8", "net0": "virtio,bridge=vmbr0"} | options)
    return made_guest("qemu", name, new.configuration(name), clone=new.clone, size=new.size)


def conf(lab: Lab, kind: str) -> str:
    return (lab.root / f"etc/pve/nodes/{NODE}/{kind}/{ID}.conf").read_text()


@pytest.mark.parametrize(
    ("of", "noun", "settings", "key", "kind"),
    [(container, "container", "containers", "ctid", "lxc"), (machine, "VM", "vms", "vmid", "qemu-server")],
    ids=["container", "VM"],
)
def test_a_created_guest_under_another_name_is_refused_and_stays(
    lab: Lab, of: Callable[[str], Guest.Inputs], noun: str, settings: str, key: str, kind: str
) -> None:
    guests: dict[str, Any] = {settings: {NEW: {"host": NODE, key: ID, "gpus": []}}}
    work = GuestWork(stack_of(lab, **guests))
    made = work.create(of(OLD))
    before = conf(lab, kind)
    with pytest.raises(HomelabError) as error:
        work.create(of(NEW))
    assert error.value.found == f"this stack has created {noun} {ID} as {settings}.{OLD}"
    assert f"put the name {OLD} back" in error.value.next
    assert f"leave `create` out of {settings}.{NEW}" in error.value.next
    # What that advises: without `create` it is adopted, and what had the old name goes without it.
    work.delete(of(OLD), made)
    assert conf(lab, kind) == before
    # A run that was interrupted finds its own; what had it before no longer removes it.
    again = work.create(of(OLD))
    GuestWork(stack_of(lab)).delete(of(OLD), made)
    assert conf(lab, kind) == before.replace(made.instance, again.instance)
    GuestWork(stack_of(lab)).delete(of(OLD), again)
    assert not (lab.root / f"etc/pve/nodes/{NODE}/{kind}/{ID}.conf").exists()


def test_what_is_noted_of_a_created_container_goes_once_it_is_removed(lab: Lab) -> None:
    work = GuestWork(stack_of(lab), "urn:pulumi:s::p::homelab:guest:Guest::old")
    made = work.create(container(OLD))
    note = lab.root / f"etc/pve/homelab/lxc-{ID}"
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"owner": f"p/s/{OLD}", "values": {"dev0": ["/dev/nvidia0"]}}))
    lab.run(f"pct set {ID} --protection 1")
    with pytest.raises(HomelabError, match="protection"):
        work.delete(container(OLD), made)
    assert note.exists()
    lab.run(f"pct set {ID} --protection 0")
    work.delete(container(OLD), made)
    assert not note.exists()


def test_a_created_vm_keeps_its_hardware_address_on_another_bridge(lab: Lab) -> None:
    work = GuestWork(stack_of(lab))
    made = work.create(machine(OLD))
    before = conf(lab, "qemu-server")
    moved = machine(OLD, net0="virtio,bridge=vmbr1")
    made = work.update(moved, machine(OLD), made)
    assert conf(lab, "qemu-server") == before.replace("bridge=vmbr0", "bridge=vmbr1")
    work.delete(moved, made)


def test_another_vm_that_has_the_id_by_now_gets_nothing_back_that_it_never_had(lab: Lab) -> None:
    lab.run(f"qm create {ID} --name old --memory 2048 --machine pc")
    work = VmCardsWork(stack_of(lab), CARDS_URN)
    inputs = given_card(vmid=ID, cards=[], machine="q35")
    first = work.create(inputs)
    lab.run(f"qm set {ID} --machine q35")
    # What its owner changes beside that doesn't make it another one.
    uuid = conf(lab, "qemu-server").partition("uuid=")[2].splitlines()[0]
    lab.run(f"qm set {ID} --smbios1 uuid={uuid},serial=4711")
    same = work.update(dataclasses.replace(inputs, display="none"), inputs, first)
    assert work.read(dataclasses.replace(inputs, display="none"), same).drift == []

    lab.run(f"qm destroy {ID} && qm create {ID} --name precious --memory 2048 --machine q35")
    drift = work.read(inputs, same).drift
    assert f"VM {ID} isn't the VM that was given its cards" in drift
    before = conf(lab, "qemu-server")
    work.delete(inputs, same)
    assert conf(lab, "qemu-server") == before
    assert not (lab.root / f"etc/pve/homelab/qemu-{ID}").exists()


def test_what_would_lose_a_created_vms_disk_is_refused_before_anything_is_asked(lab: Lab) -> None:
    """What does: tests/unit/test_virtual_machine.py."""
    mark_of_log, made = lab.mark(), Guest.Outputs(instance="")
    with pytest.raises(HomelabError) as error:
        GuestWork(stack_of(lab)).update(machine(OLD, clone=900), machine(OLD), made)
    assert "what is on the disk would be lost" in error.value.why
    assert lab.api_calls(mark_of_log) == []


def test_what_would_lose_a_created_containers_disk_is_refused_and_it_stays_as_it_was(lab: Lab) -> None:
    work = GuestWork(stack_of(lab))
    made = work.create(container(OLD))
    before = conf(lab, "lxc")
    with pytest.raises(HomelabError) as error:
        work.update(container(OLD, unprivileged=False), container(OLD), made)
    assert "what is on the disk would be lost" in error.value.why
    assert conf(lab, "lxc") == before
    work.delete(container(OLD), made)
