"""What happens to a bound host: given back, tampered with, updated, out of reach. Each test goes on from the first `up`."""

from __future__ import annotations

import re

import pytest

from tests.engine_stack import Result
from tests.metal.conftest import FirstUp
from tests.metal.host import BUILD, CARD, NEIGHBOUR, REPORT, MetalStack, half_of_test, own_drivers
from tests.waiting import wait_until

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]

REBOOT = {"pve-reboot", "pve-booted"}


def test_destroy_and_a_reboot_give_everything_back(bound: MetalStack, first_up: FirstUp) -> None:
    gone = bound.destroy()
    assert "the running kernel keeps the old command line" in gone.output
    assert bound.machine.files() == first_up.files_before
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}  # until a reboot, as it said
    bound.machine.reboot()
    assert bound.machine.drivers() == first_up.drivers_before
    assert bound.machine.run("ls /sys/kernel/iommu_groups") == ""


def test_tampering_is_named_and_mended_without_a_reboot(bound: MetalStack) -> None:
    files, boot = bound.machine.files(), bound.machine.boot_id()
    bound.machine.run(
        "echo GRUB_CMDLINE_LINUX_DEFAULT=quiet >>/etc/default/grub.d/zz-homelab-iommu.cfg; "
        "rm /etc/initramfs-tools/scripts/init-top/homelab-vfio; update-grub"
    )
    preview = bound.preview("--refresh")
    assert "zz-homelab-iommu.cfg was changed by hand" in preview.output
    assert "init-top/homelab-vfio is gone" in preview.output
    mended = bound.up("--refresh")
    assert mended.changed == {"pve-cmdline", "pve-initrd", "pve-bind", *REBOOT, "pve-probe"} & mended.changed
    assert {"pve-cmdline", "pve-initrd"} <= mended.changed
    assert not [name for operation, name in mended.steps if operation == "create-replacement"], "no reboot is shown"
    assert bound.machine.files() == files
    assert bound.machine.boot_id() == boot  # the running kernel had it all
    assert bound.up("--refresh").changed == set()


def test_a_card_that_was_bound_to_its_driver_by_hand_is_mended_by_one_reboot(bound: MetalStack) -> None:
    boots = bound.machine.boots()
    bound.machine.run(
        f"cd /sys/bus/pci/devices/{CARD[0]}; echo {CARD[0]} >driver/unbind; echo >driver_override; modprobe bochs; "
        f"echo {CARD[0]} >/sys/bus/pci/drivers_probe"
    )
    assert bound.machine.drivers()[CARD[0]] == "bochs-drm"
    preview = bound.preview("--refresh")
    assert f"{CARD[0]} is on bochs-drm, not on vfio-pci" in preview.output
    mended = bound.up("--refresh")
    assert mended.changed == {"pve-probe", *REBOOT}
    assert bound.machine.boots() == boots + 1
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}


def test_the_second_boot_entry_gives_the_card_back_for_one_boot(bound: MetalStack, first_up: FirstUp) -> None:
    menu = bound.machine.run("cat /boot/grub/grub.cfg")
    entry = next(
        found[1] for found in re.finditer(r"menuentry '([^']*)'", menu) if "without GPU passthrough" in found[1]
    )
    bound.machine.run(f"grub-reboot '{entry}'", check=True)
    bound.machine.reboot()
    assert bound.machine.drivers() == first_up.drivers_before
    bound.machine.reboot()
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}


def test_a_kernel_installed_meanwhile_is_bound_too(bound: MetalStack) -> None:
    before = bound.machine.run("uname -r").strip()
    bound.machine.run("dpkg --install /var/lib/kernel-update/*.deb", seconds=1800)
    version = bound.machine.run("linux-version list | linux-version sort | tail -n 1").strip()
    assert version != before
    contents = bound.machine.run(f"lsinitramfs /boot/initrd.img-{version}")
    assert "scripts/init-top/homelab-vfio" in contents
    assert re.search(r"/vfio-pci\.ko", contents)
    bound.machine.reboot()
    assert bound.machine.run("uname -r").strip() == version
    drivers = bound.machine.drivers()
    assert {drivers[one] for one in CARD} == {"vfio-pci"}
    assert {one: drivers[one] for one in NEIGHBOUR} == own_drivers(*NEIGHBOUR)
    assert bound.up("--refresh").changed == set()


def begin_reboot(stack: MetalStack) -> None:
    """Waits until a run that goes on has begun the reboot."""
    wait_until(lambda: "pve-reboot" in Result(0, "", stack.events(partial=True)).changed, stack.patience)


