"""systemd-boot, with proxmox-boot-tool: words at the end of the first line of /etc/kernel/cmdline; entries on the ESPs;
/etc/kernel/{postinst,postrm}.d/zzz-homelab, which make the second entry of each new kernel.

The boot on trial is an entry of its own, which is chosen by a variable that the loader takes away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from remote_scripts import installed
from remote_scripts.boot import boot, trial_entry
from remote_scripts.boot.boot import KERNEL_CMDLINE, NAMES
from remote_scripts.boot.loaders.loader import (
    Loader,
    Places,
    beside,
    need_files,
    not_chosen,
    not_made,
    put_or_drop,
)
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System
from remote_scripts.tools.words import missing_words, without_words

_RECORDS, _ENTRIES = f"{HOME}/cmdline", "loader/entries"
# Proxmox VE's; and the second one of each, which the default pattern proxmox-* doesn't match.
_THEIRS, _SECOND = "proxmox-", "homelab-without-gpu-"
_OPTIONS = re.compile(r"^options[ \t].*$", re.MULTILINE)
_ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ENTRY = f"{trial_entry.ID}.conf"
# Where no variable can be written: systemd-boot's default pattern takes it, and counts it down (Boot Loader
# Specification, boot counting).
_COUNTED = f"proxmox-999-{trial_entry.ID}+1.conf"


class SystemdBoot(Loader):
    """systemd-boot."""

    name, kind, file = "systemd-boot", "uefi", KERNEL_CMDLINE

    def is_configurable(self, system: System) -> bool:
        return system.files.is_file(KERNEL_CMDLINE)

    def own(self, system: System, layer: str) -> str:
        return system.files.need_text(f"{_RECORDS}/{layer}")

    def configured(self, system: System, words: Mapping[str, str] | None = None) -> str:
        # Only the first line counts (proxmox-boot-tool's get_first_line), with or without a newline at its end.
        line = system.files.need_text(KERNEL_CMDLINE).partition("\n")[0]
        if words is not None:
            for name in NAMES:
                line = without_words(line, self.own(system, name).split())
            line = " ".join([line, *filter(None, words.values())])
        return line

    def write(self, system: System, layer: str, words: str) -> None:
        _edit_line(system, layer, words)
        hook = f"{installed.TEXTS['systemd_boot_entry']}\n" if layer == "vfio" and words else ""
        for path in (boot.HOOK, boot.REMOVAL_HOOK):
            put_or_drop(system, layer, path, 0o755, hook)

    def make(self, system: System, folder: str, stale: list[str]) -> list[str]:
        """The command line in each of Proxmox VE's entries, as proxmox-boot-tool makes it of its file; and the second
        entry of each, where there is the hook for them. Only what gets another text is made.
        """
        files, place = system.files, f"{folder}/{_ENTRIES}"
        line = self.configured(system)
        words = [word for name in NAMES for word in self.own(system, name).split()]
        texts = {}
        for name in _entries(system, place):
            text, found = _OPTIONS.subn(lambda _: f"options  {line}", files.need_text(f"{place}/{name}"), count=1)
            if not found:
                raise not_made(f"{place}/{name} has no options: it isn't whole")
            texts[f"{place}/{name}"] = text
            if files.exists(boot.HOOK):
                second = trial_entry.copied(text, r"\g<0> without GPU passthrough", words, "")
                texts[f"{place}/{name.replace(_THEIRS, _SECOND, 1)}"] = second
        seconds = (f"{place}/{name}" for name in files.names(place) if name.startswith(_SECOND))
        stale += [path for path in seconds if path not in texts]
        made = [path for path, text in texts.items() if files.need_text(path) != text]
        for path in made:
            files.write(beside(path), texts[path].encode("utf-8", "surrogateescape"), 0o644)
        return made

    def kernel(self, system: System) -> str:
        return max(boot.initramfs(system), key=lambda version: [*map(int, re.findall(r"\d+", version))], default="")

    def need_default(self, system: System, places: Places) -> None:
        for folder in places.esps.values():
            need_files(system, folder, _default(system, folder), "proxmox-boot-tool refresh")

    def choose(self, system: System, without: list[str], words: str, places: Places) -> None:
        """The loader's variable, read back after it is set; else an entry that the loader counts down."""
        refusal, written = _set_one_shot(system), False
        is_set = trial_entry.efi_text(system.files.read(_ONE_SHOT) or b"") == _ENTRY
        for folder in places.esps.values():
            loader_conf, entry = system.files.need_text(f"{folder}/loader/loader.conf"), _default(system, folder)
            text = trial_entry.copied(entry, f"title    {trial_entry.TITLE}", without, words)
            is_counted = not is_set and trial_entry.default_conf(loader_conf, [_COUNTED]) == _COUNTED
            if text and (is_set or is_counted):
                path = f"{folder}/{_ENTRIES}/{_ENTRY if is_set else _COUNTED}"
                system.files.write(path, text.encode("utf-8", "surrogateescape"), 0o644)
                written = True
        if not written:
            raise not_chosen(
                "no ESP has a whole entry of Proxmox VE" if is_set else f"no EFI variable is kept{refusal}"
            )

    def unchoose(self, system: System) -> None:
        if trial_entry.ID in trial_entry.efi_text(system.files.read(_ONE_SHOT) or b""):
            _unlock_one_shot(system)
            system.files.remove(_ONE_SHOT)

    def take_back(self, system: System, places: Places) -> None:
        files = system.files
        for place in (f"{folder}/{_ENTRIES}" for folder in places.esps.values()):
            files.remove(*(f"{place}/{name}" for name in files.names(place) if trial_entry.ID in name))


