"""The emulated hosts of a run, one at a time, and a stack of the program for each."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.engine import install
from remote_scripts.both.passthrough_test import Wanted as PassthroughTest
from tests.boot_layers import asked_of
from tests.engine_stack import HostStack
from tests.metal.image import Image
from tests.metal.machine import AMD, INTEL, NO_IOMMU, SCREEN, Machine, card, nvme, second_disk
from tests.metal.prerequisites import call

#: The card that is given away, and one like it that stays.
CARD = ("0000:01:00.0", "0000:01:00.1")
NEIGHBOUR = ("0000:02:00.0", "0000:02:00.1")
IDS = {".0": "1234:1111", ".1": "8086:293e"}
#: The drivers that Debian has for them.
OWN_DRIVERS = {".0": "bochs-drm", ".1": "snd_hda_intel"}

#: Settings of a host, in seconds. Everything on an emulated processor takes its time, and more on a busy machine.
TIMEOUTS = {"connect": 60, "reboot": 600, "rollback": 900}

# Proxmox VE's API, as far as a host needs it whose cards nobody has: what makes a ticket, and pvedaemon, which is a stand-in.
_API = r"""
mkdir -p /usr/share/perl5/PVE
printf '%s\n' 'package PVE::AccessControl; sub check_user_enabled {} sub assemble_ticket { "PVE:$_[0]:00000000::metal" } 1;' \
  >/usr/share/perl5/PVE/AccessControl.pm
printf '%s\n' 'package PVE::Cluster; use Exporter "import"; our @EXPORT_OK = ("cfs_read_file"); sub cfs_read_file {} 1;' \
  >/usr/share/perl5/PVE/Cluster.pm
