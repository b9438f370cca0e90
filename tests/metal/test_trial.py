"""A boot on trial, with real boot loaders: what they start when its kernel panics, or hangs and is reset, and when it is confirmed.

The agent's layers are asked without Pulumi: what counts is the loader's. Each is told by what was chosen, too.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from homelab.remote import agent
from remote_scripts.boot import trial_entry
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.confirm_boot import Wanted as Confirm
from tests import sent_along
from tests.host import BOOT_SECONDS
from tests.metal.host import Hosts
from tests.metal.machine import INTEL, SCREEN, Machine, second_disk
from tests.metal.test_other_hosts import as_systemd_boot
from tests.waiting import wait_until

pytestmark = [pytest.mark.metal, pytest.mark.timeout(7200)]

#: The kernel finds neither an init in its initramfs nor a root: it panics.
PANICS = "rdinit=/none root=/dev/none"
#: Its init never ends and starts nothing; what it prints shows that it runs.
HANGS = "init=/usr/bin/yes"
WELL = "iommu=pt"
ON_TRIAL = (trial_entry.WORD, *trial_entry.RESTARTS.split())
_CHOICES = (
    "for esp in $(blkid -t TYPE=vfat -o device); do "
    "mount -r $esp /mnt; sed -n s/^homelab_trial=//p /mnt/homelab/grubenv; umount /mnt; done"
)
# Where they are drawn from, in seconds: an arming, or a confirmation, on an idle machine.
ACT_SECONDS = 12.0
CUTS = int(os.environ.get("CUTS") or 2)
SEED = os.environ.get("SEED", "1")


def ask(machine: Machine, verb: str, layer: str, wanted: Any) -> Any:
    text = sent_along.text(verb, agent.request(layer, wanted))
    return json.loads(sent_along.answer(machine.run(agent.command_in_memory("root"), input=text)))


def arm(machine: Machine, words: str, rollback_after: int = 1800) -> None:
    wanted = Cmdline(name="iommu", words=words, rollback_after=rollback_after)
    assert ask(machine, "apply", "cmdline", wanted)["changed"] is True


def give_back(machine: Machine) -> None:
    ask(machine, "revert", "cmdline", Cmdline(name="iommu", words="", rollback_after=1800))


def confirm(machine: Machine) -> dict[str, Any]:
    return dict(ask(machine, "apply", "confirm_boot", Confirm()))


def words_of(machine: Machine) -> list[str]:
    return machine.run("cat /proc/cmdline").split()


def reset_when_it_hangs(machine: Machine) -> None:
    """The person at the power button."""
    console = machine.folder / "console.log"
    wait_until(lambda: b"y\r\ny\r\ny" in console.read_bytes()[-4000:], BOOT_SECONDS)
    machine.reset()


@pytest.fixture(params=["grub", "lvm", "systemd-boot"])
def machine(hosts: Hosts, request: pytest.FixtureRequest) -> Machine:
    if request.param == "grub":
        return hosts.intel()
    if request.param == "lvm":
        return hosts.lvm()
    found = hosts.uefi()
    as_systemd_boot(found)
    return found


def choices(machine: Machine) -> list[str]:
    """Of each ESP that has one."""
    return machine.run(_CHOICES).split()


def was_taken(machine: Machine) -> bool:
    """Whether the loader itself has taken the choice back."""
    if machine.run("test -s /etc/kernel/proxmox-boot-uuids && echo yes", check=False):
        return machine.run("ls /sys/firmware/efi/efivars | grep OneShot", check=False) == ""
    return choices(machine) == ["taken"]


def stop_on_trial(machine: Machine, words: str, before: list[str]) -> None:
    arm(machine, words)
    boot = machine.boot_id()
    machine.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
    machine.wait_for_reset()
    if words == HANGS:
        reset_when_it_hangs(machine)
    machine.wait_for_boot(boot, 2 * BOOT_SECONDS)
    assert words_of(machine) == before and was_taken(machine), words
    assert "has ended before it was confirmed" in confirm(machine)["rolled_back"]
    assert machine.run("ls /var/lib/homelab/trial /boot/grub/custom.cfg", check=False) == ""


def test_a_kernel_that_stops_comes_back_with_the_old_configuration_without_userland(machine: Machine) -> None:
    before = words_of(machine)
    for words in (PANICS, HANGS):
        stop_on_trial(machine, words, before)


def test_a_confirmed_boot_is_the_default_without_a_further_restart(machine: Machine) -> None:
    before = words_of(machine)
    arm(machine, WELL)
    grub = (
        "for file in /boot/grub/grub.cfg /boot/grub/custom.cfg; do [ ! -e $file ] || grub-script-check $file 2>&1; done"
    )
    units = "systemd-analyze verify --man=no /etc/systemd/system/homelab-*.* 2>&1 | grep homelab-"
    assert machine.run(f"{grub}; {units}", check=False) == "", "GRUB or systemd doesn't understand what it is to read"
    machine.reboot()
    assert {WELL, *ON_TRIAL} <= {*words_of(machine)} and was_taken(machine)
    assert confirm(machine)["confirmed"] == machine.boot_id()
    assert machine.run("cat /proc/sys/kernel/panic").strip() == "0"
    machine.reboot()
    assert words_of(machine) == [*before, WELL]
    give_back(machine)
    machine.reboot()
    assert words_of(machine) == before


def test_a_trial_without_network_takes_itself_back(hosts: Hosts) -> None:
    machine = hosts.intel()
    before, boot = words_of(machine), machine.boot_id()
    machine.run(agent.command_to_put("root"), input=agent.put("metal"))
    arm(machine, WELL, rollback_after=60)
    machine.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
    machine.wait_for_reset()
    machine.connect_network(False)
    machine.wait_for_reset()
    machine.connect_network(True)
    machine.wait_for_boot(boot)
    assert words_of(machine) == before and was_taken(machine)
    assert "no interface that is up has" in confirm(machine)["rolled_back"]


def test_without_variables_systemd_boot_counts_the_trial_down_and_starts_it_once(hosts: Hosts) -> None:
    machine = hosts.uefi()
    as_systemd_boot(machine)
    before, entries = words_of(machine), "mount -r /dev/vda2 /mnt; ls /mnt/loader/entries | grep trial; umount /mnt"
    machine.run("mount -o remount,ro /sys/firmware/efi/efivars")
    arm(machine, WELL)
    assert machine.run(entries).split() == ["proxmox-999-homelab-trial+1.conf"]
    machine.reboot()
    assert {WELL, "homelab.trial"} <= {*words_of(machine)}
    assert machine.run(entries).split() == ["proxmox-999-homelab-trial+0-1.conf"]
    machine.reboot()
    assert words_of(machine) == before
    assert "has ended before it was confirmed" in confirm(machine)["rolled_back"]
    assert machine.run(entries, check=False) == ""


# A kernel of its own name in GRUB's submenu, which is saved as the default by its id.
_PINNED = r"""
set -e
for one in vmlinuz initrd.img; do cp /boot/$one-$(uname -r) /boot/$one-5.0-pinned; done
echo 'GRUB_DEFAULT=saved GRUB_SAVEDEFAULT=true' >/etc/default/grub.d/owner.cfg
update-grub
uuid=$(findmnt -no UUID /)
grub-set-default "gnulinux-advanced-$uuid>gnulinux-5.0-pinned-advanced-$uuid"
"""


def test_a_pinned_kernel_is_tried_and_stays_saved_and_one_that_is_gone_is_passed_over(hosts: Hosts) -> None:
    machine = hosts.intel()
    pinned, stock = "BOOT_IMAGE=/boot/vmlinuz-5.0-pinned", words_of(machine)
    machine.run("bash -s", input=_PINNED)
    saved = machine.run("grub-editenv list")
    assert ">gnulinux-5.0-pinned" in saved
    arm(machine, WELL)
    assert "savedefault" in machine.run("cat /boot/grub/grub.cfg")
    machine.reboot()
    assert {pinned, WELL, "homelab.trial"} <= {*words_of(machine)} and was_taken(machine)
    assert machine.run("grub-editenv list") == saved
    machine.reboot()
    assert words_of(machine) == [pinned, *stock[1:]]

    arm(machine, WELL)
    machine.run("rm /boot/*-5.0-pinned; update-grub")
    machine.reboot()
    assert words_of(machine) == stock and was_taken(machine)


_SECOND_ESP = r"""
set -e
mkfs.vfat -F 32 /dev/vdb1
mkdir -p /boot/efi
mount /dev/vdb1 /boot/efi
"""


def switch_off(machine: Machine) -> None:
    machine.run("systemd-run --quiet --on-active=1 systemctl poweroff")
    machine.wait_for_end()


def with_second(machine: Machine, disk: list[str]) -> None:
    """The host is switched off, its second disk exchanged for this one, and the host started."""
    switch_off(machine)
    machine.devices = [*INTEL, *SCREEN, *disk]
    machine.start()
    machine.wait_for_ssh()


def test_an_esp_that_refuses_writes_starts_what_booted_before(hosts: Hosts) -> None:
    machine = hosts.two_disks()
    machine.run("bash -s", input=_SECOND_ESP)
    before, disk = words_of(machine), hosts.folder / "second.raw"
    arm(machine, WELL)
    with_second(machine, second_disk(disk, "readonly=on"))
    assert words_of(machine) == before and choices(machine) == ["once"]
    with_second(machine, second_disk(disk))  # by that alone it was not started
    assert {WELL, "homelab.trial"} <= {*words_of(machine)} and was_taken(machine)


# proxmox-boot-tool's way with GRUB: kernels, menu and modules on each ESP, and both disks start.
_TWO_ESPS = r"""
set -e
mkfs.vfat -F 32 /dev/vdb1
for partition in vda2 vdb1; do
  mount /dev/$partition /mnt
  cp /boot/vmlinuz-* /boot/initrd.img-* /mnt
  grub-install --target=i386-pc --boot-directory=/mnt /dev/${partition%?}
  unshare --mount sh -c 'mount --bind /mnt /boot && grub-mkconfig -o /boot/grub/grub.cfg'
  umount /mnt
  blkid -s UUID -o value /dev/$partition >>/etc/kernel/proxmox-boot-uuids