def test_a_host_whose_power_fails_during_the_reboot_is_told_of_and_the_next_up_finishes(bound: MetalStack) -> None:
    # A change that takes a reboot and no new initramfs.
    bound.host["iommu"] = {"passthrough": False}
    bound.host["timeouts"] |= {"connect": 15, "reboot": 20, "rollback": 90}
    process = bound.start("up", "--yes", "--skip-preview")
    begin_reboot(bound)
    bound.machine.stop()
    assert process.wait(bound.patience) != 0
    failed = Result(process.returncode, "", bound.events())
    assert "wanted: 127.0.0.1 back after its reboot" in failed.message
    assert "switch it off and on: it starts with its default" in failed.message

    bound.machine.start()
    bound.machine.wait_for_ssh()  # an emulated host takes its time
    bound.host["timeouts"] |= {"connect": 60, "reboot": 600}
    bound.up("--refresh")
    assert "iommu=pt" not in bound.machine.run("cat /proc/cmdline").split()
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}
    assert bound.machine.run("ls /etc/systemd/system | grep homelab", check=False) == ""
    assert bound.up("--refresh").changed == set()


def test_a_host_that_comes_up_without_its_network_gives_itself_back(bound: MetalStack) -> None:
    bound.host["iommu"] = {"passthrough": False}
    bound.host["timeouts"] |= {"connect": 15, "rollback": 60}
    process = bound.start("up", "--yes", "--skip-preview")
    begin_reboot(bound)
    bound.machine.connect_network(False)
    bound.machine.wait_for_reset(600)  # ours
    bound.machine.wait_for_reset(1800)  # the end of the trial
    bound.machine.connect_network(True)
    assert process.wait(bound.patience) != 0
    failed = Result(process.returncode, "", bound.events())
    assert "it has returned by itself to what it was" in failed.message
    # What was confirmed before is what it comes back with.
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}
    words = bound.machine.run("cat /proc/cmdline").split()
    assert {"intel_iommu=on", "iommu=pt"} <= set(words)


def applied_by_hand(stack: MetalStack) -> None:
    """A change of the boot configuration whose `up` ended before its reboot."""
    stack.host["iommu"] = {"passthrough": False}
    stack.host["reboot"] = "manual"
    stack.host["timeouts"] |= {"rollback": 60}
    assert "reboot pve when it suits you" in stack.up(ok=False).message


def test_a_reboot_that_nobody_waits_for_is_judged_by_the_host_which_stays(bound: MetalStack) -> None:
    applied_by_hand(bound)
    armed = bound.machine.run("cat /var/lib/homelab/trial")
    assert {"address 10.0.2.15", "port 22"} <= {*armed.splitlines()}, armed
    bound.machine.reboot()
    judged = "until test -e /var/lib/homelab/judged -o -e /var/lib/homelab/rolled-back; do sleep 1; done; cat /var/lib/homelab/judged"
    assert "is up with 10.0.2.15" in bound.machine.run(judged, seconds=900)
    assert bound.machine.run("while ls /etc/systemd/system | grep -q homelab; do sleep 1; done", seconds=60) == ""
    assert "judged by this host itself" in bound.up().output
    assert {bound.machine.drivers()[one] for one in CARD} == {"vfio-pci"}


def test_a_reboot_that_nobody_waits_for_is_undone_where_the_host_is_out_of_reach(bound: MetalStack) -> None:
    applied_by_hand(bound)
    boots = bound.machine.boots()
    bound.machine.run("systemd-run --on-active=1 systemctl reboot")
    bound.machine.connect_network(False)
    bound.machine.wait_for_reset(600)  # the person's
    bound.machine.wait_for_reset(1800)  # the end of the trial
    bound.machine.connect_network(True)
    bound.machine.wait_for_ssh()
    assert bound.machine.boots() == boots + 2
    assert "iommu=pt" in bound.machine.run("cat /proc/cmdline").split()
    assert "judged by this host itself" in bound.machine.run("cat /var/lib/homelab/rolled-back")
    assert "it has returned by itself to what it was" in bound.up(ok=False).message


def test_a_vm_started_as_the_passthrough_test_starts_one_sees_the_card(bound: MetalStack) -> None:
    machine, folder = bound.machine, "/run/homelab-passthrough-test"
    kernel, initrd, append = half_of_test(machine, BUILD)
    devices = [
        "pcie-root-port,id=rp1,chassis=1,slot=1",
        f"vfio-pci,host={CARD[0]},bus=rp1,addr=0.0,multifunction=on,rombar=0",
        f"vfio-pci,host={CARD[1]},bus=rp1,addr=0.1",
    ]
    machine.run(
        "timeout 600 qemu-system-x86_64 -machine q35 -accel tcg -cpu qemu64 -m 256 -nodefaults -vga none -display none "
        f"-kernel {kernel} -initrd {initrd} -append '{append}' -serial file:{folder}/console -no-reboot "
        + " ".join(f"-device {device}" for device in devices),
        seconds=900,
    )
    seen = half_of_test(machine, REPORT)
    assert [(one["address"], one["id"], one["class"]) for one in seen["functions"]] == [
        (CARD[0], "1234:1111", "030000"),
        (CARD[1], "8086:293e", "040300"),
    ]
    # Its frame buffer and its registers, as large as on the host.
    sizes = {bar["index"]: bar["size"] for bar in seen["functions"][0]["bars"]}
    assert sizes == {0: 16 << 20, 2: 4096}
