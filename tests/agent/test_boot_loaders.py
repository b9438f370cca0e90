"""remote_scripts/boot/loaders/found.py: which boot loader makes the kernel command line of the next boot."""

from __future__ import annotations

import pytest
from inline_snapshot import snapshot

from remote_scripts.boot.loaders.found import GRUB, LOADERS, SYSTEMD_BOOT, find, need
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from tests.agent.boot_kit import LOADER_INFO, MENU
from tests.agent.kit import Host
from tests.conftest import shared


def efi(host: Host, loader_info: str | None) -> None:
    host.write("/sys/firmware/efi/fw_platform_size", "64\n")
    if loader_info is not None:
        host.write(LOADER_INFO, b"\x06\0\0\0" + loader_info.encode("utf-16-le") + b"\0\0")


def esps(host: Host, status: str) -> None:
    host.write("/etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    host.programs["proxmox-boot-tool"] = lambda _arguments, _stdin: Done(0, status.encode())


def loader(host: Host) -> object:
    return find(host.system()).loader


def test_legacy_bios_means_grub(host: Host) -> None:
    assert loader(host) is GRUB


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        (("pve-zfs-grub-shim", "proxmox_boot_tool_status.txt"), "grub"),
        (("pve-boot-status-variants", "uefi_grub.txt"), "grub"),
        (("pve-boot-status-variants", "uefi_systemd_boot_stale_esp.txt"), "systemd-boot"),
        (("pve-boot-status-variants", "legacy_bios_grub_stale_esp.txt"), "grub"),
    ],
)
def test_real_hosts_boot_loaders_are_told_from_their_esps(host: Host, capture: tuple[str, str], expected: str) -> None:
    efi(host, None)
    esps(host, shared("real_hosts", *capture).read_text())
    assert loader(host) is LOADERS[expected]


def test_the_loaders_own_word_decides_between_two_configured_ones(host: Host) -> None:
    both = "AAAA-0001 is configured with: uefi (versions: 6.8.12-1-pve), grub (versions: 6.8.12-1-pve)\n"
    esps(host, both)
    efi(host, "systemd-boot 257.5-2")
    assert loader(host) is SYSTEMD_BOOT
    efi(host, "GRUB 2.12")
    assert loader(host) is GRUB


def test_an_esp_that_another_program_has_mounted_at_that_moment_is_asked_again(host: Host) -> None:
    esps(host, "AAAA-0001 is configured with: grub (versions: 6.8.12-1-pve)\n")
    answer = host.programs["proxmox-boot-tool"]
    answers = [Done(32, b"", b"mount: already mounted or mount point busy\n")]
    host.programs["proxmox-boot-tool"] = lambda *asked: answers.pop() if answers else answer(*asked)
    assert loader(host) is GRUB


@pytest.mark.parametrize("info", [None, "", "GRUB 2.12", "systemd-boot 257"])
def test_a_host_that_starts_from_none_of_the_esps_that_would_be_written_stops_before_anything_changes(
    host: Host, info: str | None
) -> None:
    """Its words would go nowhere, and it would be restarted for nothing."""
    uuid = "/dev/disk/by-uuid/AAAA-0001"
    esps(host, f"WARN: {uuid} does not exist - clean '/etc/kernel/proxmox-boot-uuids'! - skipping\n")
    host.write(MENU, "linux /boot/vmlinuz-6.8.12-1-pve quiet\n")  # an earlier loader's
    if info is not None:  # else legacy BIOS
        efi(host, info or None)
    before = host.tree()
    with pytest.raises(Failure, match="which boot loader"):
        need(host.system())
    assert host.tree() == before


@pytest.mark.parametrize("info", [None, "Linux EFI stub 7.2.0-1-pve"])
def test_a_menu_of_grubs_counts_where_no_esp_is_listed(host: Host, info: str | None) -> None:
    efi(host, info)
    host.write(MENU, "linux /boot/vmlinuz-6.8.12-1-pve\n")
    assert loader(host) is GRUB


@pytest.mark.parametrize("info", [None, "systemd-boot 257"])
def test_a_loader_that_cannot_be_told_stops_before_anything_changes(host: Host, info: str | None) -> None:
    efi(host, info)
    before = host.tree()
    with pytest.raises(Failure) as failed:
        need(host.system())
    assert (failed.value.wanted, failed.value.next) == snapshot(
        (
            "to know which boot loader makes the kernel command line: GRUB, or systemd-boot with proxmox-boot-tool",
            "see `proxmox-boot-tool status`; remove from /etc/kernel/proxmox-boot-uuids the UUID of each ESP that the host no longer starts from, and run `pulumi up` again",
        )
    )
    assert host.tree() == before
