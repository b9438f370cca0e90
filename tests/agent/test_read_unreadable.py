"""A reading tells of a file that decides something and can't be read, whatever keeps it from being read; bytes of any kind hide no line."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.facts.host import HostFacts
from remote_scripts.reading.source import Source
from tests.agent.kit import Host, follows_no_link, hangs
from tests.agent.reading_kit import host as host
from tests.agent.reading_kit import read, says

VM, CONTAINER = "/etc/pve/qemu-server/103.conf", "/etc/pve/lxc/901.conf"
STATE, NOTE = "/var/lib/homelab/handover/big.state", "/etc/pve/homelab/lxc-901"
CLASS = "/sys/bus/pci/devices/0000:01:00.0/class"
LINES = [
    VM,
    CONTAINER,
    "/etc/pve/mapping/pci.cfg",
    "/run/qemu-server/pci-id-reservations",
    "/etc/pve/ha/manager_status",
    "/etc/modprobe.d/vfio.conf",
    "/boot/grub/grub.cfg",
    "/proc/mounts",
    "/proc/iomem",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information",
    "/sys/kernel/iommu_groups/16/reserved_regions",
    *(f"/sys/bus/pci/devices/0000:01:00.0/{name}" for name in ("vendor", "device", "boot_vga", "sriov_numvfs")),
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/var/lib/homelab/card-values/0000:01:00.0=reset_method",
    "/var/lib/homelab/ledger/vm/103",
]
#: What gates go by; all of it is there on a host like this one.
DECIDING = {
    **dict.fromkeys(LINES, "a line\n"),
    STATE: '{"state": "HELD"}',
    NOTE: '{"owner": "p/s/ai"}',
    "/var/lib/homelab/wanted-boot": '{"boot": {}, "still": []}',
    "/etc/pve/ha/resources.cfg": "vm: 103\n",
    CLASS: "0x030000\n",
}


@pytest.fixture
def whole(host: Host) -> Host:
    """The same, with each of these files."""
    for path, text in DECIDING.items():
        host.write(path, text)
    return host


def lines(facts: HostFacts) -> dict[int, str]:
    return {config.id: config.lines for config in facts.guests.configs}


def test_what_can_be_read_is_no_trouble(whole: Host) -> None:
    assert read(whole).unreadable == []


def leads_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def loops(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("become", [Path.mkdir, os.mkfifo, leads_nowhere, loops])
@pytest.mark.parametrize("path", [VM, CONTAINER, "/etc/pve/mapping/pci.cfg", "/etc/pve/ha/resources.cfg"])
def test_what_stands_in_the_place_of_a_file_is_told(whole: Host, path: str, become: Callable[[Path], None]) -> None:
    file = whole.root / path.lstrip("/")
    file.unlink()
    become(file)
    why = "Too many levels of symbolic links" if become is loops else "it is no file"
    assert read(whole).unreadable == [f"{path}: {why}"]


@pytest.mark.parametrize("path", DECIDING)
def test_a_file_whose_reading_fails_is_told(whole: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a disk that fails, or of Proxmox VE's file system whose service is gone."""
    opened = Path.open

    def fails(one: Path, *arguments: Any, **named: Any) -> Any:
        if one == whole.root / path.lstrip("/"):
            raise OSError(errno.EIO, "Input/output error", str(one))
        return opened(one, *arguments, **named)

    monkeypatch.setattr(Path, "open", fails)
    assert read(whole).unreadable == [f"{path}: Input/output error"]