def _entries(system: System, place: str) -> list[str]:
    """The names of Proxmox VE's entries in a folder of an ESP."""
    names = system.files.names(place)
    return [name for name in names if name.startswith(_THEIRS) and name.endswith(".conf") and "homelab" not in name]


def _default(system: System, folder: str) -> str:
    """The text of the entry that is started by default on an ESP; empty: there is none.

    :raises Failure: it can't be read.
    """
    loader_conf = system.files.need_text(f"{folder}/loader/loader.conf")
    name = trial_entry.default_conf(loader_conf, _entries(system, f"{folder}/{_ENTRIES}"))
    return system.files.need_text(f"{folder}/{_ENTRIES}/{name}") if name else ""


def _set_one_shot(system: System) -> str:
    """As `bootctl set-oneshot`, which not every host has. Why it was refused."""
    files, value = system.files, b"\7\0\0\0" + f"{_ENTRY}\0".encode("utf-16-le")
    _unlock_one_shot(system)
    try:
        files.set_attribute(_ONE_SHOT, value, makes=True)
    except OSError as error:
        return f": {error.strerror}"
    return ""


def _unlock_one_shot(system: System) -> None:
    """The kernel keeps variables from being changed by mistake (Linux, Documentation/filesystems/efivarfs.rst)."""
    if system.files.exists(_ONE_SHOT):
        system.run.ask("chattr", "-i", system.files.name(_ONE_SHOT))


def _edit_line(system: System, name: str, words: str) -> None:
    """Puts the words at the end of the first line of /etc/kernel/cmdline, in place of those that this name has there.
    Words are recorded before they are in it, and until they are out of it: taking them away leaves every other byte.
    """
    files, record, path = system.files, f"{_RECORDS}/{name}", system.files.real(KERNEL_CMDLINE)
    old, new = files.need_text(record).split(), words.split()
    first, newline, rest = files.need_text(KERNEL_CMDLINE).partition("\n")
    if old == new and not missing_words(words, first):
        return
    line = " ".join([_without_last(first, old), *new])
    if files.planning:
        files.plan_file("changed", path)  # a plan has the command line before and after by itself
        return
    files.about_to_change()
    files.remember(record, path)
    _record(system, record, [*old, *new])
    if files.exists(path):
        files.rewrite(path, f"{line}{newline}{rest}".encode("utf-8", "surrogateescape"))
    files.at_finish.append(lambda: _record(system, record, new))
    files.changed = True
    system.log.say(f"wrote {path}")


def _without_last(line: str, words: Iterable[str]) -> str:
    """Another one of the same word is its owner's."""
    for word in words:
        before, found, after = f" {line} ".rpartition(f" {word} ")
        line = f"{before} {after}".removeprefix(" ").removesuffix(" ") if found else line
    return line


def _record(system: System, record: str, words: Iterable[str]) -> None:
    if text := " ".join(dict.fromkeys(words)):
        system.files.note(record, f"{text}\n".encode("utf-8", "surrogateescape"))
    else:
        system.files.remove(record)
