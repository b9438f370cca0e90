"""VMs that are made from settings: created, changed in place, found again, removed; or left where they are protected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.nvidia import reached
from tests.e2e.test_gpu_vm import conf, given_back, undone_of, vms, with_card

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXQnY2nn8pYE3d0ZV8cJ1mkkfZ0w1eYF5mC5p4Jm1Xb somebody@pc"


def new_vm(**more: Any) -> dict[str, Any]:
    return {
        "vmid": 200,
        "gpus": ["rtx5090"],
        "create": {"cores": 8, "memory": 16384, "net0": "virtio,bridge=vmbr0", **more},
    }


def test_vms_are_made_from_nothing_to_cuda_past_what_is_refused_changed_in_place_made_anew_and_removed_unless_protected(
    stack_on: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    """Of an image that is downloaded, and of a template. Beside them a VM for Windows, with virtio's drivers; with the card: tests/e2e/test_gaming_vm.py."""
    example, of_windows = (
        yaml.safe_load((PROJECT / f"examples/settings/{name}-vm.yaml").read_text())["config"]
        for name in ("new", "windows")
    )
    downloads = example["homelab:hosts"]["pve"]["downloads"]
    [image] = downloads
    digest = hashlib.sha256(b"the lab's stand-in of Ubuntu 24.04's cloud image\n").hexdigest()
    downloads[image]["checksum"] = f"sha256:{digest}"
    windows = of_windows["homelab:vms"]["gaming"]["create"] | {"sata0": "local:iso/Win11.iso,media=cdrom"}
    cloned = {"clone": 900, "size": 64, "ide2": "local-lvm:cloudinit", "ciuser": "dev", "sshkeys": KEY}
    cloned["ipconfig0"] = "ip=192.168.0.50/24,gw=192.168.0.1"
    stack = stack_on(
        "bound-by-hand",
        vms={
            "dev": new_vm(**{**example["homelab:vms"]["sandbox"]["create"], "sshkeys": KEY, "protect": True}),
            "copy": {**new_vm(**cloned), "vmid": 103, "gpus": []},
            "gaming": {**new_vm(**windows), "vmid": 202, "gpus": []},
        },
        downloads=downloads | of_windows["homelab:hosts"]["pve"]["downloads"],
    )
    vms(stack)["dev"] |= {**reached(stack.lab, 200), "nvidia": {"driver": "580", "cuda": "12.8"}}
    stack.lab.run(
        "qm create 900 --name noble --machine q35 --bios ovmf --memory 2048 --net0 virtio,bridge=vmbr0 --scsihw virtio-scsi-single "
        "--efidisk0 local-lvm:1,efitype=4m --scsi0 local-lvm:3; qm set 900 --template 1"
    )
    # What a preview refuses: tests/e2e/test_roads.py, and each by itself: tests/lab/test_storage_files.py, test_judged_guests.py.
    stack.lab.run(
        "pvesh set /storage/local --content backup,import,iso,vztmpl; cd $HOMELAB_ROOT/var/lib/vz; mkdir -p import template/iso; "
        "echo windows >template/iso/Win11.iso"
    )
    before, allowed = conf(stack, 103), stack.lab.snapshot()
    taken = stack.up(ok=False)
    with subtests.test("an id that another VM has"):
        assert "there is a VM 103 already: Sandbox" in taken.message and "to adopt that VM" in taken.message
        assert conf(stack, 103) == before
    vms(stack)["copy"]["vmid"] = 201
    said = taken.output + stack.up().output
    with subtests.test("the tasks' own words"):
        assert (
            "OK, checksum verified" in said and "gaming: scsi0: successfully created disk" in said
        )  # the tasks' own words
    with subtests.test("one of an image"):
        assert "size=64G" in conf(stack, 200) and "ide2: local-lvm:vm-200-cloudinit,media=cdrom" in conf(stack, 200)
        assert {
            "agent: 1", "balloon: 0", "bios: ovmf", "ciuser: ubuntu", "cores: 8", "cpu: host", "hostpci0: mapping=rtx5090,pcie=1",
            "ipconfig0: ip=192.168.0.103/24,gw=192.168.0.1", "machine: q35", "memory: 16384", "name: dev", "scsihw: virtio-scsi-single",
        } <= {*conf(stack, 200).splitlines()}  # fmt: skip
        assert "efitype=4m,pre-enrolled-keys=0" in conf(stack, 200)
        assert with_card(stack)["0000:01:00.0"] == 200
    with subtests.test("one of a template"):
        assert "size=64G" in conf(stack, 201) and "ciuser: dev" in conf(stack, 201)
    found = stack.output()["vms"]
    with subtests.test("CUDA, and the address, as outputs"):
        assert (found["dev"]["nvidia"]["cuda"], found["dev"]["nvidia"]["program"]) == ("12.8", True)
        assert found["copy"]["address"] == "192.168.0.50"
    with subtests.test("one for Windows"):
        lines = conf(stack, 202).splitlines()
        for line in (
            "boot: order=scsi0;sata0",
            "sata0: local:iso/Win11.iso,media=cdrom",
            "sata1: local:iso/virtio-win.iso,media=cdrom",
            "ostype: win11",
            "tpmstate0:",
        ):
            assert any(one.startswith(line) for one in lines), line
        assert any("pre-enrolled-keys=1" in line for line in lines)

    # Changed by hand, and in the settings, too; a disk that grows: in place, with one shutdown. Another one, removed by hand, is made anew.
    stack.lab.run("qm set 200 --cores 2; qm stop 202; qm destroy 202")
    vms(stack)["dev"]["create"] |= {"cores": 4, "size": 80}
    mark = stack.lab.mark()
    changed = stack.up("--refresh")
    with subtests.test("changed in place, and made anew"):
        assert "drift: cores is 2 instead of 8" in changed.output
        assert ("update", "dev-vm") in changed.steps and ("delete-replaced", "dev-vm") not in changed.steps
        assert "cores: 4" in conf(stack, 200) and "size=80G" in conf(stack, 200)
        assert [one for one in stack.power_calls(mark) if one.startswith("200")] == ["200 shutdown", "200 start"]
        assert with_card(stack)["0000:01:00.0"] == 200 and "name: gaming" in conf(stack, 202)

    undone = undone_of(stack)
    with subtests.test("what a destroy would do"):
        for vmid, name in ((201, "copy"), (202, "gaming")):
            assert f"  VM {vmid} ({name}) is deleted with its disks\n" in undone and f"vms.{name}" not in undone
        assert "VM 200 (dev), running: it is shut down" in undone and "it stays, as it is protected" in undone
        assert undone.count("which was downloaded, unless a guest uses it") == 2, undone
    gone = stack.destroy_as_left()
    with subtests.test("what a destroy has done"):
        left = [(stack.lab.root / f"etc/pve/qemu-server/{vmid}.conf").exists() for vmid in (200, 201, 202)]
        assert left == [True, False, False]
        assert "VM 200 stays: it is protected" in gone.output and "size=80G" in conf(stack, 200)
        assert "hostpci" not in conf(stack, 200), "its card goes all the same"
        assert not list((stack.lab.root / "var/lib/vz/import").iterdir())
    stack.lab.run("qm stop 200; qm destroy 200")
    given_back(stack, allowed)
