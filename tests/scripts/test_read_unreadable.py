"""read_host.sh: a file that decides something and can't be read is told of, whatever keeps it from being read; bytes of any kind hide no line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab.host.facts import HostFacts
from tests.scripts.conftest import Folder
from tests.scripts.test_signs import host as host  # the least that read_host.sh needs
from tests.scripts.test_signs import read

VM, CONTAINER = "/etc/pve/qemu-server/103.conf", "/etc/pve/lxc/901.conf"
# What gates go by; all of it is there on a host like this one.
DECIDING = [
    VM,
    CONTAINER,
    "/etc/pve/mapping/pci.cfg",
    "/run/qemu-server/pci-id-reservations",
    "/etc/pve/ha/resources.cfg",
    "/etc/pve/ha/rules.cfg",
    "/etc/modprobe.d/vfio.conf",
    "/etc/driverctl.d/0000:01:00.0",
    "/proc/mounts",
    "/proc/swaps",
    "/proc/net/route",
    "/proc/iomem",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information",
    "/sys/kernel/iommu_groups/16/reserved_regions",
    "/sys/firmware/acpi/tables/IVRS",
    "/var/lib/homelab/handover/big.state",
    "/var/lib/homelab/ledger/vm/103",
]


@pytest.fixture
def whole(host: Folder) -> Folder:
    """The same, with each of these files."""
    for path in DECIDING:
        host.write(path, "vm: 103\n" if "resources" in path else "a line\n")
    return host


def lines(facts: HostFacts) -> dict[int, str]:
    return {config.id: config.lines for config in facts.guests.configs}


def test_what_can_be_read_is_no_trouble(whole: Folder) -> None:
    assert read(whole).unreadable == []


def is_folder(path: Path) -> None:
    path.mkdir()


def is_pipe(path: Path) -> None:
    os.mkfifo(path)


def leads_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def loops(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("become", [is_folder, is_pipe, leads_nowhere, loops])
@pytest.mark.parametrize("path", [VM, CONTAINER, "/etc/pve/mapping/pci.cfg", "/etc/pve/ha/resources.cfg"])
def test_what_stands_in_the_place_of_a_file_is_told(whole: Folder, path: str, become: Callable[[Path], None]) -> None:
    file = whole.root / path.lstrip("/")
    file.unlink()
    become(file)
    assert read(whole).unreadable == [f"{path}: it is no file"]


@pytest.mark.parametrize("path", DECIDING)
def test_a_file_whose_reading_fails_is_told(whole: Folder, path: str) -> None:
    """As of a disk that fails, or of Proxmox VE's file system whose service is gone: after some of it, too."""
    fails = f'for one; do [[ $one != "$ROOT{path}" ]] || {{ echo half; echo "cat: $one: Input/output error" >&2; exit 1; }}; done'
    whole.command("cat", f'{fails}\nexec /bin/cat "$@"')
    assert read(whole).unreadable == [f"{path}: Input/output error"]


def test_a_file_system_that_hangs_is_told_once(whole: Folder) -> None:
    whole.command(
        "timeout", 'while [[ $1 == -* ]]; do shift 2; done; shift\n[[ $* != *"/etc/pve/lxc/"* ]] || exit 124\nexec "$@"'
    )
    facts = read(whole)
    assert facts.unreadable == [f"{CONTAINER}: no answer within 20 s"] and 901 not in lines(facts)


@pytest.mark.parametrize("byte", ["\0", "\xff", "\x1b[2K", "\r"])
def test_no_byte_of_another_line_hides_what_a_guest_has(host: Folder, byte: str) -> None:
    """Proxmox VE takes a configuration line by line: what a description holds changes nothing about the others."""
    for path, line in ((CONTAINER, "dev0: /dev/nvidia0"), (VM, "hostpci0: 0000:01:00")):
        file = host.write(path, "")
        file.write_bytes(f"#a{byte}b\n{line}\nhostname: x{byte}y\n".encode("latin-1"))
    facts = read(host)
    assert facts.unreadable == []
    assert "dev0: /dev/nvidia0" in lines(facts)[901].splitlines()
    assert "hostpci0: 0000:01:00" in lines(facts)[103].splitlines()


