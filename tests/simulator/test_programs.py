"""The simulated commands: their output held to what real machines print, their errors, their exit statuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.host import apt_programs, run, state
from lab.host.program import Failure, Options, UsageError
from lab.host.run import GUEST_ONLY, PROGRAMS
from lab.host.units import UnitError, parse_time_span
from lab.stock import without_subscription
from tests.conftest import shared
from tests.lab.host_kit import Host, rebound

#: What costs more than the answer, in a command that only answers a question (see `lab.host`).
NOT_FOR_QUESTIONS = frozenset(
    {
        "base64", "bz2", "dataclasses", "datetime", "graphlib", "hashlib", "inspect", "lzma", "random", "selectors",
        "shutil", "socket", "subprocess", "tempfile", "textwrap", "threading", "uuid", "zlib",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def wtr(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A booted host whose tests only read."""
    host = Host(tmp_path_factory.mktemp("wtr"), "half-bound", running=True)
    without_subscription(host.root)
    return host


def captured(machine: str, name: str) -> str:
    """A capture's text, tabs and spaces in front of lines made one tab, as lspci prints them."""
    text = shared("real_hosts", machine, name).read_text(encoding="utf-8")
    return re.sub(r"^[ \t]+", "\t", text, flags=re.M).rstrip("\n")


# -- lspci -------------------------------------------------------------------------------------------------
def test_lspci_prints_a_card_that_pci_ids_does_not_know(wtr: Host) -> None:
    assert wtr.output("lspci -nn | grep -i nvidia").rstrip() == captured(
        "pve84-8845hs-rtx5060ti", "lspci_nn_nvidia.txt"
    )


def test_lspci_shows_subsystem_driver_and_modules(wtr: Host) -> None:
    expected = captured("pve84-8845hs-rtx5060ti", "lspci_nnk_s_01_00_0.txt")
    assert wtr.output("lspci -nnk -s 01:00.0").rstrip() == expected


def test_lspci_numeric_and_verbose_has_the_lines_of_a_real_one(tmp_path: Path) -> None:
    host = Host(tmp_path, "z370-two-cards-one-group", running=True)
    mine = host.output("lspci -vn -s 02:00").splitlines()
    real = captured("z370-2080ti-2060", "lspci_vn_s_02_00.txt").splitlines()
    heads = re.compile(r"^\S|^\tSubsystem")
    assert [line for line in mine if heads.match(line)] == [line for line in real if heads.match(line)]
    assert "\tKernel driver in use: xhci_hcd" in mine
    usb = mine[mine.index("\tKernel driver in use: xhci_hcd") + 1]
    assert usb == "", "a built-in driver has no module to show"


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        ("-s 01:00.1", ["01:00.1"]),
        ("-s 01:", ["01:00.0", "01:00.1"]),
        ("-s 0000:01:00.0", ["01:00.0"]),
        ("-D -s 01:00.1 -d 10de:", ["0000:01:00.1"]),
        ("-d 10de:2d04", ["01:00.0"]),
        ("-d ::0403", ["01:00.1", "c6:00.1"]),
        ("-Dnn -d 1002:1900", ["0000:c6:00.0"]),
        ("-s 77:00.0", []),
    ],
)
def test_lspci_chooses_by_slot_and_id(wtr: Host, arguments: str, slots: list[str]) -> None:
    assert [line.split()[0] for line in wtr.output(f"lspci {arguments}").splitlines()] == slots


def test_lspci_tells_bridges_with_access_control_services(wtr: Host) -> None:
    with_acs = wtr.output("lspci -D -vv | awk '/^[0-9a-f]/ { a = $1 } /Access Control Services/ { print a }'").split()
    assert with_acs == ["0000:00:01.1", "0000:00:02.1", "0000:00:02.2", "0000:00:02.3", "0000:00:02.4"]


# -- what nobody simulates is an error, never silence --------------------------------------------------------
@pytest.mark.parametrize(
    "command",
    [
        "lspci --frobnicate",
        "systemctl frobnicate x",
        "modprobe --frobnicate vfio",
        "proxmox-boot-tool frobnicate",
        "qm frobnicate 103",
        "df -h /",
        "ip addr add 1.2.3.4",
        "mokutil --import x",
        "journalctl -o json",
        "curl --frobnicate http://x",
    ],
)
def test_an_unknown_option_or_verb_is_refused_and_logged(host: Host, command: str) -> None:
    done = host.run(command)
    assert done.returncode == 2
    assert done.stderr
    last = host.programs()[-1]
    assert (last["program"], last["exit"]) == (command.split()[0], 2)
    assert last["note"].startswith("not understood")


