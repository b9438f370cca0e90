"""What a boot loader can, and what is asked of the entry that it starts next by default: a kernel without its files
stops. The boot on trial is started by a copy of that entry, and where that fails the entry itself is the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from remote_scripts.boot import trial_entry
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


@dataclass(frozen=True)
class Places:
    """What loaders read, while it is mounted. `esps`: UUID -> folder; `menus`: the folders of GRUB's menus; `choice`:
    where GRUB's choice of a trial lies.
    """

    esps: Mapping[str, str]
    menus: tuple[str, ...]
    choice: tuple[str, ...] = ()


class Loader(Protocol):
    """A boot loader. `name`: as a host is told by it; `kind`: as proxmox-boot-tool calls it; `file`: where its owner
    gives the kernel words.
    """

    name: str
    kind: str
    file: str

    def is_configurable(self, system: System) -> bool:
        """Whether the kernel command line of the next boot can be told, and changed."""
        return True

    def own(self, system: System, layer: str) -> str:
        """The words that a layer has there, as they are recorded.

        :raises Failure: they can't be read.
        """

    def configured(self, system: System, words: Mapping[str, str] | None = None) -> str:
        """What the kernel gets at the next boot.

        :param words: what it would get with these of ours, by layers, in the place of those that it has.
        :raises Failure: it can't be read.
        """

    def write(self, system: System, layer: str, words: str) -> None:
        """A layer's words, none included, and with vfio's the second boot entry."""

    def make(self, system: System, folder: str, stale: list[str]) -> list[str]:
        """What the next boot uses, made of what is configured, beside what is there (`beside`).

        :param folder: of an ESP; empty: /boot.
        :param stale: gets the files that go.
        :returns: the files that are made.
        :raises Failure: it could not be made.
        """

    def kernel(self, system: System) -> str:
        """The version that it starts by default; empty: that isn't known without an ESP.

        :raises Failure: what says it can't be read.
        """

    def need_default(self, system: System, places: Places) -> None:
        """:raises Failure: a default entry names a file that isn't there, or is empty; or no initramfs, which others
        name.
        """

    def places(self, system: System) -> list[str]:
        """Where the choice of a trial lies, where it isn't the firmware's.

        :raises Failure: nowhere could it be taken back.
        """
        return []

    def choose(self, system: System, without: list[str], words: str, places: Places) -> None:
        """The next boot is on trial: first its entry, then the choice.

        :param without: homelab's words that the default entry has.
        :param words: those that the trial gets.
        :raises Failure: it can't be.
        """

    def unchoose(self, system: System) -> None:
        """The choice goes, where that lies on no ESP."""

    def take_back(self, system: System, places: Places) -> None:
        """No boot starts the trial any more: what is left of the choice goes, then the entry."""


def beside(path: str) -> str:
    """What a file will be, whole."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.homelab-tmp"


def put_or_drop(system: System, layer: str, path: str, mode: int, text: str) -> None:
    """A file of a layer's; empty: it has none."""
    if text:
        system.files.put(layer, path, mode, text.encode("utf-8", "surrogateescape"))
    else:
        system.files.drop(layer, path)


def not_made(found: str) -> Failure:
    """The boot configuration could not be made."""
    return Failure(
        "the boot configuration generated again",
        found,
        "the next boot would not have what was configured; this step's files are as they were before (earlier steps "
        "stay, in the stack too)",
        "correct what the message names (often: a full /boot or ESP), then run `pulumi up` again",
    )


def not_chosen(found: str) -> Failure:
    """The next boot can't be on trial."""
    return Failure(
        "the next boot of this host tried once, by an entry of its own",
        found,
        "it would become the default without having been tried; nothing of it was changed",
        "see `proxmox-boot-tool status`, /etc/grub.d and /etc/default/grub, mend what is said there, then run "
        "`pulumi up` again",
    )


def need_files(system: System, folder: str, entry: str, makes: str, *, lacks_initramfs: bool = False) -> None:
    """:param folder: in which an entry's files are.
    :param makes: the command that makes the entry.
    :raises Failure: a file that it names isn't there, or is empty.
    """
    image, initramfs = trial_entry.files_of(entry)
    missing = [path for path in (image, *initramfs) if path and not _is_there(system, folder, path)]
    if image and lacks_initramfs:
        missing.append(f"initramfs for it (GRUB's menu has no initrd line for {image})")
    if missing:
        raise Failure(
            f"this host to start by its default boot entry (kernel {release(image)})",
            f"there is no {' and no '.join(missing)}",
            "the kernel would stop, also in the boot that is the way back from one on trial",
            f"make what is missing: `update-initramfs -c -k {release(image)} && {makes}`; or remove that kernel; then "
            "run `pulumi up` again",
        )


def _is_there(system: System, folder: str, path: str) -> bool:
    """Whether a file that a loader names is there. GRUB counts from the root of a file system: /ROOT/pve-1@/boot/…"""
    parts = PurePosixPath(path).parts
    places = (system.files.at(f"{folder}/{'/'.join(parts[number:])}") for number in range(1, len(parts)))
    return any(place.is_file() and place.stat().st_size for place in places)


def release(image: str) -> str:
    """The version of a kernel's file."""
    return image.rpartition("vmlinuz-")[2]
