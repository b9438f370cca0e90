"""GRUB: words in /etc/default/grub.d/zz-homelab-LAYER.cfg; its menu, also on ESPs; /etc/grub.d/12_homelab, which makes
the second entry.

The boot on trial is a section of custom.cfg, and its choice an environment block, on the ESPs or beside the menu.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from remote_scripts import installed
from remote_scripts.boot import boot, trial_entry
from remote_scripts.boot.boot import GRUB_MENU
from remote_scripts.boot.loaders import loader as loaders
from remote_scripts.boot.loaders.loader import Loader, Places, beside, not_chosen, not_made
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_FILE, _DROP_INS, _MENUS = "/etc/default/grub", "/etc/default/grub.d", "/boot/grub"
_OURS = "zz-homelab-"
_DROP_IN = """\
# Written by homelab, which takes it away again (pulumi destroy).
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"
export HOMELAB_WORDS="${{HOMELAB_WORDS:-}} {words}"
"""
_EXPORTED = re.compile(r'^export HOMELAB_WORDS="\$\{HOMELAB_WORDS:-\} (.*)"$', re.MULTILINE)
_KERNEL_LINE = re.compile(r"^[ \t\r\v\f]*linux(?:efi)?[ \t\r\v\f]+(?:[^ \t\r\v\f\n]+[ \t\r\v\f]*(.*))?", re.MULTILINE)
# Proxmox VE's own file systems that GRUB writes, as grub-probe calls them; the others are ZFS and btrfs.
_WRITTEN = ("ext2", "xfs")
# grub-mkconfig sources these files: only a shell knows what they say. Whatever they print is dropped. Words to come
# ($0) are where their file will be. The newline says that none of them has ended the shell.
_ASK_SHELL = (
    'for file in "$@"; do case $file in '
    f'*/{_OURS}) GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT${{0:+ $0}}" ;; '
    '*) [ ! -e "$file" ] || . "$file" >/dev/null 2>&1 ;; esac; done; '
    "printf '%s\\n' \"$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT\""
)


class Grub(Loader):
    """GRUB."""

    name, kind, file = "grub", "grub", _FILE

    def own(self, system: System, layer: str) -> str:
        exported = _EXPORTED.search(system.files.need_text(f"{_DROP_INS}/{_OURS}{layer}.cfg"))
        return exported[1] if exported else ""

    def configured(self, system: System, words: Mapping[str, str] | None = None) -> str:
        """GRUB reads the files in the order of their names."""
        names = [
            name for name in system.files.need_names(_DROP_INS) if name.endswith(".cfg") and not name.startswith(".")
        ]
        if words is not None:
            names = sorted([*(name for name in names if not name.startswith(_OURS)), _OURS])
        files = [str(system.files.at(place)) for place in (_FILE, *(f"{_DROP_INS}/{name}" for name in names))]
        coming = " ".join(filter(None, (words or {}).values()))
        done = system.run.ask("bash", "-c", _ASK_SHELL, coming, *files)
        output = done.output.decode("utf-8", "surrogateescape")
        if done.status != 0 or not output.endswith("\n"):
            raise Failure(
                f"to read which words {_FILE} and {_DROP_INS} give the kernel",
                f"the shell that reads them as grub-mkconfig does ended with {done.status}",
                "what the next boot gets isn't known",
                "see on the host what grub-mkconfig complains of, and mend that file",
            )
        return output.removesuffix("\n").rstrip("\n")

    def generated(self, system: System) -> str:
        """The kernel command line of the menu's first entry, which update-grub made of the configuration. Empty: there
        is no menu, it has no entry, or it is on ESPs.

        :raises Failure: there is one that can't be read.
        """
        match = None if boot.uuids(system) else _KERNEL_LINE.search(system.files.need_text(GRUB_MENU))
        return (match[1] or "") if match else ""

    def write(self, system: System, layer: str, words: str) -> None:
        drop_in = _DROP_IN.format(words=words) if words else ""
        loaders.put_or_drop(system, layer, f"{_DROP_INS}/{_OURS}{layer}.cfg", 0o644, drop_in)
        entry = f"{installed.TEXTS['grub_entry']}\n" if layer == "vfio" and words else ""
        loaders.put_or_drop(system, layer, boot.GRUB_ENTRY, 0o755, entry)

    def make(self, system: System, folder: str, stale: list[str]) -> list[str]:
        """Beside the old menu. update-grub writes into that, and ends well with a menu without a kernel when a
        command that its scripts call is broken."""
        files, path = system.files, f"{folder}/grub/grub.cfg" if folder else GRUB_MENU
        new = beside(path)
        if files.exists(path):  # whose mode the new one keeps: it may be for root's eyes only
            files.copy(path, new)
        words = ["grub-mkconfig", "-o", files.name(beside(GRUB_MENU))]
        if folder:  # as proxmox-boot-tool does it: the scripts find what is in /boot
            bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", bind, "-", files.name(folder), files.name("/boot"), *words]
        system.log.say(f"making the boot menu{' on an ESP' if folder else ''} (grub-mkconfig)")
        done = system.run.do(*words, doing="boot menu", environment={"PVE_EFIBOOT_UNSHARED": "1"})
        if done.status != 0:
            raise not_made(done.text or f"grub-mkconfig ended with {done.status}")
        if not _KERNEL_LINE.search(system.files.need_text(new)):
            raise not_made("grub-mkconfig has made a menu without any kernel; the one from before is there still")
        return [path]

    def kernel(self, system: System) -> str:
        return "" if boot.uuids(system) else loaders.release(trial_entry.files_of(_default(system, _MENUS)[1])[0])

    def need_default(self, system: System, places: Places) -> None:
        for menu in places.menus:
            text, entry, _ = _default(system, menu)
            lacks = trial_entry.lacks_initramfs(text, entry)
            loaders.need_files(system, menu.rpartition("/")[0], entry, "update-grub", lacks_initramfs=lacks)

    def places(self, system: System) -> list[str]:
        """The ESPs; else beside its menu, if GRUB can write there (00_header of Debian's grub-common, `check_writable`
        in its words).

        :raises Failure: GRUB could take it back nowhere, or that can't be told.
        """
        if listed := boot.uuids(system):
            return listed
        rows = system.run.ask("lsblk", "-Pno", "KNAME,PKNAME,UUID,PARTTYPE,MOUNTPOINT")
        if rows.status != 0:
            raise not_chosen(f"lsblk says no partitions: {rows.in_a_line}")
        if uuids := trial_entry.esps(rows.text):
            return uuids
        abstraction, kind = (
            system.run.ask("grub-probe", f"--target={target}", system.files.name("/boot/grub"))
            for target in ("abstraction", "fs")
        )
        if abstraction.status == 0 and not abstraction.text.strip() and kind.text.strip() in _WRITTEN:
            return [trial_entry.WRITABLE_MENU]
        layers = ", ".join(one.in_a_line for one in (abstraction, kind) if one.all_text)
        raise not_chosen(
            "the disk of /boot has no EFI system partition, and GRUB can't write beside its menu, in /boot/grub "
            f"({layers})"
        ).but(
            why="GRUB couldn't take the choice back: a kernel that hangs would be started again and again; nothing was "
            "changed",
            next="make an EFI system partition on that disk, of some 64 MB, with the file system FAT (a host that "
            "starts by its BIOS has no other use for it), then run `pulumi up` again",
        )

    def choose(self, system: System, without: list[str], words: str, places: Places) -> None:
        _choose(system, places, "none")  # until its entry is whole
        for menu in places.menus:
            text, entry, is_default = _default(system, menu)
            if not entry or "custom.cfg" not in text:
                lacks = "reads no custom.cfg (41_custom in /etc/grub.d)" if entry else "has no entry with a kernel"
                raise not_chosen(f"GRUB's menu {lacks}")
            if not is_default:
                system.log.say("note: which entry GRUB starts by default can't be told: the trial is its first one")
            trial = trial_entry.trial_entry(entry, without, words)
            _write_custom(system, menu, trial_entry.section(trial, places.choice))
        if not places.menus or not _choose(system, places, "once"):
            raise not_chosen("no EFI system partition that this host starts from is there")

    def keep(self, system: System, places: Places) -> None:
        """A confirmed trial is the default until the menu is made."""
        _choose(system, places, "keep")

    def unchoose(self, system: System) -> None:
        system.files.remove(f"{_MENUS}/{trial_entry.BESIDE_MENU}")

    def take_back(self, system: System, places: Places) -> None:
        files = system.files
        for folder in places.esps.values():
            files.remove(f"{folder}/{trial_entry.ON_ESP}")
            below = f"{folder}/{trial_entry.ON_ESP.partition('/')[0]}"
            if not files.need_names(below):  # else its owner has something there, too
                files.remove_tree(below)
        for menu in dict.fromkeys([*places.menus, _MENUS]):  # which GRUB read before another loader came
            _write_custom(system, menu, "")


def _default(system: System, menu: str) -> tuple[str, str, bool]:
    """GRUB's menu in a folder, and the entry that it starts by default: as of `trial_entry.default_entry`.

    :raises Failure: it can't be read.
    """
    text = system.files.need_text(f"{menu}/grub.cfg")
    return text, *trial_entry.default_entry(text, system.files.read(f"{menu}/grubenv") or b"")


def _write_custom(system: System, menu: str, section: str) -> None:
    files, path = system.files, f"{menu}/custom.cfg"
    before = system.files.need_text(path) if files.exists(path) else None
    text = trial_entry.custom_cfg(before, section)
    if text is None:
        files.remove(path)
    elif before is None:
        files.write(path, text.encode("utf-8", "surrogateescape"), 0o644)
    elif text != before:
        files.rewrite(path, text.encode("utf-8", "surrogateescape"))


def _choose(system: System, places: Places, value: str) -> bool:
    """Writes the choice; whether it could be written anywhere."""
    files, block = system.files, trial_entry.environment(value)
    there = {uuid: f"{folder}/{trial_entry.ON_ESP}" for uuid, folder in places.esps.items()}
    there[trial_entry.WRITABLE_MENU] = f"{_MENUS}/{trial_entry.BESIDE_MENU}"
    paths = [there[place] for place in places.choice if place in there]
    for path in paths:
        if len(files.read(path) or b"") == len(block):
            files.overwrite(path, block)
        else:
            files.need_folder(path.rpartition("/")[0])
            files.write(path, block, 0o644)
    return bool(paths)