def test_every_program_starts_and_needs_a_lab(host: Host) -> None:
    present = {path.name for path in (host.machine.state / "bin").glob("[!.]*")}
    # What programs of packages call, and what tells this machine's apt where the system lies.
    assert present == set(PROGRAMS) - GUEST_ONLY - {"nvidia-smi", "nvidia-modprobe"} | {"installed", "apt.conf"}
    done = host.run("env -u LAB_STATE lspci")
    assert done.returncode == 1
    assert "python -m lab run" in done.stderr


def test_options_are_split_as_getopt_does() -> None:
    options = Options(["-nk", "-s", "01:00", "-d10de:", "--output=x", "rest", "--", "-v"], "nks:d:v", ("output=",))
    assert options.has("n", "k")
    assert (options.value("s"), options.value("d"), options.value("output")) == ("01:00", "10de:", "x")
    assert options.rest == ["rest", "-v"]
    with pytest.raises(UsageError, match="requires an argument"):
        Options(["-s"], "s:")


# -- boot tools --------------------------------------------------------------------------------------------
def test_update_initramfs_speaks_as_on_a_real_host(host: Host) -> None:
    done = host.run("update-initramfs -u -k all 2>&1")
    assert done.stdout.splitlines() == [
        line
        for kernel in ("6.17.2-1-pve", "6.14.11-4-pve")
        for line in (
            f"update-initramfs: Generating /boot/initrd.img-{kernel}",
            "Running hook script 'zz-proxmox-boot'..",
            "Re-executing '/etc/kernel/postinst.d/zz-proxmox-boot' in new private mount namespace..",
            "No /etc/kernel/proxmox-boot-uuids found, skipping ESP sync.",
        )
    ]


def test_the_same_configuration_gives_the_same_image(host: Host) -> None:
    image = host.root / "boot/initrd.img-6.17.2-1-pve"
    before = image.read_bytes()
    host.write("/etc/modprobe.d/x.conf", "blacklist nouveau\n")
    host.output("update-initramfs -u -k all")
    assert image.read_bytes() != before
    (host.root / "etc/modprobe.d/x.conf").unlink()
    host.output("update-initramfs -u -k all")
    assert image.read_bytes() == before


def test_an_image_lists_what_is_in_it(host: Host) -> None:
    host.bind_early("0000:01:00.0")
    host.output("update-initramfs -u")
    names = host.output("lsinitramfs $HOMELAB_ROOT/boot/initrd.img-6.17.2-1-pve").splitlines()
    assert "scripts/init-top/give-gpu" in names
    assert "usr/lib/modules/6.17.2-1-pve/kernel/drivers/vfio/pci/vfio-pci.ko" in names
    older = host.output("lsinitramfs $HOMELAB_ROOT/boot/initrd.img-6.14.11-4-pve").splitlines()
    assert "scripts/init-top/give-gpu" not in older, "-u without -k takes the newest kernel alone"


def test_a_failing_hook_fails_the_image_and_keeps_the_old_one(host: Host) -> None:
    image = host.root / "boot/initrd.img-6.17.2-1-pve"
    before = image.read_bytes()
    host.write(
        "/etc/initramfs-tools/hooks/bad",
        '#!/bin/sh\n[ "$1" = prereqs ] && exit 0\necho no such thing >&2\nexit 3\n',
        0o755,
    )
    done = host.run("update-initramfs -u")
    assert done.returncode == 1
    assert "E: /etc/initramfs-tools/hooks/bad failed with return 3." in done.stderr
    assert "update-initramfs: failed for /boot/initrd.img-6.17.2-1-pve with 1." in done.stderr
    assert image.read_bytes() == before


def test_proxmox_boot_tool_status_of_a_plain_grub_host(host: Host) -> None:
    done = host.run("proxmox-boot-tool status")
    assert (done.returncode, done.stderr) == (2, "E: /etc/kernel/proxmox-boot-uuids does not exist.\n")
    quiet = host.run("proxmox-boot-tool status --quiet")
    assert (quiet.returncode, quiet.stdout + quiet.stderr) == (2, "")


