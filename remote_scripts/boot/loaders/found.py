"""Which boot loader makes the kernel command line of the next boot, and what is done by whichever it is.

Proxmox VE boots with GRUB or systemd-boot; the ESPs listed in /etc/kernel/proxmox-boot-uuids are proxmox-boot-tool's,
with either loader. Its `refresh` isn't called: it copies kernels over those that boot, and writes into menus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from remote_scripts.boot import boot, esp, trial_entry
from remote_scripts.boot.loaders.grub import Grub
from remote_scripts.boot.loaders.loader import Loader, Places, beside, not_made
from remote_scripts.boot.loaders.systemd_boot import SystemdBoot
from remote_scripts.tools import kernel
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

GRUB, SYSTEMD_BOOT = Grub(), SystemdBoot()
LOADERS: dict[str, Loader] = {loader.name: loader for loader in (GRUB, SYSTEMD_BOOT)}
_LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ESPS = re.compile(r"^[^ ]* is configured with: (.*)", re.MULTILINE)
# It mounts each ESP, which another program may have at that moment: so long it is asked again.
_STATUS_SECONDS = 2.0
# Of proxmox-boot-tool, for one boot and for all.
_PINS = ("/etc/kernel/next-boot-pin", "/etc/kernel/proxmox-boot-pin")


@dataclass(frozen=True)
class Found:
    """`loader`: None where that can't be told, and `clues` says what was found then. `status`: what proxmox-boot-tool
    says of the ESPs.
    """

    loader: Loader | None
    clues: str = ""
    status: str = ""


def find(system: System) -> Found:
    """By what it has; a wrong guess starts no trial, and so changes nothing.

    :raises Failure: as `boot.uuids`.
    """
    files = system.files
    esps, status, kinds = boot.uuids(system), "", []
    if esps:
        for _ in system.work.tries(_STATUS_SECONDS, "waiting for: proxmox-boot-tool status"):
            done = system.run.ask("proxmox-boot-tool", "status")
            if done.status == 0:
                break
        status = (done.output + done.error).decode("utf-8", "surrogateescape").rstrip("\n")
        written = "\n".join(_ESPS.findall(status))
        kinds = [loader.kind for loader in LOADERS.values() if f"{loader.kind} (" in written]
    tool = f"proxmox-boot-tool '{''.join(kinds) or 'no ESP'}'"
    is_efi = files.is_folder("/sys/firmware/efi")
    # The boot loader says its own name in an EFI variable: systemd-boot always, GRUB from 2.12 on.
    name = trial_entry.efi_text(files.read(_LOADER_INFO, 4096) or b"")
    is_grub = (not esps and (not is_efi or files.exists(boot.GRUB_MENU))) or GRUB.kind in kinds
    loader: Loader | None = GRUB if is_grub else None
    # Of menus for both the loader's name tells which.
    if is_efi and SYSTEMD_BOOT.kind in kinds and (not is_grub or name.startswith(SYSTEMD_BOOT.name)):
        loader = SYSTEMD_BOOT
    clues = f"LoaderInfo '{name or 'not set'}', {tool}" if is_efi else f"legacy BIOS, {tool}"
    return Found(loader, clues, status)


def need(system: System) -> Loader:
    """The loader.

    :raises Failure: it isn't known, or has no file to be configured by.
    """
    found = find(system)
    if not found.loader:
        raise Failure(
            "to know which boot loader makes the kernel command line: GRUB, or systemd-boot with proxmox-boot-tool",
            found.clues,
            "the wrong one would be configured without effect",
            f"see `proxmox-boot-tool status`; remove from {boot.UUIDS} the UUID of each ESP that the host no longer "
            "starts from, and run `pulumi up` again",
        )
    if not found.loader.is_configurable(system):
        raise Failure(
            f"{boot.KERNEL_CMDLINE}, from which systemd-boot's entries are made",
            "no such file",
            "without it proxmox-boot-tool copies the running command line",
            f"write the command line you want into {boot.KERNEL_CMDLINE} (one line, with root=), then "
            "`proxmox-boot-tool refresh`",
        )
    return found.loader


def own(system: System) -> dict[str, str]:
    """Each layer -> what it has on the command line of the next boot, as it is recorded, for whichever loader.

    :raises Failure: it can't be read.
    """
    words = {name: " ".join(loader.own(system, name) for loader in LOADERS.values()) for name in boot.NAMES}
    return {name: " ".join(dict.fromkeys(of_layer.split())) for name, of_layer in words.items()}


def write(system: System, name: str, words: str, chosen: Loader) -> None:
    """A layer's words, none included. What is there for the other loader, which the host had before, goes."""
    for loader in LOADERS.values():
        loader.write(system, name, words if loader is chosen else "")


@contextmanager
def mounted(system: System, places: str) -> Iterator[Places]:
    """What loaders read, and where the choice of a trial lies.

    :param places: as they are noted.
    """
    listed, choice = boot.uuids(system), tuple(places.split())
    with esp.mounted(system, [*listed, *(place for place in choice if place != trial_entry.WRITABLE_MENU)]) as folders:
        menus = (f"{folders[uuid]}/grub" for uuid in listed if uuid in folders)
        yield Places(folders, tuple(filter(system.files.is_folder, menus)) if listed else ("/boot/grub",), choice)


def need_default(system: System) -> None:
    """As of `Loader.need_default`, as far as it can be told without an ESP."""
    if not boot.uuids(system):
        GRUB.need_default(system, Places({}, ("/boot/grub",)))


def make_menus(system: System, loader: Loader, *, is_step: bool = True) -> None:
    """Makes what the next boot uses from what is configured. All new files are made beside the old ones first; so at
    any moment each file is whole, either the old one or the new one.

    :param is_step: whether it is what must follow a layer's change.
    :raises Failure: it could not be made: then nothing has changed.
    """
    files, listed = system.files, boot.uuids(system)
    made: list[str] = []
    stale: list[str] = []
    with esp.mounted(system, listed) as folders:
        for folder in folders.values() if listed else [""]:
            try:
                made += loader.make(system, folder, stale)
            except OSError as error:
                raise not_made(f"{folder or '/boot'}: {error}") from error
        if is_step:
            files.begin_step("boot")
        for path in made:
            files.move(beside(path), path)
        files.remove(*stale)
    if is_step:
        files.done_with("boot")


def other_kernel(system: System, loader: Loader) -> str:
    """The kernel that the next boot starts where another one runs, and that one, in words: empty: it is the same, or
    isn't known without an ESP.

    :raises Failure: GRUB's menu can't be read.
    :raises OSError: which kernel runs can't be told.
    """
    pins = map(system.files.line, _PINS if boot.uuids(system) else ())
    starts = next(filter(None, pins), "") or loader.kernel(system)
    runs = kernel.running(system) if starts else ""
    return f"{starts} ({runs} runs now)" if starts != runs else ""
