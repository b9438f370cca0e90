"""read_host.sh: what it passes on of the kernel's log, of cards that are gone, of boot partitions; and what hangs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

import pytest

from homelab.host import kernel_log
from homelab.host.facts import HostFacts, parse
from homelab.remote import scripts
from tests.scripts.conftest import Folder

LOG = """\
[ 1.0] NVRM: loading NVIDIA UNIX Open Kernel Module
[ 2.0] usb 1-1: new device
[ 3.0] vfio-pci 0000:01:00.0: Unable to change power state from D3cold to D0, device inaccessible
"""
ONES = b"\xff" * 64


@pytest.fixture
def host(folder: Folder) -> Folder:
    """The least that read_host.sh needs of a host."""
    folder.write("proc/sys/kernel/random/boot_id", "1\n")
    for path in ("proc/cmdline", "proc/cpuinfo", "proc/modules", "etc/default/grub", "boot/grub/grub.cfg"):
        folder.write(path, "")
    for name in ("journalctl", "lspci", "lsblk", "qm", "pct", "dpkg-query", "dmesg"):
        folder.command(name, "exit 0")
    folder.command("pveversion", "echo pve-manager/9.1.1/x")
    return folder


def read(host: Folder, signs: str = "") -> HostFacts:
    done = host.run("read_host", scripts.read_host(guests=True, lspci=True, signs=signs))
    assert done.returncode == 0, done.stdout + done.stderr
    return parse(done.stdout)


def function(host: Folder, address: str, code: str, config: bytes) -> None:
    host.write(f"sys/bus/pci/devices/{address}/class", f"{code}\n")
    (host.root / f"sys/bus/pci/devices/{address}/config").write_bytes(config)


def test_the_lines_that_matter_are_passed_on_from_the_journal_of_this_boot(host: Folder) -> None:
    host.command("journalctl", f'[[ " $* " == *" -k -b "* ]] || exit 1\ncat <<"END"\n{LOG}END')
    assert read(host, kernel_log.filter_of_lines()).kernel_log.splitlines() == LOG.splitlines()[::2]
    assert read(host).kernel_log == ""


def test_somebodys_copy_of_a_configuration_is_no_guest(host: Folder) -> None:
    for name in ("103", "103-old", "010", "notes"):
        host.write(f"etc/pve/qemu-server/{name}.conf", "name: Sandbox\n")
    host.write("etc/pve/lxc/901.bak.conf", "hostname: ai-lab\n")
    host.write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: Unknown\n")
    facts = read(host)
    assert [config.id for config in facts.guests.configs] == [103]
    assert facts.nvidia_minors == {}


def test_a_configuration_that_cant_be_read_hides_no_other_one(host: Folder) -> None:
    """One that goes while the host is read fails as this one does."""
    (host.root / "etc/pve/qemu-server/104.conf").mkdir(parents=True)
    host.write("etc/pve/qemu-server/105.conf", "hostpci0: 0000:01:00.0")
    assert {config.id: config.lines for config in read(host).guests.configs}[105] == "hostpci0: 0000:01:00.0"


def test_guests_that_run_are_told_by_their_ids_whatever_the_lists_look_like(host: Folder) -> None:
    host.command(
        "qm",
        "printf 'VMID NAME STATUS\\n103 Sandbox running 1 2 3\\n105 VM 105 running 1 2 4\\n106 VM 106 stopped 1 2 0\\n'",
    )
    host.command("pct", "printf 'VMID Status Lock Name\\n901 running ai-lab\\n902 stopped backup x\\n'")
    assert read(host).guests.running == {103, 105, 901}
    host.command("qm", "exit 255")
    assert read(host).guests.running == {901}
    host.command("pct", "exit 255")
    assert read(host).guests.running == set()


def test_of_a_container_the_lines_about_devices_and_disks_are_passed_on_and_no_others(host: Folder) -> None:
    lines = [
        "mp0: local-lvm:vm-901-disk-1,mp=/x",
        "hostname: ai",
        "lxc.mount.entry = /dev dev none bind",
        "lxc.apparmor.profile: unconfined",
        "[pve:pending]",
        "dev0: /dev/nvidia0",
    ]
    host.write("etc/pve/lxc/901.conf", "\n".join(["lxc.environment: A=secret", *lines, ""]))
    assert read(host).guests.configs[0].lines.splitlines() == lines


def test_the_versions_of_what_decides_about_cards_and_containers_are_read(host: Folder) -> None:
    versions = {"qemu-server": "9.0.25", "lxc-pve": "6.0.5-3"}
    listed = "".join(f"{name} installed {version}\n" for name, version in versions.items())
    host.command("dpkg-query", f"""[[ " $* " != *" lxc-pve "* ]] || printf '{listed}'""")
    assert read(host).packages == versions


@pytest.mark.parametrize(("value", "allowed"), [("Y", True), ("N", False), (None, False)])
def test_that_vfio_may_go_without_interrupt_remapping_is_read(host: Folder, value: str | None, allowed: bool) -> None:
    if value:
        host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", f"{value}\n")
    assert read(host).unsafe_interrupts is allowed


def test_without_a_journal_it_is_what_dmesg_still_has(host: Folder) -> None:
    host.command("dmesg", f'cat <<"END"\n{LOG}END')
    assert len(read(host, kernel_log.filter_of_lines()).kernel_log.splitlines()) == 2


def test_of_a_flood_of_lines_head_and_tail_are_passed_on(host: Folder) -> None:
    host.command(
        "journalctl",
        'for n in {1..3000}; do echo "[$n.0] vfio-pci 0000:01:00.0: not ready ${n}ms after FLR; giving up"; done',
    )
    host.command("dmesg", 'for n in {1..3000}; do echo "[$n.0] DMAR: line $n"; done')
    found = read(host, kernel_log.filter_of_lines())
    for text, most in ((found.kernel_log, 1000), (found.iommu.kernel_log, 40)):
        lines = text.splitlines()
        assert len(lines) == most + 1 and lines[0].startswith("[1.0]") and lines[-1].startswith("[3000.0]")
        assert "lines are left out here" in lines[most // 2]


@pytest.mark.parametrize(
    ("code", "config", "lost"),
    [
        ("0x030000", ONES, True),
        ("0x030200", ONES, True),
        ("0x040300", ONES, True),
        ("0x120000", ONES, True),
        ("0x030000", b"\x01\x00\xff\xff" + ONES, True),  # it goes on asking to be asked again
        ("0x030000", b"\xde\x10\x85\x2b" + b"\x00" * 60, False),
        ("0x030000", b"\xff\xff\xff\xff\x00\x00\x10\x00\xa1\x00\x00\x03" + b"\x00" * 60, False),  # a virtual function
        ("0x020000", ONES, False),
        ("0x030000", b"", False),
    ],
)
def test_a_card_is_lost_when_its_configuration_space_reads_as_ones(
    host: Folder, code: str, config: bytes, lost: bool
) -> None:
    function(host, "0000:01:00.0", code, config)
    assert read(host).lost == (["0000:01:00.0"] if lost else [])
    # Beside others, whose bytes are read with it.
    function(host, "0000:00:02.0", "0x030000", b"\x86\x80" + b"\x00" * 62)
    function(host, "0000:02:00.0", "0x030000", ONES)
    assert read(host).lost == (["0000:01:00.0"] if lost else []) + ["0000:02:00.0"]


def test_what_proxmox_boot_tool_warns_of_is_passed_on(host: Folder) -> None:
    host.write("etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    host.command(
        "proxmox-boot-tool",
        "echo 'AAAA-0001 is configured with: grub (versions: 6.8)'; echo 'WARN: /dev/disk/by-uuid/AAAA-0002 does not exist'",
    )
    assert read(host).boot_warnings == "WARN: /dev/disk/by-uuid/AAAA-0002 does not exist"


HANGING = ("journalctl", "dmesg", "lspci", "lsblk", "df", "qm", "pct", "pveversion", "proxmox-boot-tool", "od")


@pytest.mark.parametrize("names", [*([name] for name in HANGING), ["dmesg", "journalctl", "lsblk", "df"]], ids=" ".join)
def test_a_program_that_hangs_hides_nothing_that_is_known_without_it(host: Folder, names: Sequence[str]) -> None:
    host.write("etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    host.command("proxmox-boot-tool", "echo")
    for address in ("0000:01:00.0", "0000:01:00.1"):
        function(host, address, "0x030000", ONES)
    for name in names:
        host.command(name, "trap '' TERM; while :; do sleep 60; done")
    host.as_sent = True
    short = scripts.read_host(guests=True, lspci=True, signs="x").replace("ASK_SECONDS=20", "ASK_SECONDS=0.2")
    short = short.replace("within 5 ", "within 0.2 ").replace("timeout -k 2", "timeout -k 0.1")
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-s", "--", "read_host"], input=short, text=True, capture_output=True, env=host.environment, timeout=60
    )
    assert done.returncode == 0, done.stdout
    found = parse(done.stdout)
    assert found.boot_id == "1" and found.devices[0].address == "0000:01:00.0"
    assert time.monotonic() - started < 30


# -- how cards are reset, sleep and are divided ---------------------------------------------------------------------
def test_of_each_function_of_a_card_its_resets_its_power_and_who_shares_it_are_read(host: Folder) -> None:
    folder = "sys/bus/pci/devices/10000:01:00.0"
    function(host, "10000:01:00.0", "0x030000", ONES)
    for name, text in {
        "reset_method": "flr bus",
        "d3cold_allowed": "1",
        "power/control": "auto",
        "power_state": "D3hot",
    }.items():
        host.write(f"{folder}/{name}", f"{text}\n")
    function(host, "0000:02:00.0", "0x030000", ONES)
    host.write("sys/bus/pci/devices/0000:02:00.0/reset_method", "")  # no way to reset it
    host.write("sys/bus/pci/devices/0000:02:00.0/nvidia/current_vgpu_type", "0\n")
    function(host, "0000:02:00.1", "0x030200", ONES)
    host.write("sys/bus/pci/devices/0000:02:00.1/mdev_supported_types/a/name", "x\n")
    host.write("sys/bus/pci/devices/0000:02:00.1/reset_method", 'a"\\b\x1b[31m\n')  # whatever it says, it is text
    function(host, "0000:03:00.0", "0x010802", ONES)
    host.write("sys/bus/pci/devices/0000:04:00.0/vendor", "0x10de\n")  # a function without a class
    states = read(host).card_states
    assert set(states) == {"10000:01:00.0", "0000:02:00.0", "0000:02:00.1"}
    card = states["10000:01:00.0"]
    assert (card.reset_method, card.d3cold_allowed, card.control, card.power_state) == ("flr bus", "1", "auto", "D3hot")
    second, third = states["0000:02:00.0"], states["0000:02:00.1"]
    assert (second.divided, second.reset_method, second.control) == ("vgpu", "", None)
    assert (third.divided, third.reset_method) == ("mdev", 'a"\\b')


def test_a_function_that_goes_while_it_is_read_is_left_as_it_is(host: Folder) -> None:
    function(host, "0000:01:00.0", "0x030000", ONES)
    (host.root / "sys/bus/pci/devices/0000:01:00.0/reset_method").mkdir()  # reading fails, as of a device that is gone
    assert read(host).card_states["0000:01:00.0"].reset_method in (None, "")


def test_nvidias_vgpu_driver_is_recognised_by_its_manager(host: Folder) -> None:
    assert not read(host).vgpu_manager
    host.write("usr/bin/nvidia-vgpu-mgr", "")
    assert read(host).vgpu_manager