def shape(text: str) -> list[str]:
    """A status with its UUIDs and versions taken out."""
    text = re.sub(r"[0-9A-F]{4}-[0-9A-F]{4}|A{4}-\d{4}", "UUID", text)
    lines = re.sub(r"versions: [^)]*", "versions: V", text).strip().splitlines()
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize(
    "capture",
    [("pve-zfs-grub-shim", "proxmox_boot_tool_status.txt"), ("pve-boot-status-variants", "uefi_grub.txt")],
)
def test_proxmox_boot_tool_status_reads_as_on_real_hosts(tmp_path: Path, capture: tuple[str, str]) -> None:
    host = Host(tmp_path, "zfs-grub-shim", running=True)
    assert shape(host.output("proxmox-boot-tool status")) == shape(captured(*capture))


def test_a_stale_esp_is_warned_of(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    uuids = host.root / "etc/kernel/proxmox-boot-uuids"
    uuids.write_text(uuids.read_text(encoding="utf-8") + "DEAD-0001\n", encoding="utf-8")
    mine = shape(host.output("proxmox-boot-tool status 2>&1"))
    real = shape(captured("pve-boot-status-variants", "uefi_systemd_boot_stale_esp.txt"))
    assert sorted(mine) == sorted(real)
    host.output("proxmox-boot-tool clean")
    assert "DEAD" not in uuids.read_text(encoding="utf-8")


def test_old_kernels_leave_the_esps_with_their_entries(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    for kernel in ("6.17.4-1-pve", "6.17.6-1-pve"):
        host.machine.install_kernel(kernel)
    entries = tmp_path / "esp/E2B8-B79F/loader/entries"
    kept = {path.name for path in entries.iterdir()}
    # the running one and the latest two
    assert kept == {f"proxmox-{k}.conf" for k in ("6.17.2-1-pve", "6.17.4-1-pve", "6.17.6-1-pve")}
    assert not (tmp_path / "esp/E2B8-B79F/EFI/proxmox/6.14.11-4-pve").exists()


def test_a_command_line_without_root_is_refused(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.write("/etc/kernel/cmdline", "quiet\nroot=ZFS=rpool/ROOT/pve-1\n")
    done = host.run("proxmox-boot-tool refresh")
    assert done.returncode == 1
    assert "No root= parameter in /etc/kernel/cmdline found!" in done.stderr


def test_update_grub_on_a_managed_host_says_so_and_refreshes(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs iommu=pt\n")
    assert "W: This system is booted via proxmox-boot-tool:" in host.run("update-grub").stderr
    assert "iommu=pt" in host.reboot().cmdline


def test_a_failing_grub_script_leaves_grub_cfg_alone(host: Host) -> None:
    config = host.root / "boot/grub/grub.cfg"
    before = config.read_bytes()
    host.write("/etc/grub.d/15_bad", "#!/bin/sh\nexit 1\n", 0o755)
    assert host.run("update-grub").returncode == 1
    assert config.read_bytes() == before


@pytest.mark.parametrize(("scenario", "state"), [("zfs-grub-shim", "enabled"), ("intel-zfs", "disabled")])
def test_mokutil_says_whether_secure_boot_is_on(tmp_path: Path, scenario: str, state: str) -> None:
    assert Host(tmp_path, scenario, running=True).output("mokutil --sb-state") == f"SecureBoot {state}\n"


def test_the_boot_loader_leaves_its_name_in_an_efi_variable(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    variable = host.root / "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    assert variable.read_bytes()[4:].decode("utf-16-le").startswith("systemd-boot 257")


# -- faults ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scenario", "fault", "value", "command", "text"),
    [
        ("rtx5090", "update-initramfs", "fail", "update-initramfs -u -k all", "mkinitramfs failure"),
        ("rtx5090", "update-initramfs", "fail:6.14.11-4-pve", "update-initramfs -u -k all", "6.14.11-4-pve with 1"),
        ("rtx5090", "update-grub", "fail", "update-grub", "grub-probe: error"),
        ("intel-zfs", "proxmox-boot-tool", "fail", "proxmox-boot-tool refresh", "can't read superblock"),
    ],
)
def test_a_fault_makes_a_boot_tool_fail(
    tmp_path: Path, scenario: str, fault: str, value: object, command: str, text: str
) -> None:
    host = Host(tmp_path, scenario, running=True)
    host.machine.set_fault(fault, value)
    done = host.run(command)
    assert done.returncode == 1
    assert text in done.stderr
    assert host.programs()[-1]["exit"] == 1
    host.machine.set_fault(fault, None)
    assert host.run(command).returncode == 0


def test_a_fault_of_one_kernel_leaves_the_others_images_made(host: Host) -> None:
    host.machine.set_fault("update-initramfs", "fail:6.14.11-4-pve")
    host.bind_early("0000:01:00.0")
    host.run("update-initramfs -u -k all")
    made = host.output("lsinitramfs $HOMELAB_ROOT/boot/initrd.img-6.17.2-1-pve")
    old = host.output("lsinitramfs $HOMELAB_ROOT/boot/initrd.img-6.14.11-4-pve")
    assert "give-gpu" in made
    assert "give-gpu" not in old


# -- modules -----------------------------------------------------------------------------------------------
def test_modprobe_binds_devices_with_an_override_on_the_running_system(host: Host) -> None:
    host.output("modprobe -r nouveau")
    assert host.driver("0000:01:00.0") is None
    host.output("echo vfio-pci >$HOMELAB_ROOT/sys/bus/pci/devices/0000:01:00.0/driver_override && modprobe vfio-pci")
    assert host.driver("0000:01:00.0") == "vfio-pci"


def test_a_module_that_others_need_is_not_removed(host: Host) -> None:
    done = host.run("modprobe -r drm")
    assert done.returncode == 1
    assert "is in use by" in done.stderr


def test_modinfo_knows_built_in_drivers(tmp_path: Path) -> None:
    host = Host(tmp_path, "four-functions", running=True)
    assert host.output("modinfo -F filename xhci_pci") == "(builtin)\n"
    assert host.output("modinfo -n vfio-pci").endswith("/kernel/drivers/vfio/pci/vfio-pci.ko\n")


# -- storage -----------------------------------------------------------------------------------------------
def test_mounting_an_esp_shows_its_files_and_unmounting_hides_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs", running=True)
    host.output(
        "mkdir $HOMELAB_ROOT/mnt/esp; touch $HOMELAB_ROOT/mnt/esp/below; mount $HOMELAB_ROOT/dev/disk/by-uuid/E2B8-705F $HOMELAB_ROOT/mnt/esp;"
        "[ ! -e $HOMELAB_ROOT/mnt/esp/below ]; echo hello >$HOMELAB_ROOT/mnt/esp/new; grep -q ' /mnt/esp vfat' $HOMELAB_ROOT/proc/mounts"
    )
    assert (tmp_path / "esp/E2B8-705F/new").read_text(encoding="utf-8") == "hello\n"
    host.output(
        "umount $HOMELAB_ROOT/mnt/esp && [ -e $HOMELAB_ROOT/mnt/esp/below ] && ! [ -e $HOMELAB_ROOT/mnt/esp/new ]"
    )
    assert host.run("umount $HOMELAB_ROOT/mnt/esp").returncode == 32
    assert "does not exist" in host.run("mount $HOMELAB_ROOT/dev/disk/by-uuid/0000-0000 $HOMELAB_ROOT/mnt/esp").stderr


def test_the_disk_below_the_root_file_system_can_be_found(host: Host) -> None:
    chain = [line for line in host.output("lsblk -nro NAME,PKNAME").splitlines() if "nvme0n1p3" in line.split()]
    assert "pve-root nvme0n1p3" in chain and "nvme0n1p3 nvme0n1" in chain
    assert "/0000:00:01.2/0000:02:00.0/" in str((host.root / "sys/class/block/nvme0n1").resolve())


def test_the_network_card_of_the_bridge_can_be_found(host: Host) -> None:
    (default,) = json.loads(host.output("ip -j route show default"))
    assert (default["gateway"], default["dev"]) == ("192.168.0.1", "vmbr0")
    member = host.output("ls $HOMELAB_ROOT/sys/class/net/vmbr0/brif").strip()
    device = (host.root / "sys/class/net" / member / "device").resolve()
    assert device.name == "0000:05:00.0"


# -- systemd -----------------------------------------------------------------------------------------------
def test_enabling_makes_the_link_that_systemd_makes(host: Host) -> None:
    host.write(
        "/etc/systemd/system/x.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    )
    host.output("systemctl daemon-reload && systemctl enable x.service")
    link = host.root / "etc/systemd/system/multi-user.target.wants/x.service"
    assert str(link.readlink()) == "/etc/systemd/system/x.service"
    host.output("systemctl disable --now x")
    assert not link.is_symlink()
    assert host.run("systemctl enable nothing.service").returncode == 1


def test_a_oneshot_service_runs_its_command_in_the_host_tree(host: Host) -> None:
    host.write("/var/lib/x/run", '#!/bin/bash\necho "$1" >"$HOMELAB_ROOT/var/lib/x/out"\n', 0o755)
    host.write("/etc/systemd/system/x.service", "[Service]\nType=oneshot\nExecStart=/var/lib/x/run hello\n")
    host.output("systemctl start x.service")
    assert (host.root / "var/lib/x/out").read_text(encoding="utf-8") == "hello\n"
    host.write("/var/lib/x/run", "#!/bin/sh\nexit 3\n", 0o755)
    done = host.run("systemctl start x.service")
    assert done.returncode == 1
    assert "failed because the control process exited with error code" in done.stderr
    assert host.run("systemctl is-active x.service").stdout == "failed\n"


def test_units_that_are_not_there_are_reported_with_systemds_status(host: Host) -> None:
    assert host.run("systemctl start nothing.timer").returncode == 5
    assert host.run("systemctl stop nothing.timer").returncode == 5
    assert host.run("systemctl is-active nothing.timer").returncode == 4
    assert host.run("systemctl status nothing").returncode == 4
    assert host.output("systemctl is-active ssh pve-guests").split() == ["active", "active"]


def test_a_reboot_needs_a_daemon(host: Host) -> None:
    assert "daemon doesn't run" in host.run("reboot").stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5min", 300), ("1h 30min", 5400), ("2m", 120), ("1.5s", 1.5)]
)
def test_time_spans_are_read_as_systemd_reads_them(text: str, seconds: float) -> None:
    assert parse_time_span(text) == seconds


def test_a_time_span_that_is_none_is_refused() -> None:
    with pytest.raises(UnitError):
        parse_time_span("soon")


# -- the system, guests --------------------------------------------------------------------------------------
def test_dmesg_and_journalctl_print_the_same_messages(host: Host) -> None:
    host.output("echo '<6>hello from user space' >$HOMELAB_ROOT/dev/kmsg")
    dmesg = host.output("dmesg").splitlines()
    assert re.match(r"^\[ +\d+\.\d{6}\] hello from user space$", dmesg[-1])
    journal = host.output("journalctl -k -b 0 --no-pager").splitlines()
    assert re.match(r"^\w{3} \d\d \d\d:\d\d:\d\d pve kernel: hello from user space$", journal[-1])
    assert len(journal) == len(dmesg)


def test_dmesg_of_intel_has_the_lines_of_a_real_one(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel-zfs")
    host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs intel_iommu=on iommu=pt\n")
    host.booted()
    host.output("proxmox-boot-tool refresh")
    host.reboot()
    mine = {re.sub(r"[0-9a-f]{2,}|\d", "N", line) for line in host.output("dmesg -t").splitlines()}
    real = captured("i5-9400f-rx580-rx550", "dmesg_iommu.txt")
    for text in (
        "DMAR: IOMMU enabled",
        "DMAR: Host address width 39",
        "DMAR-IR: Enabled IRQ remapping in x2apic mode",
        "iommu: Default domain type: Passthrough (set via kernel command line)",
        "DMAR: Intel(R) Virtualization Technology for Directed I/O",
    ):
        assert text in real
        assert re.sub(r"[0-9a-f]{2,}|\d", "N", text) in mine


def test_uname_and_versions_agree(host: Host) -> None:
    assert host.output("uname -r") == "6.17.2-1-pve\n"
    assert host.output("uname --kernel-release; uname -r -r") == "6.17.2-1-pve\n" * 2, "uname itself, not its launcher"
    assert host.output("uname -srm") == "Linux 6.17.2-1-pve x86_64\n"
    assert re.match(
        r"^pve-manager/9\.1\.\d+/[0-9a-f]{16} \(running kernel: 6\.17\.2-1-pve\)$", host.output("pveversion")
    )
    assert "proxmox-kernel-6.17.2-1-pve-signed" in host.output("dpkg-query -W -f '${Package}\\n' 'proxmox-kernel-*'")


def test_tail_cannot_begin_later_in_an_efi_variable(host: Host) -> None:
    """Seen on a real kernel: tail gives up, where od reads on."""
    variable = "$HOMELAB_ROOT/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    done = host.run(f"tail -c +5 {variable}")
    assert (done.returncode, done.stdout) == (1, "") and "Illegal seek" in done.stderr
    assert host.output(f"od -An -tu1 -j4 -N1 {variable}").split() == [str(ord("G"))]
    assert host.output("printf abc >$HOMELAB_ROOT/tmp/plain; tail -c +3 $HOMELAB_ROOT/tmp/plain") == "c"


def test_uname_r_needs_a_lab_as_every_other_command_does(host: Host) -> None:
    done = host.run("env -u LAB_STATE uname -r")
    assert done.returncode == 1 and "LAB_STATE is not set" in done.stderr
    assert host.run("mv $HOMELAB_ROOT/proc/sys/kernel/osrelease $HOMELAB_ROOT/proc/away; uname -r").stdout == "\n"


@pytest.mark.parametrize(
    "command",
    [
        "uname -a", "dmesg", "journalctl -k", "hostname", "modinfo -n vfio-pci",
        "dkms status", "systemctl is-active ssh",
        "df -P -B1 /", "lsblk -nro NAME", "mount", "lspci -nnk", "pveversion",
    ],
)  # fmt: skip
def test_a_command_imports_only_what_it_needs(wtr: Host, command: str) -> None:
    python = os.path.realpath(sys.executable)
    done = subprocess.run(
        [python, "-X", "importtime", "-I", "-S", run.__file__, *command.split()],
        env=wtr.machine.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "host.state" in imported, "the list of imports was not read"
    assert not imported & NOT_FOR_QUESTIONS


def test_vms_are_listed_as_qm_does(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix", running=True)
    rows = [line.split() for line in host.output("qm list").splitlines()]
    assert rows[0] == ["VMID", "NAME", "STATUS", "MEM(MB)", "BOOTDISK(GB)", "PID"]
    assert rows[1][:4] == ["103", "Sandbox", "running", "32768"]
    assert host.run("qm config 999").returncode == 2
    assert '"iommugroup":14' in host.output("pvesh get /nodes/phoenix/hardware/pci --output-format json")


def test_nvidia_smi_is_there_only_with_the_driver(tmp_path: Path, host: Host) -> None:
    assert "nvidia-smi" not in {path.name for path in (host.machine.state / "bin").glob("[!.]*")}
    phoenix = Host(tmp_path / "phoenix", "phoenix", running=True)
    assert phoenix.output("nvidia-smi --query-gpu=pci.bus_id,driver_version --format=csv,noheader").splitlines() == [
        "00000000:01:00.0, 580.105.08",
        "00000000:02:00.0, 580.105.08",
    ]
    phoenix.output(rebound("0000:01:00.0", "vfio-pci"))
    phoenix.output(rebound("0000:02:00.0", "vfio-pci"))
    assert phoenix.run("nvidia-smi").stdout == captured("pve-p51-laptop-quadro-m1200", "guest_nvidia_smi.txt") + "\n"


def test_a_machine_without_apt_has_hosts_that_can_be_read(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the README's first demo needs."""
    monkeypatch.setattr(apt_programs, "REAL_PATH", str(host.root))
    system = state.HostState(host.machine.state)
    form = "-f=${Package} ${db:Status-Status} ${Version}\\n"
    assert apt_programs.main(system, "dpkg-query", ["-W", form, "kmod", "no-such"]) == 0
    assert capsys.readouterr().out == "kmod installed 1\n"
    with pytest.raises(Failure, match="this machine has no apt"):
        apt_programs.main(system, "apt-get", ["install", "-y", "jq"])
