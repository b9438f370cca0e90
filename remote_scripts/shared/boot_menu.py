"""What was configured made what the next boot uses: GRUB's menus, systemd-boot's entries. Each is whole, the old one or
the new one, at any moment.

proxmox-boot-tool's `refresh` isn't called: it copies kernels over those that boot, and writes into menus.
"""

from __future__ import annotations

import re

from remote_scripts.shared import cmdline, esp, trial_entry
from remote_scripts.shared.boot import GRUB_MENU, HOOK, KERNEL_CMDLINE, uuids
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: systemd-boot's entries on an ESP.
ENTRIES = "loader/entries"
# Proxmox VE's; and the second one of each, which the default pattern proxmox-* doesn't match.
_THEIRS, _SECOND = "proxmox-", "homelab-without-gpu-"
_STARTS_KERNEL = re.compile(r"^[ \t]*linux(efi)?[ \t]", re.MULTILINE)
_OPTIONS = re.compile(r"^options[ \t].*$", re.MULTILINE)


def make_menus(system: System, loader: str, *, is_step: bool = True) -> None:
    """First all of it, beside what is there.

    :param is_step: whether it is what must follow a layer's change.
    :raises Failure: it could not be made: then nothing has changed.
    """
    files, listed = system.files, uuids(system)
    made: list[str] = []
    stale: list[str] = []
    with esp.mounted(system, listed) as folders:
        for folder in folders.values() if listed else [""]:
            try:
                made += (
                    _make_entries(system, folder, stale) if loader == "systemd-boot" else [_make_menu(system, folder)]
                )
            except OSError as error:
                raise _not_made(f"{folder or '/boot'}: {error}") from error
        if is_step:
            files.begin_step("boot")
        for path in made:
            files.move(_beside(path), path)
        files.remove(*stale)
    if is_step:
        files.done_with("boot")


def _beside(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.homelab-tmp"


def _not_made(found: str) -> Failure:
    return Failure(
        "the boot configuration generated again",
        found,
        "the next boot would not have what was configured; this step's files are as they were before (earlier steps "
        "stay, in the stack too)",
        "correct what the message names (often: a full /boot or ESP), then run `pulumi up` again",
    )


def _make_menu(system: System, esp_folder: str) -> str:
    """GRUB's menu, beside the old one. update-grub writes into that, and ends well with a menu without a kernel when a
    command that its scripts call is broken.

    :returns: the old one's path.
    """
    files, path = system.files, f"{esp_folder}/grub/grub.cfg" if esp_folder else GRUB_MENU
    new = _beside(path)
    if files.exists(path):  # whose mode the new one keeps: it may be for root's eyes only
        files.copy(path, new)
    words = ["grub-mkconfig", "-o", files.name(_beside(GRUB_MENU))]
    if esp_folder:  # as proxmox-boot-tool does it: the scripts find what is in /boot
        bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", bind, "-", files.name(esp_folder), files.name("/boot"), *words]
    system.log.say(f"making the boot menu{' on an ESP' if esp_folder else ''} (grub-mkconfig)")
    done = system.run.do(*words, doing="boot menu", environment={"PVE_EFIBOOT_UNSHARED": "1"})
    if done.status != 0:
        raise _not_made(done.text or f"grub-mkconfig ended with {done.status}")
    if not _STARTS_KERNEL.search(system.files.need_text(new)):
        raise _not_made("grub-mkconfig has made a menu without any kernel; the one from before is there still")
    return path


def _make_entries(system: System, esp_folder: str, stale: list[str]) -> list[str]:
    """The command line in each of Proxmox VE's entries for systemd-boot, as proxmox-boot-tool makes it of its file; and
    the second entry of each, where there is the hook for them. They lie beside those that are there.

    :param stale: gets the second entries that go.
    :returns: whose text is another.
    """
    files, place = system.files, f"{esp_folder}/{ENTRIES}"
    line = system.files.need_text(KERNEL_CMDLINE).partition("\n")[0]
    words = " ".join(cmdline.own(system).values()).split()
    texts = {}
    for name in entries(system, place):
        text, found = _OPTIONS.subn(lambda _: f"options  {line}", system.files.need_text(f"{place}/{name}"), count=1)
        if not found:
            raise _not_made(f"{place}/{name} has no options: it isn't whole")
        texts[f"{place}/{name}"] = text
        if files.exists(HOOK):
            second = trial_entry.copied(text, r"\g<0> without GPU passthrough", words, "")
            texts[f"{place}/{name.replace(_THEIRS, _SECOND, 1)}"] = second
    stale += [
        f"{place}/{name}" for name in files.names(place) if name.startswith(_SECOND) and f"{place}/{name}" not in texts
    ]
    made = [path for path, text in texts.items() if system.files.need_text(path) != text]
    for path in made:
        files.write(_beside(path), texts[path].encode("utf-8", "surrogateescape"), 0o644)
    return made


def entries(system: System, place: str) -> list[str]:
    """The names of Proxmox VE's entries for systemd-boot in a folder of an ESP."""
    names = system.files.names(place)
    return [name for name in names if name.startswith(_THEIRS) and name.endswith(".conf") and "homelab" not in name]


def plan_menus(system: System) -> None:
    """The same, only planned."""
    esps = len(uuids(system))
    system.files.plan_file("made", f"the boot entries on {esps} ESP(s)" if esps else GRUB_MENU)
