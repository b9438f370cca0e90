"""The same on AMD's processor and IOMMU, and on hosts that UEFI starts: by GRUB, and by systemd-boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.conftest import GPUS
from tests.metal.host import CARD, NEIGHBOUR, Hosts, MetalStack, own_drivers
from tests.metal.image import GUEST
from tests.metal.machine import Machine

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]


def bound_by_one_reboot(stack: MetalStack, *words: str) -> None:
    boots = stack.machine.boots()
    stack.up()
    assert stack.machine.boots() == boots + 1
    drivers = stack.machine.drivers()
    assert {drivers[one] for one in CARD} == {"vfio-pci"}
    assert {one: drivers[one] for one in NEIGHBOUR} == own_drivers(*NEIGHBOUR)
    assert set(words) <= set(stack.machine.run("cat /proc/cmdline").split())
    assert stack.output()["hosts"]["pve"]["iommu"]["groups"] > 0
    assert stack.up("--refresh").changed == set()


def test_amd(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.amd(), tmp_path / "stack", GPUS)
    bound_by_one_reboot(stack, "amd_iommu=on", "iommu=pt")
    assert "AMD-Vi" in stack.machine.run("dmesg")


def test_uefi_with_grub(hosts: Hosts, tmp_path: Path) -> None:
    stack = hosts.stack(hosts.uefi(), tmp_path / "stack", GPUS)
    assert "firmware/efi" in stack.machine.run("ls -d /sys/firmware/efi")
    bound_by_one_reboot(stack, "intel_iommu=on", "iommu=pt")


# On Proxmox VE, hooks of its own call the tool after every change of a kernel or an initramfs.
_SYSTEMD_BOOT = """
set -e
echo "root=LABEL=root ro quiet mitigations=off norandmaps intel_iommu=off console=tty0 console=ttyS0" >/etc/kernel/cmdline
mkdir -p /etc/initramfs/post-update.d
for hook in /etc/kernel/postinst.d/zz-proxmox-boot /etc/kernel/postrm.d/zz-proxmox-boot /etc/initramfs/post-update.d/proxmox-boot-sync; do
  printf '#!/bin/sh\nexec proxmox-boot-tool refresh\n' >$hook
  chmod 755 $hook
done
proxmox-boot-tool init /dev/vda2
proxmox-boot-tool refresh
"""
_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # of systemd-boot's EFI variables
_ESP = "mount -r /dev/vda2 /mnt; cd /mnt; find loader -type f | sort | xargs grep -H .; cd /; umount /mnt"


def boot_once(machine: Machine, entry: str) -> None:
    """As `bootctl set-oneshot` does it: the variable is written at once, four bytes of attributes first."""
    machine.run(
        f"{{ printf '\\7\\0\\0\\0'; printf '%s\\0' {entry} | iconv -t UTF-16LE; }} >/tmp/entry; "
        f"cat /tmp/entry >/sys/firmware/efi/efivars/LoaderEntryOneShot-{_VENDOR}"
    )
    machine.reboot()


def as_systemd_boot(machine: Machine) -> None:
    """Makes a host that UEFI starts one whose ESP is proxmox-boot-tool's, with systemd-boot."""
    tool = "/usr/sbin/proxmox-boot-tool"
    machine.run(f"cat >{tool} && chmod 755 {tool}", input=(GUEST / "proxmox-boot-tool").read_text())
    machine.run("bash -s", input=_SYSTEMD_BOOT)
    machine.reboot()
    assert "systemd-boot" in machine.run(f"tr -cd [:print:] </sys/firmware/efi/efivars/LoaderInfo-{_VENDOR}")


def test_uefi_with_systemd_boot(hosts: Hosts, tmp_path: Path) -> None:
    machine = hosts.uefi()
    as_systemd_boot(machine)
    stack = hosts.stack(machine, tmp_path / "stack", GPUS)
    files, entries = stack.machine.files(), machine.run(_ESP)

    bound_by_one_reboot(stack, "intel_iommu=on", "iommu=pt")
    without = "homelab-without-gpu-" + machine.run("uname -r").strip() + ".conf"
    assert f"loader/entries/{without}:" in machine.run(_ESP)

    boot_once(machine, without)
    drivers = stack.machine.drivers()
    assert {one: drivers[one] for one in (*CARD, *NEIGHBOUR)} == own_drivers(*CARD, *NEIGHBOUR)

    stack.destroy()
    assert stack.machine.files() == files
    assert machine.run(_ESP) == entries