done
printf '%s\n' '#!/bin/sh' 'sed "s/$/ is configured with: grub (versions: 6)/" /etc/kernel/proxmox-boot-uuids' >/usr/sbin/proxmox-boot-tool
chmod 755 /usr/sbin/proxmox-boot-tool
"""


def test_of_two_esps_one_that_was_unplugged_costs_one_boot_at_most(hosts: Hosts) -> None:
    machine = hosts.two_disks()
    machine.run("bash -s", input=_TWO_ESPS)
    machine.reboot()
    before = words_of(machine)
    assert before[0].startswith("BOOT_IMAGE=/vmlinuz-")  # of an ESP
    arm(machine, WELL)
    with_second(machine, [])
    assert {WELL, "homelab.trial"} <= {*words_of(machine)} and was_taken(machine)
    with_second(machine, second_disk(hosts.folder / "second.raw"))
    for _ in range(2):
        machine.reboot()
    assert set(choices(machine)) == {"taken"} and words_of(machine) == before


_SIGNED = r"""
set -e
mount /dev/vda2 /mnt
cp /usr/lib/shim/shimx64.efi.signed /mnt/EFI/BOOT/BOOTX64.EFI
cp /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed /mnt/EFI/BOOT/grubx64.efi
mkdir /mnt/EFI/debian
printf '%s\n' "search --fs-uuid --set=root $(findmnt -no UUID /)" 'set prefix=($root)/boot/grub' 'configfile $prefix/grub.cfg' \
  >/mnt/EFI/debian/grub.cfg