printf '%s\n' '[Service]' 'ExecStart=/usr/bin/python3 /opt/pvedaemon.py' '[Install]' 'WantedBy=multi-user.target' >/etc/systemd/system/pvedaemon.service
systemctl -q enable --now pvedaemon
"""

# As Proxmox VE's installer has it: an ESP, which GRUB doesn't start from by BIOS, and the root on a logical volume.
_ON_LVM = r"""
set -e
mkfs.vfat -F 32 /dev/vdb1
pvcreate --quiet /dev/vdb2
vgcreate --quiet pve /dev/vdb2
lvcreate --quiet --name root --extents 100%FREE pve
mkfs.ext4 -q -L lvm /dev/pve/root
mount /dev/pve/root /mnt
cp -ax /. /mnt
echo '/dev/pve/root / ext4 defaults,noatime 0 1' >/mnt/etc/fstab
for one in dev proc sys; do mount --rbind /$one /mnt/$one; done
chroot /mnt update-grub
chroot /mnt grub-install --target=i386-pc /dev/vdb
sync
"""


@dataclass(kw_only=True)
class MetalStack(HostStack):
    """A stack on an emulated host."""

    machine: Machine


#: The halves of the passthrough test, for any QEMU: what is to be booted, and what its console file says.
BUILD = "_build(system) or [f'/boot/vmlinuz-{kernel.running(system)}', f'{FOLDER}/initrd.img', _APPEND]"
REPORT = "_answer(system, wanted, None, system.files.read(f'{FOLDER}/console', _CONSOLE_BYTES))"


def half_of_test(machine: Machine, half: str) -> Any:
    """What a half of the passthrough test answers, for the card."""
    functions = {one: IDS[one[-2:]] for one in CARD}
    wanted = PassthroughTest(functions=functions, timeout=600)
    begin = "    _remove_leftovers(system)\n"
    change = ("layers.passthrough_test", begin, f"    return {half}\n{begin}")
    return json.loads(asked_of(machine, "apply", "passthrough_test", wanted, change))


def own_drivers(*functions: str) -> dict[str, str]:
    return {function: OWN_DRIVERS[function[-2:]] for function in functions}


@dataclass
class Hosts:
    """The machines of a run. Never more than one is on."""

    image: Image
    engine: install.Engine
    folder: Path
    _machines: dict[str, Machine] = field(default_factory=dict)

    def intel(self, snapshot: str = "stock") -> Machine:
        """A host with two identical cards; from a snapshot. Its IOMMU is off in `stock`."""
        machine = self._machines.get("intel")
        if machine is None:
            machine = self._boot("intel", [*INTEL, *SCREEN, *card(1), *card(2)])
            machine.save("stock")
        self.stop()
        machine.start(snapshot)
        return machine

    def amd(self) -> Machine:
        """The same with AMD's processor and IOMMU, of which QEMU can take no snapshot: freshly booted."""
        return self._boot("amd", [*AMD, *SCREEN, *card(1), *card(2)])

    def without_iommu(self) -> Machine:
        """A host whose firmware offers none; freshly booted."""
        return self._boot("none", [*NO_IOMMU, *SCREEN, *card(1)])

    def shared_group(self) -> Machine:
        """A host whose second card can't be told apart from an NVMe disk by the IOMMU; freshly booted (NVMe: no snapshots)."""
        devices = [*card(1), *card(2, isolated=False), *nvme(3, self._empty("nvme.raw"), isolated=False)]
        return self._boot("shared", [*INTEL, *SCREEN, *devices])

    def uefi(self) -> Machine:
        """A host that UEFI starts; freshly booted."""
        return self._boot("uefi", [*INTEL, *SCREEN, *card(1), *card(2)], uefi=True)

    def two_disks(self) -> Machine:
        """A host with a second disk (`second.raw`), whose one partition is an ESP, not formatted; freshly booted."""
        return self._boot("two", [*INTEL, *SCREEN, *second_disk(self._empty("second.raw", "type=ef"))])

    def lvm(self) -> Machine:
        """A host whose root is on LVM, started by BIOS; its disk has an ESP. From its snapshot."""
        if "lvm" not in self._machines:
            image = Image(self.folder / "lvm-image")
            image.folder.mkdir()
            for name in ("id", "host_key.pub"):
                shutil.copy(self.image.folder / name, image.folder)
            disk = self._empty("lvm-image/disk.raw", "size=262144, type=ef", "type=8e")
            maker = self._boot("maker", [*INTEL, *SCREEN, *second_disk(disk)])
            maker.run("bash -s", input=_ON_LVM)
            self._boot("lvm", [*INTEL, *SCREEN, *card(1)], image=image).save("stock")
        self.stop()
        self._machines["lvm"].start("stock")
        return self._machines["lvm"]

    def _empty(self, name: str, *partitions: str) -> Path:
        disk = self.folder / name
        with disk.open("wb") as file:
            file.truncate(4 << 30)
        if partitions:
            call("sfdisk", "--quiet", str(disk), input="\n".join(["label: dos", *partitions, ""]))
        return disk

    def _boot(self, name: str, devices: list[str], *, uefi: bool = False, image: Image | None = None) -> Machine:
        self.stop()
        machine = self._machines[name] = Machine(image or self.image, devices, self.folder / name, uefi=uefi)
        machine.start()
        machine.wait_for_ssh()
        machine.run("systemctl is-system-running --wait || systemctl --failed", check=False)
        machine.run("cat >/opt/pvedaemon.py", input=Path(__file__).with_name("pvedaemon.py").read_text())
        machine.run("bash -s", input=_API)
        return machine

    def stop(self) -> None:
        for machine in self._machines.values():
            machine.stop()

    def close(self) -> None:
        """Off, and their disks gone: each has a machine's memory in it."""
        self.stop()
        for machine in self._machines.values():
            shutil.rmtree(machine.folder)
        shutil.rmtree(self.folder / "lvm-image", ignore_errors=True)

    def stack(self, machine: Machine, folder: Path, gpus: dict[str, Any], kept: Path | None = None) -> MetalStack:
        """A stack `lab` for the machine, not deployed yet; or one that was kept."""
        config: dict[str, Any] = {
            "homelab:hosts": {"pve": {**machine.settings, "gpus": gpus, "timeouts": {**TIMEOUTS}}}
        }
        stack = MetalStack(folder, self.engine, config, patience=1800, machine=machine)
        if kept is None:
            stack.create()
        else:
            shutil.copytree(kept, folder)
        return stack
