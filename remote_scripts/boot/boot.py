"""Which boot loader makes the kernel command line of the next boot, and how the initramfs are made.

Proxmox VE boots with GRUB (/etc/default/grub, grub-mkconfig) or systemd-boot (first line of /etc/kernel/cmdline); ESPs
listed in /etc/kernel/proxmox-boot-uuids are proxmox-boot-tool's, with either loader.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def uuids(system: System) -> list[str]:
    """The ESPs that proxmox-boot-tool writes.

    :raises Failure: the list of them can't be read.
    """
    return system.files.need_text(UUIDS).split()


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


def initramfs(system: System) -> dict[str, tuple[int, int, int]]:
    """Each kernel that has one -> which file it is: its number, when it was written, and its size in bytes."""
    files = {}
    for version in kernels(system):
        image = system.files.at(f"/boot/initrd.img-{version}")
        if system.files.at(f"/boot/vmlinuz-{version}").exists() and image.exists():
            status = image.stat()
            files[version] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return files


def not_made(system: System, before: Mapping[str, tuple[int, int, int]]) -> str:
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
    return [version for version, (_, at, size) in initramfs(system).items() if not size or at <= written]


def largest_initramfs(system: System) -> int:
    """In bytes; 0: there is none."""
    return max((size for _, _, size in initramfs(system).values()), default=0)


def free_on(system: System, place: str) -> int | None:
    """The room on a place's file system, in bytes; None: df doesn't say."""
    lines = system.run.ask("df", "-P", "-B1", system.files.name(place)).text.split("\n")
    # The second line is `DEVICE BLOCKS USED FREE ...`.
    words = lines[1].split() if len(lines) > 1 else []
    return int(words[3]) if len(words) > 3 and words[3].isdecimal() else None