umount /mnt
"""


def test_secure_boot_takes_the_choice_back_too(hosts: Hosts) -> None:
    machine = hosts.uefi()
    machine.run("bash -s", input=_SIGNED)
    switch_off(machine)
    machine.secure_boot()
    machine.start()
    machine.wait_for_ssh()
    assert "Secure boot enabled" in machine.run("dmesg")
    stop_on_trial(machine, PANICS, words_of(machine))


def cut_during(machine: Machine, act: Callable[[Machine], object], seconds: float) -> None:
    """The plug is pulled so many seconds after the act has begun."""
    request = "arm" if act is armed else "confirm"
    wanted: Any = Cmdline(name="iommu", words=WELL, rollback_after=1800) if request == "arm" else Confirm()
    text = sent_along.text("apply", agent.request("cmdline" if request == "arm" else "confirm_boot", wanted))
    machine.run(f"cat >/run/asked; ({agent.command_in_memory('root')}) </run/asked >/dev/null 2>&1 &", input=text)
    time.sleep(seconds)
    machine.stop()
    machine.start()
    machine.wait_for_ssh()


def armed(machine: Machine) -> None:
    arm(machine, WELL)


@pytest.mark.parametrize("number", range(CUTS))
def test_a_power_cut_leaves_a_host_that_boots_the_old_or_the_new(hosts: Hosts, number: int) -> None:
    machine, moment = hosts.intel(), random.Random(f"{SEED} {number}").uniform(0, ACT_SECONDS)
    before = words_of(machine)
    if number % 2:
        arm(machine, WELL)
        machine.reboot()
        cut_during(machine, confirm, moment)
    else:
        cut_during(machine, armed, moment)
    words = words_of(machine)
    is_new = WELL in words
    assert [word for word in words if word not in (WELL, *ON_TRIAL)] == before
    assert not is_new or "homelab.trial" in words or words == [*before, WELL], f"SEED={SEED} {number}"
    confirm(machine)
    give_back(machine)
    machine.reboot()
    assert words_of(machine) == before
    assert machine.run("ls -d /var/lib/homelab /boot/grub/custom.cfg", check=False) == ""
