"""Which boot loader makes the kernel command line of the next boot, and how the initramfs are made.

Proxmox VE boots with GRUB (/etc/default/grub, grub-mkconfig) or systemd-boot (first line of /etc/kernel/cmdline); ESPs
listed in /etc/kernel/proxmox-boot-uuids are proxmox-boot-tool's, with either loader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from remote_scripts.shared import trial_entry
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

#: Whose words there are on the kernel command line.
NAMES = ("iommu", "vfio")
KERNEL_CMDLINE = "/etc/kernel/cmdline"
GRUB_MENU = "/boot/grub/grub.cfg"
#: Beside each other: who gives the functions to vfio-pci in an initramfs, and what puts it there.
INIT_TOP = "/etc/initramfs-tools/scripts/init-top/homelab-vfio"
INITRAMFS_HOOK = "/etc/initramfs-tools/hooks/homelab-vfio"
MODULES = "/etc/modules-load.d/homelab-vfio.conf"
#: The second boot entry's.
GRUB_ENTRY = "/etc/grub.d/12_homelab"
HOOK, REMOVAL_HOOK = "/etc/kernel/postinst.d/zzz-homelab", "/etc/kernel/postrm.d/zzz-homelab"
#: The ESPs that proxmox-boot-tool writes.
UUIDS = "/etc/kernel/proxmox-boot-uuids"
_LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ESPS = re.compile(r"^[^ ]* is configured with: (.*)", re.MULTILINE)


@dataclass(frozen=True)
class Loader:
    """`name`: grub or systemd-boot; empty where that can't be told, and `clues` says what was found then. `status`:
    what proxmox-boot-tool says of the ESPs.
    """

    name: str
    clues: str = ""
    status: str = ""


def drop_in(layer: str) -> str:
    """The file by which a layer gives GRUB its words."""
    return f"/etc/default/grub.d/zz-homelab-{layer}.cfg"


def record(layer: str) -> str:
    """The file that has a layer's words on the first line of /etc/kernel/cmdline."""
    return f"{HOME}/cmdline/{layer}"


def uuids(system: System) -> list[str]:
    """The ESPs that proxmox-boot-tool writes.

    :raises Failure: the list of them can't be read.
    """
    return system.files.need_text(UUIDS).split()


def find_loader(system: System) -> Loader:
    """By what it has; a wrong guess starts no trial, and so changes nothing.

    :raises Failure: as `uuids`.
    """
    files = system.files
    esps, status, kinds = uuids(system), "", []
    if esps:
        done = system.run.ask("proxmox-boot-tool", "status")
        status = (done.output + done.error).decode("utf-8", "surrogateescape").rstrip("\n")
        written = "\n".join(_ESPS.findall(status))
        kinds = [kind for kind in ("grub", "uefi") if f"{kind} (" in written]
    tool = f"proxmox-boot-tool '{''.join(kinds) or 'no ESP'}'"
    is_efi = files.at("/sys/firmware/efi").is_dir()
    # The boot loader says its own name in an EFI variable: systemd-boot always, GRUB from 2.12 on.
    name = trial_entry.efi_text(files.read(_LOADER_INFO, 4096) or b"")
    loader = "grub" if (not esps and (not is_efi or files.exists(GRUB_MENU))) or "grub" in kinds else ""
    # Of menus for both the loader's name tells which.
    if is_efi and "uefi" in kinds and (kinds == ["uefi"] or name.startswith("systemd-boot")):
        loader = "systemd-boot"
    clues = f"LoaderInfo '{name or 'not set'}', {tool}" if is_efi else f"legacy BIOS, {tool}"
    return Loader(loader, clues, status)


def is_configurable(system: System, loader: str) -> bool:
    """Whether the kernel command line of the next boot can be told, and changed."""
    return loader == "grub" or (loader == "systemd-boot" and system.files.at(KERNEL_CMDLINE).is_file())


def need_loader(system: System) -> str:
    """The loader's name.

    :raises Failure: it isn't known, or has no file to be configured by.
    """
    loader = find_loader(system)
    if not loader.name:
        raise Failure(
            "to know which boot loader makes the kernel command line: GRUB, or systemd-boot with proxmox-boot-tool",
            loader.clues,
            "the wrong one would be configured without effect",
            f"see `proxmox-boot-tool status`; remove from {UUIDS} the UUID of each ESP that the host no longer starts "
            "from, and run `pulumi up` again",
        )
    if not is_configurable(system, loader.name):
        raise Failure(
            f"{KERNEL_CMDLINE}, from which systemd-boot's entries are made",
            "no such file",
            "without it proxmox-boot-tool copies the running command line",
            f"write the command line you want into {KERNEL_CMDLINE} (one line, with root=), then "
            "`proxmox-boot-tool refresh`",
        )
    return loader.name


def kernels(system: System) -> list[str]:
    """The versions that are installed, a link that leads nowhere included."""
    return [name.removeprefix("vmlinuz-") for name in system.files.names("/boot") if name.startswith("vmlinuz-")]


def make_initramfs(system: System) -> str | None:
    """Anew, for every kernel that has one; the note that they are to be made goes. A kernel without one has failed to
    be installed, and doesn't become what starts next by this program.

    :returns: None, or the last words of what has failed: then they are still to be made.
    """
    system.log.say(f"making the initramfs of {len(kernels(system))} kernel(s)")
    before = initramfs(system)
    done = system.run.do("update-initramfs", "-u", "-k", "all", doing="update-initramfs")
    if done.status != 0:
        return done.text
    if left := not_made(system, before):
        return f"{left}\n{done.text}"
    system.files.done_with("initramfs")
    return None


def initramfs(system: System) -> dict[str, tuple[int, int]]:
    """Each kernel that has one -> which file it is: its number, and when it was written."""
    files = {}
    for version in kernels(system):
        image = system.files.at(f"/boot/initrd.img-{version}")
        if system.files.at(f"/boot/vmlinuz-{version}").exists() and image.exists():
            files[version] = (image.stat().st_ino, image.stat().st_mtime_ns)
    return files


def not_made(system: System, before: Mapping[str, tuple[int, int]]) -> str:
    """In words, those of before that are there still; empty: none. update-initramfs ends well where /boot is mounted
    read-only, and where its configuration says `update_initramfs=no`, without making any.
    """
    after = initramfs(system)
    left = [f"/boot/initrd.img-{version}" for version, file in before.items() if after.get(version) == file]
    return f"update-initramfs made no new {' '.join(left)}, and called that a success" if left else ""


def stale_kernels(system: System) -> list[str]:
    """Kernels whose initramfs is older than our script for it, or empty, as a power cut can leave it."""
    script = system.files.at(INIT_TOP)
    if not script.exists():
        return []
    written = script.stat().st_mtime_ns
    found = {version: system.files.at(f"/boot/initrd.img-{version}").stat() for version in initramfs(system)}
    return [version for version, image in found.items() if not image.st_size or image.st_mtime_ns <= written]


def largest_initramfs(system: System) -> int:
    """In bytes; 0: there is none."""
    images = (system.files.at(f"/boot/{name}") for name in system.files.names("/boot"))
    return max(
        (image.stat().st_size for image in images if image.name.startswith("initrd.img-") and image.exists()), default=0
    )


def free_on(system: System, place: str) -> int | None:
    """The room on a place's file system, in bytes; None: df doesn't say."""
    lines = system.run.ask("df", "-P", "-B1", system.files.name(place)).text.split("\n")
    # The second line is `DEVICE BLOCKS USED FREE ...`.
    words = lines[1].split() if len(lines) > 1 else []
    return int(words[3]) if len(words) > 3 and words[3].isdecimal() else None