@pytest.mark.parametrize(
    "path",
    [
        "/sys/bus/pci/devices",
        "/sys/kernel/iommu_groups",
        "/etc/pve/qemu-server",
        "/etc/pve/lxc",
        "/etc/modprobe.d",
        "/etc/default/grub.d",
        "/var/lib/homelab/card-values",
        "/var/lib/homelab/handover",
        "/var/lib/homelab/ledger",
    ],
)
def test_a_folder_that_cannot_be_listed_is_told(whole: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing seems to be in it."""
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def fails(folder: Any = ".", *, real: Any = real) -> Any:
            if str(folder) == str(whole.root / path.lstrip("/")):
                raise OSError(errno.EIO, "Input/output error", str(folder))
            return real(folder)

        monkeypatch.setattr(os, name, fails)
    assert f"{path}: Input/output error" in read(whole).unreadable


def test_where_a_link_leads_isnt_looked_at_when_a_folder_is_listed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a share that hangs."""
    rule = host.write("/etc/udev/rules.d/below/10.rules", "")
    rule.with_name("20.rules").symlink_to("/mnt/nas/20.rules")
    follows_no_link(monkeypatch)
    assert Source(host.system()).below("/etc/udev/rules.d") == ["/etc/udev/rules.d/below/10.rules"]


def test_that_a_shell_cant_tell_what_grub_gives_the_kernel_is_told(host: Host) -> None:
    host.programs["bash"] = says("", 1)
    (told,) = read(host).unreadable
    assert told.startswith("/etc/default/grub: ") and "ended with 1" in told


def test_a_file_system_that_hangs_is_told_and_waited_for_once(whole: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs(monkeypatch, whole.root / CONTAINER[1:])
    began = time.monotonic()
    facts = read(whole)
    assert facts.unreadable[0] == f"{CONTAINER}: no answer within 0.5 s" and 901 not in lines(facts)
    assert all(line.startswith("/etc/pve/") and line.endswith(": no answer within 0.5 s") for line in facts.unreadable)
    assert time.monotonic() - began < 5


# -- places that an owner has chosen -----------------------------------------------------------------------------------
SCRIPT = "/mnt/nas/snippets/homelab-handover.sh"


@pytest.mark.parametrize("path", [SCRIPT, "/var/backups/homelab"])
def test_what_lies_on_a_share_that_hangs_is_told_in_time(
    whole: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.write("/var/lib/homelab/handover-hooks/103", "")
    whole.write("/etc/pve/storage.cfg", "dir: nas\n\tpath /mnt/nas\n\tcontent snippets\n")
    whole.write(VM, "hookscript: nas:snippets/homelab-handover.sh\n")
    whole.write(SCRIPT, "", 0o755)
    (whole.root / "var/backups/homelab").mkdir(parents=True)
    assert read(whole).unreadable == []
    hangs(monkeypatch, whole.root / path[1:])
    began = time.monotonic()
    told = read(whole).unreadable
    assert time.monotonic() - began < 5
    noted = "/var/lib/homelab/handover-hooks/103" if path == SCRIPT else path
    assert told == [f"{noted}: no answer within 0.5 s"]


@pytest.mark.parametrize("byte", ["\0", "\xff", "\x1b[2K", "\r"])
def test_no_byte_of_another_line_hides_what_a_guest_has(host: Host, byte: str) -> None:
    """Proxmox VE takes a configuration line by line: what a description holds changes nothing about the others."""
    for path, line in ((CONTAINER, "dev0: /dev/nvidia0"), (VM, "hostpci0: 0000:01:00")):
        host.write(path, f"#a{byte}b\n{line}\nhostname: x{byte}y\n".encode("latin-1"))
    facts = read(host)
    assert facts.unreadable == []
    assert "dev0: /dev/nvidia0" in lines(facts)[901].splitlines()
    assert "hostpci0: 0000:01:00" in lines(facts)[103].splitlines()


def test_a_zero_byte_in_a_line_itself_leaves_what_it_gives(host: Host) -> None:
    host.write(CONTAINER, b"dev0: /dev/nvidia0\0,uid=0\nlxc.mount.entry: /dev/dri dev/dri none bind\0\n")
    found = lines(read(host))[901]
    assert "dev0: /dev/nvidia0" in found and "/dev/dri" in found


@pytest.mark.parametrize("path", [VM, CONTAINER])
def test_a_guest_that_goes_while_it_is_read_is_no_trouble(
    whole: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed, or moved to another node."""
    file = whole.root / path.lstrip("/")
    is_file = Path.is_file

    def goes(one: Path) -> bool:
        found = is_file(one)
        if one == file:
            file.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", goes)
    assert read(whole).unreadable == []


def test_a_masked_file_of_modprobe_is_none(whole: Host) -> None:
    (whole.root / "etc/modprobe.d/masked.conf").symlink_to("/dev/null")
    (whole.root / "etc/modprobe.d/folder.conf").mkdir()
    assert read(whole).unreadable == []


def test_a_card_whose_state_nobody_understands_may_be_anywhere(host: Host) -> None:
    host.write(STATE, "half of")
    (told,) = read(host).unreadable
    assert told.startswith("/var/lib/homelab/handover") and "isn't as this version of homelab writes it" in told


# -- what carries the host ---------------------------------------------------------------------------------------
def test_mounts_that_nobody_tells_are_trouble(host: Host) -> None:
    (storage,) = (one for one in read(host).vital if one.kind == "storage")
    assert storage.trouble == "/proc/mounts doesn't say which disk it is on"