def test_a_zero_byte_in_a_line_itself_leaves_what_it_gives(host: Folder) -> None:
    host.write(CONTAINER, "").write_bytes(
        b"dev0: /dev/nvidia0\0,uid=0\nlxc.mount.entry: /dev/dri dev/dri none bind\0\n"
    )
    found = lines(read(host))[901]
    assert "dev0: /dev/nvidia0" in found and "/dev/dri" in found


def test_what_is_too_long_to_be_passed_on_is_told(host: Folder) -> None:
    host.write(CONTAINER, "".join(f"dev{number}: /dev/nvidia{number}\n" for number in range(12_000)))
    host.write("/etc/pve/mapping/pci.cfg", "card\n" + "\tmap node=pve,path=0000:01:00.0\n" * 9_000)
    told = read(host).unreadable
    assert [one.partition(": ")[0] for one in told] == [CONTAINER, "/etc/pve/mapping/pci.cfg"]
    assert all("longer than" in one for one in told)


def test_a_guest_that_runs_has_a_configuration(whole: Folder) -> None:
    whole.command("qm", "printf 'VMID NAME STATUS\\n103 a running 1 2 3\\n104 b running 1 2 4\\n'")
    whole.command("pct", "printf 'VMID Status Lock Name\\n902 running x\\n'")
    assert read(whole).unreadable == [
        f"{path}: it isn't there, and that guest runs"
        for path in ("/etc/pve/qemu-server/104.conf", "/etc/pve/lxc/902.conf")
    ]


@pytest.mark.parametrize("program", ["cat", "grep"])
@pytest.mark.parametrize("path", [VM, CONTAINER])
def test_a_guest_that_goes_while_it_is_read_is_no_trouble(whole: Folder, path: str, program: str) -> None:
    """It was removed, or moved to another node."""
    whole.command(program, f'[[ $* != *"{path}"* ]] || rm -f "$ROOT{path}"\nexec /bin/{program} "$@"')
    assert read(whole).unreadable == []


def test_a_host_whose_proxmox_file_system_isnt_mounted_is_told(host: Folder) -> None:
    (host.root / "etc/pve").mkdir(parents=True)
    (told,) = read(host).unreadable
    assert told.startswith("/etc/pve: ") and "isn't mounted" in told


def test_a_masked_file_of_modprobe_is_none(whole: Folder) -> None:
    (whole.root / "etc/modprobe.d/masked.conf").symlink_to("/dev/null")
    (whole.root / "etc/modprobe.d/folder.conf").mkdir()
    assert read(whole).unreadable == []


# -- what carries the host ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "does", "trouble"),
    [
        ("zpool", "echo ' /dev/sda3 ONLINE'; exit 1", "neither zpool nor lsblk"),
        ("ip", "exit 1", "gave no answer"),
        ("ip", "exit 124", "gave no answer"),
    ],
)
def test_half_an_answer_carries_nothing_away(host: Folder, name: str, does: str, trouble: str) -> None:
    """A part of the disks, or of the ways, is no answer: what isn't in it could be taken."""
    host.write("/proc/mounts", "tank/root / zfs rw 0 0\n10.9.9.9:/x /var/lib/vz nfs rw,addr=10.9.9.9 0 0\n")
    host.command("lsblk", "exit 1")
    host.command(name, does)
    assert trouble in " ".join(one.trouble for one in read(host).vital)


def test_mounts_that_nobody_tells_are_trouble(host: Folder) -> None:
    assert [one.trouble for one in read(host).vital if one.kind == "storage"] == ["/proc/mounts doesn't say"]
