"""What the boot loader starts next by its default entry, and whether its files are there: a kernel without them stops.
The boot on trial is started by a copy of that entry, and where that fails the entry itself is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from remote_scripts.shared import boot, kernel, trial_entry
from remote_scripts.shared.boot_menu import ENTRIES, entries
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

# Of proxmox-boot-tool, for one boot and for all.
_PINS = ("/etc/kernel/next-boot-pin", "/etc/kernel/proxmox-boot-pin")


def of_menu(system: System, menu: str) -> tuple[str, str, bool]:
    """GRUB's menu in a folder, and the entry that it starts by default: as of `trial_entry.default_entry`.

    :raises Failure: it can't be read.
    """
    text = system.files.need_text(f"{menu}/grub.cfg")
    return text, *trial_entry.default_entry(text, system.files.read(f"{menu}/grubenv") or b"")


def of_esp(system: System, folder: str) -> str:
    """The text of the entry that systemd-boot starts by default on an ESP; empty: there is none.

    :raises Failure: it can't be read.
    """
    loader_conf = system.files.need_text(f"{folder}/loader/loader.conf")
    name = trial_entry.default_conf(loader_conf, entries(system, f"{folder}/{ENTRIES}"))
    return system.files.need_text(f"{folder}/{ENTRIES}/{name}") if name else ""


def need_default(system: System) -> None:
    """As `need_files`, as far as it can be told without an ESP."""
    if not boot.uuids(system):
        need_files(system, ["/boot/grub"], [])


def need_files(system: System, menus: Iterable[str], esps: Iterable[str]) -> None:
    """Before the host is to start by it.

    :param menus: the folders of GRUB's menus.
    :param esps: the folders of ESPs with entries of systemd-boot.
    :raises Failure: a default entry names a file that isn't there, or is empty; or no initramfs, which others name.
    """
    for menu in menus:
        text, entry, _ = of_menu(system, menu)
        lacks = trial_entry.lacks_initramfs(text, entry)
        _need_files(system, menu.rpartition("/")[0], entry, "update-grub", lacks_initramfs=lacks)
    for folder in esps:
        _need_files(system, folder, of_esp(system, folder), "proxmox-boot-tool refresh")


def _need_files(system: System, folder: str, entry: str, makes: str, *, lacks_initramfs: bool = False) -> None:
    image, initramfs = trial_entry.files_of(entry)
    missing = [path for path in (image, *initramfs) if path and not _is_there(system, folder, path)]
    if image and lacks_initramfs:
        missing.append(f"initramfs for it (GRUB's menu has no initrd line for {image})")
    if missing:
        raise Failure(
            f"this host to start by its default boot entry (kernel {_release(image)})",
            f"there is no {' and no '.join(missing)}",
            "the kernel would stop, also in the boot that is the way back from one on trial",
            f"make what is missing: `update-initramfs -c -k {_release(image)} && {makes}`; or remove that kernel; then "
            "run `pulumi up` again",
        )


def _is_there(system: System, folder: str, path: str) -> bool:
    """Whether a file that a loader names is there. GRUB counts from the root of a file system: /ROOT/pve-1@/boot/…"""
    parts = PurePosixPath(path).parts
    places = (system.files.at(f"{folder}/{'/'.join(parts[number:])}") for number in range(1, len(parts)))
    return any(place.is_file() and place.stat().st_size for place in places)


def _release(image: str) -> str:
    return image.rpartition("vmlinuz-")[2]


def other_kernel(system: System, loader: str) -> str:
    """The kernel that the next boot starts where another one runs, and that one, in words: empty: it is the same, or
    isn't known without an ESP.

    :param loader: grub or systemd-boot.
    :raises Failure: GRUB's menu can't be read.
    :raises OSError: which kernel runs can't be told.
    """
    if not boot.uuids(system):
        starts = _release(trial_entry.files_of(of_menu(system, "/boot/grub")[1])[0])
    elif not (starts := next(filter(None, map(system.files.line, _PINS)), "")) and loader == "systemd-boot":
        starts = max(boot.initramfs(system), key=lambda release: [*map(int, re.findall(r"\d+", release))], default="")
    runs = kernel.running(system) if starts else ""
    return f"{starts} ({runs} runs now)" if starts != runs else ""
