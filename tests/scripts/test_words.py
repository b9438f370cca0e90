"""remote_scripts/lib/words.sh and boot.sh: the kernel command line, and the boot loader that makes it."""

from __future__ import annotations

import pytest

from tests.conftest import shared
from tests.scripts.conftest import Folder, quoted

LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        ("quiet amd_iommu=on iommu=pt", "amd_iommu=on iommu=pt", "quiet"),
        ("iommu=pt quiet iommu=pt", "iommu=pt", "quiet"),
        ("iommu=ptx quiet", "iommu=pt", "iommu=ptx quiet"),
        ('dyndbg="file a.c  +p" quiet iommu=pt', "iommu=pt", 'dyndbg="file a.c  +p" quiet'),
        ("", "x", ""),
    ],
)
def test_words_are_taken_out_and_nothing_else(folder: Folder, text: str, words: str, left: str) -> None:
    assert folder.bash(f"without_words {quoted(text)} {words}").stdout == left


def test_grub_words_are_those_that_grub_mkconfig_would_see(folder: Folder) -> None:
    folder.write(
        "/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="root=ZFS=x"\necho noise\n'
    )
    folder.write("/etc/default/grub.d/local.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT nosmt"\n')
    folder.write(
        "/etc/default/grub.d/zz-homelab-iommu.cfg",
        'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT iommu=pt"\n',
    )
    said = 'printf %s "$CONFIGURED"'
    assert folder.bash(f"LOADER=grub; find_configured; {said}").stdout == "root=ZFS=x quiet nosmt iommu=pt"
    assert folder.bash(f"LOADER=grub; find_configured others; {said}").stdout == "root=ZFS=x quiet nosmt"


def efi(folder: Folder, loader_info: str | None) -> None:
    folder.write("/sys/firmware/efi/fw_platform_size", "64\n")
    if loader_info is not None:
        path = folder.write(LOADER_INFO, "")
        path.write_bytes(b"\x06\0\0\0" + loader_info.encode("utf-16-le") + b"\0\0")


def esps(folder: Folder, status: str) -> None:
    folder.write("/etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    (folder.root / "status").write_text(status)
    folder.command("proxmox-boot-tool", 'cat "$ROOT/status"')


def loader(folder: Folder) -> str:
    return folder.bash('find_boot_loader; printf %s "$LOADER"').stdout


def test_legacy_bios_means_grub(folder: Folder) -> None:
    assert loader(folder) == "grub"


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        (("pve-zfs-grub-shim", "proxmox_boot_tool_status.txt"), "grub"),
        (("pve-boot-status-variants", "uefi_grub.txt"), "grub"),
        (("pve-boot-status-variants", "uefi_systemd_boot_stale_esp.txt"), "systemd-boot"),
        (("pve-boot-status-variants", "legacy_bios_grub_stale_esp.txt"), "grub"),
    ],
)
def test_real_hosts_boot_loaders_are_told_from_their_esps(
    folder: Folder, capture: tuple[str, str], expected: str
) -> None:
    efi(folder, None)
    esps(folder, shared("real_hosts", *capture).read_text())
    assert loader(folder) == expected


def test_the_loaders_own_word_decides_between_two_configured_ones(folder: Folder) -> None:
    both = "AAAA-0001 is configured with: uefi (versions: 6.8.12-1-pve), grub (versions: 6.8.12-1-pve)\n"
    esps(folder, both)
    efi(folder, "systemd-boot 257.5-2")
    assert loader(folder) == "systemd-boot"
    efi(folder, "GRUB 2.12")
    assert loader(folder) == "grub"


@pytest.mark.parametrize("info", [None, "systemd-boot 257"])
def test_a_loader_that_cannot_be_told_stops_before_anything_changes(folder: Folder, info: str | None) -> None:
    efi(folder, info)
    before = folder.tree()
    done = folder.bash("need_boot_loader")
    assert done.returncode == 1
    assert done.stdout.startswith("wanted: to know which boot loader makes the kernel command line")
    assert folder.tree() == before
