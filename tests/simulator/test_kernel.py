"""The kernel model: what counts at boot, who gets which device, when there are IOMMU groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.host.boot import iommu_active
from lab.host.bootloader import write_grubenv
from lab.machine import Machine, MachineError
from tests.lab.host_kit import Host, rebound

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"


def test_a_stock_host_gives_each_device_its_usual_driver(host: Host) -> None:
    drivers = {a: host.driver(a) for a in (GPU, AUDIO, "0000:02:00.0", "0000:05:00.0", "0000:09:00.0", "0000:00:01.1")}
    assert drivers == {
        GPU: "nouveau",
        AUDIO: "snd_hda_intel",
        "0000:02:00.0": "nvme",
        "0000:05:00.0": "r8169",
        "0000:09:00.0": "amdgpu",
        "0000:00:01.1": "pcieport",
    }


# -- only what was generated counts ------------------------------------------------------------------------
def test_a_setting_of_grub_has_no_effect_before_update_grub(host: Host) -> None:
    host.write("/etc/default/grub.d/x.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT iommu=pt"\n')
    assert "iommu=pt" not in host.reboot().cmdline
    host.output("update-grub")
    assert host.reboot().cmdline.endswith("ro quiet iommu=pt")


def test_an_initramfs_script_has_no_effect_before_update_initramfs(host: Host) -> None:
    host.bind_early(GPU, AUDIO)
    host.reboot()
    assert host.driver(GPU) == "nouveau"
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert (host.driver(GPU), host.driver(AUDIO)) == ("vfio-pci", "vfio-pci")


def test_the_kernel_command_line_of_systemd_boot_needs_a_refresh(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs iommu=pt\nsecond line\n")
    assert "iommu=pt" not in host.reboot().cmdline
    host.output("proxmox-boot-tool refresh")
    result = host.reboot()
    assert result.cmdline.endswith("root=ZFS=rpool/ROOT/pve-1 boot=zfs iommu=pt")
    assert result.cmdline.startswith("initrd=\\EFI\\proxmox\\6.17.2-1-pve\\initrd.img-6.17.2-1-pve ")


def test_the_image_on_the_esp_counts_not_the_one_in_boot(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.bind_early(GPU)
    esp = tmp_path / "esp/E2B8-705F/EFI/proxmox/6.17.2-1-pve/initrd.img-6.17.2-1-pve"
    before = esp.read_bytes()
    host.output("update-initramfs -u -k all")
    assert esp.read_bytes() != before, "update-initramfs ends with a sync of the ESPs"
    esp.write_bytes(before)
    host.reboot()
    assert host.driver(GPU) == "nouveau"


def test_esps_with_grub_have_a_grub_cfg_of_their_own(tmp_path: Path) -> None:
    host = Host(tmp_path, "zfs-grub-shim", running=True)
    assert host.cmdline().startswith("BOOT_IMAGE=/vmlinuz-6.17.13-2-pve root=ZFS=rpool/ROOT/pve-1 ro ")
    host.write("/etc/default/grub.d/x.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet intel_iommu=on"\n')
    host.output("grub-mkconfig -o $HOMELAB_ROOT/boot/grub/only-here.cfg")
    assert "intel_iommu=on" in (tmp_path / "esp/A1B2-0001/grub/grub.cfg").read_text(encoding="utf-8")
    assert "intel_iommu=on" in host.reboot().cmdline


def test_etc_kernel_cmdline_means_nothing_to_grub(tmp_path: Path) -> None:
    host = Host(tmp_path, "zfs-grub-shim", running=True)
    host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs intel_iommu=on\n")
    host.output("proxmox-boot-tool refresh")
    assert "intel_iommu=on" not in host.reboot().cmdline


@pytest.mark.parametrize(
    ("vendor", "cmdline", "active"),
    [
        ("AuthenticAMD", "iommu=pt", True),
        ("AuthenticAMD", "iommu=pt,off", False),
        ("AuthenticAMD", '"iommu=off" iommu=pt', False),
        ("AuthenticAMD", "amd-iommu=fullflush,off", False),
        ("GenuineIntel", "amd_iommu=off", True),
        ("GenuineIntel", "intel_iommu=off,sm_on intel_iommu=on", True),
        ("GenuineIntel", "intel_iommu=on quiet intel-iommu=off", False),
    ],
)
def test_the_kernel_reads_each_option_about_the_iommu(vendor: str, cmdline: str, active: bool) -> None:
    machine = {"hardware": {"firmware": {"iommu": True}, "cpu": {"vendor": vendor}}}
    assert iommu_active(machine, "6.17.2-1-pve", cmdline) is active


# -- ways of binding ---------------------------------------------------------------------------------------
def test_a_function_with_a_built_in_driver_is_taken_from_it_early(tmp_path: Path) -> None:
    host = Host(tmp_path, "four-functions", running=True)
    functions = [f"0000:01:00.{n}" for n in range(4)]
    assert [host.driver(f) for f in functions] == ["nouveau", "snd_hda_intel", "xhci_hcd", "nvidia-gpu"]
    host.bind_early(*functions)
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert [host.driver(f) for f in functions] == ["vfio-pci"] * 4
    assert host.driver("0000:00:14.0") == "xhci_hcd", "the other USB controller keeps the built-in driver"


def test_an_override_for_a_module_that_is_not_in_the_image_leaves_the_device_alone(host: Host) -> None:
    host.bind_early(GPU)
    (host.root / "etc/initramfs-tools/hooks/give-gpu").unlink()
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert host.driver(GPU) is None, "the override keeps nouveau off, and vfio-pci isn't loaded"


def test_ids_in_modprobe_d_bind_when_the_module_is_loaded_from_the_initramfs(host: Host) -> None:
    host.write("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2b85,10de:22e8\n")
    host.write("/etc/initramfs-tools/modules", "vfio-pci\n")
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert (host.driver(GPU), host.driver(AUDIO)) == ("vfio-pci", "vfio-pci")
    assert {"vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core"} <= set(host.modules())


@pytest.mark.parametrize("word", ["vfio-pci.ids=10de:2b85", "vfio_pci.ids=10de:2b85"])
def test_ids_on_the_command_line_bind_when_the_module_is_loaded(host: Host, word: str) -> None:
    host.write("/etc/default/grub.d/x.cfg", f'GRUB_CMDLINE_LINUX_DEFAULT="quiet {word}"\n')
    host.output("update-grub")
    host.reboot()
    assert host.driver(GPU) == "nouveau", "nothing loads vfio-pci"
    host.write("/etc/modules", "vfio_pci\n")
    host.reboot()
    assert (host.driver(GPU), host.driver(AUDIO)) == ("vfio-pci", "snd_hda_intel")


def test_identical_cards_cannot_be_told_apart_by_ids(tmp_path: Path) -> None:
    host = Host(tmp_path, "two-identical", running=True)
    host.write("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2204\n")
    host.write("/etc/modules", "vfio_pci\n")
    host.reboot()
    assert {host.driver("0000:1d:00.0"), host.driver("0000:1e:00.0")} == {"vfio-pci"}


def test_one_of_two_identical_cards_is_bound_by_its_address(tmp_path: Path) -> None:
    host = Host(tmp_path, "two-identical", running=True)
    host.bind_early("0000:1e:00.0", "0000:1e:00.1")
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert [host.driver(f"0000:{a}") for a in ("1d:00.0", "1d:00.1", "1e:00.0", "1e:00.1")] == [
        "nouveau",
        "snd_hda_intel",
        "vfio-pci",
        "vfio-pci",
    ]


def test_a_soft_dependency_loads_vfio_before_the_driver(host: Host) -> None:
    host.write("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2b85\nsoftdep nouveau pre: vfio-pci\n")
    host.reboot()
    assert host.driver(GPU) == "vfio-pci"


@pytest.mark.parametrize(
    "config", ["blacklist nouveau\n", "install nouveau /bin/false\n"], ids=["blacklist", "install"]
)
def test_a_driver_can_be_kept_off_in_modprobe_d(host: Host, config: str) -> None:
    host.write("/etc/modprobe.d/x.conf", config)
    host.reboot()
    assert host.driver(GPU) is None


def test_modprobe_blacklist_on_the_command_line_keeps_a_driver_off(host: Host) -> None:
    host.write("/etc/default/grub.d/x.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="modprobe.blacklist=nouveau,snd_hda_intel"\n')
    host.output("update-grub")
    host.reboot()
    assert (host.driver(GPU), host.driver(AUDIO)) == (None, None)


def test_module_blacklist_refuses_the_module_until_the_next_boot_without_it(host: Host) -> None:
    host.write("/etc/default/grub.d/x.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="module_blacklist=nvidia,nouveau"\n')
    host.output("update-grub")
    host.reboot()
    assert host.driver(GPU) is None
    host.write("/etc/default/grub.d/x.cfg", "")
    host.output("update-grub")
    done = host.run("modprobe nouveau")
    assert (done.returncode, done.stderr) == (
        1,
        "modprobe: ERROR: could not insert 'nouveau': Operation not permitted\n",
    )
    assert "Module nouveau is blacklisted" in host.output("dmesg -t")
    host.reboot()
    assert host.driver(GPU) == "nouveau"


def test_a_kernel_that_does_not_know_the_card_leaves_it_without_a_driver(tmp_path: Path) -> None:
    host = Host(tmp_path, "wtr-max", running=True)
    assert host.driver(GPU) is None
    assert "nouveau 0000:01:00.0: unknown chipset" in host.output("dmesg")


def test_scripts_run_before_udev_unless_they_ask_to_run_after_it(host: Host) -> None:
    script = (
        '#!/bin/sh\nPREREQ="udev"\ncase "$1" in prereqs) echo "$PREREQ"; exit 0 ;; esac\n'
        'echo "late: $(readlink "$HOMELAB_SYSROOT/sys/bus/pci/devices/0000:02:00.0/driver")" >"$HOMELAB_SYSROOT/dev/kmsg"\n'
    )
    host.write("/etc/initramfs-tools/scripts/init-top/a-late", script, 0o755)
    host.write(
        "/etc/initramfs-tools/scripts/init-top/an-early",
        script.replace('PREREQ="udev"', 'PREREQ=""').replace("late:", "early:"),
        0o755,
    )
    host.output("update-initramfs -u -k all")
    host.reboot()
    messages = host.output("dmesg -t")
    assert "early: \n" in messages
    assert "late: ../../../../bus/pci/drivers/nvme\n" in messages


def test_a_script_that_is_not_executable_is_left_out(host: Host) -> None:
    host.bind_early(GPU)
    (host.root / "etc/initramfs-tools/scripts/init-top/give-gpu").chmod(0o644)
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert host.driver(GPU) == "nouveau"


def test_a_write_that_the_kernel_refuses_fails_and_is_logged(host: Host) -> None:
    script = (
        '#!/bin/sh\ncase "$1" in prereqs) exit 0 ;; esac\n'
        'echo 0000:02:00.0 >"$HOMELAB_SYSROOT/sys/bus/pci/drivers/pcieport/unbind" || '
        'echo "refused: $?" >"$HOMELAB_SYSROOT/dev/kmsg"\n'
    )
    host.write("/etc/initramfs-tools/scripts/init-top/wrong", script, 0o755)
    host.output("update-initramfs -u -k all")
    host.reboot()
    assert "refused: 1" in host.output("dmesg")
    assert [p["note"] for p in host.programs() if p["program"] == "sysfs-write"] == ["refused: ENODEV"]


def test_vfio_virqfd_is_a_module_only_below_kernel_6_2(tmp_path: Path) -> None:
    scenario = Host(tmp_path / "new", "rtx5090", running=True)
    assert scenario.run("modprobe vfio_virqfd").returncode == 1
    host = Host(tmp_path / "old", "rtx5090")
    host.machine.install_kernel("5.15.158-2-pve")
    host.machine.next_entry = (
        "Advanced options for Proxmox VE GNU/Linux>Proxmox VE GNU/Linux, with Linux 5.15.158-2-pve"
    )
    host.booted()
    host.output("modprobe vfio-pci")
    assert "vfio_virqfd" in host.modules()


# -- IOMMU -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scenario", "words", "groups"),
    [
        ("rtx5090", "quiet", True),
        ("rtx5090", "amd_iommu=off", False),
        ("intel-grub-bios", "quiet", True),  # on by default from kernel 6.8
        ("intel-grub-bios", "intel_iommu=off", False),
        ("firmware-off", "intel_iommu=on iommu=pt", False),
    ],
)
def test_groups_are_there_when_the_iommu_is(tmp_path: Path, scenario: str, words: str, groups: bool) -> None:
    host = Host(tmp_path, scenario)
    host.write("/etc/default/grub.d/x.cfg", f'GRUB_CMDLINE_LINUX_DEFAULT="{words}"\n')
    host.booted()
    host.output("update-grub")
    host.reboot()
    assert bool(host.groups()) is groups
    assert any((host.root / "sys/class/iommu").iterdir()) is groups


def test_intel_kernels_before_6_8_need_the_word(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-grub-bios")
    old = "Advanced options for Proxmox VE GNU/Linux>Proxmox VE GNU/Linux, with Linux 6.5.13-6-pve"
    host.machine.next_entry = old
    host.booted()
    assert host.output("uname -r") == "6.5.13-6-pve\n"
    assert host.groups() == {}
    host.reboot()
    assert host.groups() != {}, "the choice was for one boot; 6.8 has it on"


def test_dmesg_says_enabled_although_the_firmware_switch_is_off(tmp_path: Path) -> None:
    host = Host(tmp_path, "firmware-off", running=True)
    lines = [line for line in host.output("dmesg -t").splitlines() if "DMAR" in line or "iommu:" in line]
    assert lines == ["DMAR: IOMMU enabled"]
    assert not (host.root / "sys/firmware/acpi/tables/DMAR").exists()


def test_amd_prints_no_line_that_says_enabled(host: Host) -> None:
    messages = host.output("dmesg -t")
    assert "IOMMU enabled" not in messages
    assert "AMD-Vi: Interrupt remapping enabled" in messages
    assert "pci 0000:01:00.0: Adding to iommu group 14" in messages


def test_amd_calls_the_usual_word_unknown_and_works_all_the_same(tmp_path: Path) -> None:
    host = Host(tmp_path, "half-bound", running=True)
    assert "AMD-Vi: Unknown option - 'on'" in host.output("dmesg -t")
    assert host.groups()


def test_a_state_folder_may_have_spaces_in_its_name(tmp_path: Path) -> None:
    host = Host(tmp_path / "a lab with spaces", "four-functions", running=True)
    host.bind_early("0000:01:00.2")
    host.output("update-initramfs -u -k all && update-grub")
    host.reboot()
    assert host.driver("0000:01:00.2") == "vfio-pci"


def test_acs_override_splits_a_group(tmp_path: Path) -> None:
    host = Host(tmp_path, "z370-two-cards-one-group", running=True)
    together = {host.groups()[f"0000:{a}"] for a in ("01:00.0", "01:00.3", "02:00.0", "02:00.3", "00:01.0")}
    assert together == {1}
    host.write("/etc/default/grub.d/x.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="pcie_acs_override=downstream"\n')
    host.output("update-grub")
    host.reboot()
    assert [host.groups()[f"0000:{a}"] for a in ("01:00.0", "01:00.3", "02:00.0", "02:00.3")] == [15, 15, 16, 16]


# -- boot entries ------------------------------------------------------------------------------------------
def test_grub_reboot_sticks_on_lvm_since_grub_cannot_write_there(host: Host) -> None:
    older = "Advanced options for Proxmox VE GNU/Linux>Proxmox VE GNU/Linux, with Linux 6.14.11-4-pve"
    write_grubenv(host.root / "boot/grub/grubenv", {"next_entry": older})
    assert host.reboot().kernel == "6.14.11-4-pve"
    assert host.reboot().kernel == "6.14.11-4-pve"


def test_a_pinned_kernel_is_booted(host: Host) -> None:
    host.output("proxmox-boot-tool kernel pin 6.14.11-4-pve")
    assert host.reboot().kernel == "6.14.11-4-pve"


def test_a_doubled_id_in_grub_cfg_breaks_pinning(host: Host) -> None:
    host.write("/etc/grub.d/12_again", '#!/bin/sh\nexec "${HOMELAB_ROOT:-}/etc/grub.d/10_linux"\n', 0o755)
    host.output("update-grub")
    host.output("proxmox-boot-tool kernel pin 6.14.11-4-pve")
    assert host.reboot().kernel == "6.17.2-1-pve"


def test_saved_default_of_grub_is_honoured(host: Host) -> None:
    host.write("/etc/default/grub.d/x.cfg", "GRUB_DEFAULT=saved\n")
    host.output("update-grub")
    write_grubenv(host.root / "boot/grub/grubenv", {"saved_entry": "1>2"})
    assert host.reboot().kernel == "6.14.11-4-pve"


def test_an_entry_of_systemd_boot_can_be_chosen_for_one_boot(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.machine.next_entry = "proxmox-6.14.11-4-pve"
    assert host.reboot().kernel == "6.14.11-4-pve"
    assert host.reboot().kernel == "6.17.2-1-pve"


def test_other_loader_entries_survive_a_refresh_and_are_not_the_default(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    entry = tmp_path / "esp/E2B8-705F/loader/entries/zz-mine.conf"
    own = (entry.parent / "proxmox-6.17.2-1-pve.conf").read_text(encoding="utf-8")
    entry.write_text(own.replace("boot=zfs", "boot=zfs mine"), encoding="utf-8")
    host.output("proxmox-boot-tool refresh")
    assert entry.exists()
    assert "mine" not in host.reboot().cmdline
    host.machine.next_entry = "zz-mine.conf"
    assert host.reboot().cmdline.endswith("boot=zfs mine")


def test_a_new_kernel_runs_the_hooks_and_is_booted_next(host: Host) -> None:
    host.machine.install_kernel("6.17.4-1-pve")
    assert host.reboot().kernel == "6.17.4-1-pve"
    host.machine.remove_kernel("6.17.4-1-pve")
    assert host.reboot().kernel == "6.17.2-1-pve"
    assert not (host.root / "boot/initrd.img-6.17.4-1-pve").exists()


@pytest.mark.parametrize("missing", ["boot/initrd.img-6.17.2-1-pve", "boot/vmlinuz-6.17.2-1-pve", "boot/grub/grub.cfg"])
def test_a_boot_without_its_files_does_not_come_up(host: Host, missing: str) -> None:
    (host.root / missing).unlink()
    result = host.reboot()
    assert not result.comes_up
    assert result.problem


def test_a_wrong_root_does_not_come_up(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/other boot=zfs\n")
    host.output("proxmox-boot-tool refresh")
    result = host.reboot()
    assert not result.comes_up
    assert "root=" in str(result.problem)


# -- faults, power, tampering --------------------------------------------------------------------------------


def test_hanging_makes_a_boot_longer(host: Host) -> None:
    host.machine.set_fault("hang-seconds", 5)
    assert host.reboot().seconds == pytest.approx(5.3)


def test_an_unknown_fault_is_refused_with_the_ones_there_are(host: Host) -> None:
    with pytest.raises(MachineError, match="update-initramfs"):
        host.machine.set_fault("sunspots", True)


def test_rebinding_by_hand_lasts_until_the_next_boot(host: Host) -> None:
    host.output(rebound(GPU, "vfio-pci"))
    assert host.driver(GPU) == "vfio-pci"
    assert (host.root / "dev/vfio/14").exists()
    host.reboot()
    assert host.driver(GPU) == "nouveau"


def test_a_card_bound_by_an_override_can_be_given_back_by_hand(host: Host) -> None:
    host.bind_early(GPU)
    host.output("update-initramfs -u -k all")
    host.reboot()
    host.output(rebound(GPU, "nouveau"))
    assert host.driver(GPU) == "nouveau"


def test_enabled_timers_are_reported_by_a_boot(host: Host) -> None:
    host.write("/etc/systemd/system/x.service", "[Service]\nType=oneshot\nExecStart=/var/lib/x/run now\n")
    host.write("/etc/systemd/system/x.timer", "[Timer]\nOnBootSec=1min 30s\n[Install]\nWantedBy=timers.target\n")
    assert host.reboot().timers == []
    host.output("systemctl enable x.timer")
    timer = {"unit": "x.timer", "seconds_after_boot": 90.0, "exec_start": "/var/lib/x/run now"}
    assert host.reboot().timers == [timer]


def test_a_shutdown_unmounts_what_was_mounted(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.output(
        "mkdir $HOMELAB_ROOT/mnt/esp && mount -t vfat $HOMELAB_ROOT/dev/disk/by-uuid/E2B8-705F $HOMELAB_ROOT/mnt/esp && ls $HOMELAB_ROOT/mnt/esp/loader"
    )
    host.machine.shutdown()
    assert list((host.root / "mnt/esp").iterdir()) == []
    assert host.machine.power() == "off"


def test_opening_a_folder_without_a_machine_says_so(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"machine\.json"):
        Machine.open(tmp_path)
