"""Words on the kernel command line of the next boot, and a second boot entry without them.

GRUB: /etc/default/grub.d/zz-homelab-NAME.cfg, /etc/grub.d/12_homelab; systemd-boot: the end of the first line of
/etc/kernel/cmdline, /etc/kernel/{postinst,postrm}.d/zzz-homelab; then the generated boot configuration. Words that
others have there already are left to them. `apply` arms the dead man's switch before its first change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from remote_scripts import installed
from remote_scripts.shared import boot, switch, turn
from remote_scripts.shared.cmdline import RECORDS, configured, generated
from remote_scripts.shared.words import missing_words, without_words
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME, Changed
from remote_scripts.tools.system import System, changes, plans

_STEP = "boot"
_DROP_IN = """\
# Written by homelab, which takes it away again (pulumi destroy).
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"
export HOMELAB_WORDS="${{HOMELAB_WORDS:-}} {words}"
"""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`name`: whose words they are; `words`: separated by spaces, may be empty; `entry`: whether the second boot entry
    is made; `rollback_after`: seconds from a boot's start until the dead man's switch checks it.
    """

    name: Literal["iommu", "vfio"]
    words: str
    entry: bool
    rollback_after: int


@dataclass(frozen=True)
class Applied:
    """`loader`: grub or systemd-boot; `added`: the words that no other file has there."""

    loader: str
    added: tuple[str, ...]
    changed: bool


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change.

    :raises Failure: the boot loader isn't known, or what is configured can't be read.
    """
    loader = boot.need_loader(system)
    _write_missing(system, wanted, loader)
    if _is_made_anew(system, wanted):
        boot.plan_generated(system)


@changes
def apply(system: System, wanted: Wanted) -> Applied:
    """Puts the words there, and makes the boot configuration anew where it, or a file that it is made of, isn't as it
    is to be.

    :raises Failure: as of `plan`; the words have no effect; the configuration could not be made: then the files are as
        they were.
    """
    system.files.before_write = lambda: switch.arm(system, wanted.rollback_after)
    system.files.followed_by = _STEP
    loader = boot.need_loader(system)
    added = _write_missing(system, wanted, loader)
    current = configured(system, loader)
    if missing_words(wanted.words, current):
        raise Failure(
            f"'{wanted.words}' on the kernel command line",
            f"'{current}'",
            "something that is read after this program's file removes it again; nothing was changed",
            "find it in /etc/default/grub, or in what sorts after zz-homelab in /etc/default/grub.d; take it out, "
            "and run `pulumi up` again",
        )
    if _is_made_anew(system, wanted):
        _make(system, loader)
    return Applied(loader, added, system.files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes out whatever was put there by this name, and what no other layer may come to give back: an initramfs that
    is to be made anew, this node's turn in its cluster.

    :raises Failure: as of `apply`.
    """
    files = system.files
    files.followed_by = _STEP
    # Where no ESP is listed, GRUB's menu is all that was made of our files, whatever starts this host by now.
    is_grub = not boot.managed_esps(system) and files.exists(boot.GRUB_MENU)
    loader = "grub" if is_grub else boot.need_loader(system)
    _write(system, wanted.name, "", loader, entry=False)
    if files.changed or files.is_pending(_STEP):
        _make(system, loader)
        system.log.say("note: the running kernel keeps its command line until the next reboot")
    changed = files.changed
    _finish_initramfs(system)
    files.remove(f"{HOME}/wanted-boot")
    files.finish()  # whatever becomes of the cluster
    turn.give_back(system)
    switch.disarm_when_given_back(system)
    return Changed(changed)


def _write_missing(system: System, wanted: Wanted, loader: str) -> tuple[str, ...]:
    """Of the words those that no other file has, which it returns."""
    added = tuple(missing_words(wanted.words, configured(system, loader, others=True)))
    _write(system, wanted.name, " ".join(added), loader, entry=wanted.entry)
    return added


def _write(system: System, name: str, words: str, loader: str, *, entry: bool) -> None:
    """Also takes away what is there for the other loader, which the host had before."""
    is_grub, entry = loader == "grub", entry and bool(words)
    _edit_line(system, name, "" if is_grub else words)
    drop_in = _DROP_IN.format(words=words) if is_grub and words else ""
    _put(system, name, boot.drop_in(name), 0o644, drop_in)
    _put(system, name, boot.GRUB_ENTRY, 0o755, f"{installed.TEXTS['grub_entry']}\n" if is_grub and entry else "")
    hook = "" if is_grub or not entry else f"{installed.TEXTS['systemd_boot_entry']}\n"
    for path in (boot.HOOK, boot.REMOVAL_HOOK):
        _put(system, name, path, 0o755, hook)


def _put(system: System, name: str, path: str, mode: int, text: str) -> None:
    if text:
        system.files.put(name, path, mode, text.encode("utf-8", "surrogateescape"))
    else:
        system.files.drop(name, path)


def _edit_line(system: System, name: str, words: str) -> None:
    """Puts the words at the end of the first line of /etc/kernel/cmdline, in place of what we put there before by this
    name. The exact text is recorded, so that taking it away leaves every other byte. While the file changes, the record
    has a line for each text that may be there, the old and the new; `finish` leaves the new one alone.
    """
    files, record, new = system.files, f"{RECORDS}/{name}", f" {words}" if words else ""
    # The longest first: one may be the beginning of another.
    texts = sorted(filter(None, boot.need_text(system, record).split("\n")), key=lambda text: (-len(text), text))
    if not texts and not new:
        return
    path = f"/{os.path.relpath(files.at(boot.KERNEL_CMDLINE).resolve(), system.root.resolve())}"
    first, newline, rest = boot.need_text(system, boot.KERNEL_CMDLINE).partition("\n")
    files.at_finish.append(lambda: _settle(system, record, new))
    if new in texts and f"{new} " in f"{first} " and not _others(texts, new, first):
        return
    line = _without_texts(first, texts) + new
    content = f"{line}{newline}{rest}".encode("utf-8", "surrogateescape")
    if files.planning:
        files.plan_file("changed", path)  # a plan has the command line before and after by itself
        return
    files.about_to_change()
    files.remember(record, path)
    files.need_folder(RECORDS)
    _record(system, record, dict.fromkeys([*texts, *([new] if new else [])]))
    if files.exists(path):
        files.rewrite(path, content)
    files.changed = True
    system.log.say(f"wrote {path}")


def _others(texts: list[str], new: str, line: str) -> list[str]:
    """Texts of earlier runs that are in the line, too."""
    return [text for text in texts if f"{text} " in f"{line} " and f"{text} " not in f"{new} "]


def _without_texts(line: str, texts: list[str]) -> str:
    """Without the one that is there, as it was put; without words of theirs, if a user has moved these."""
    for text in texts:
        before, separator, after = f"{line} ".rpartition(f"{text} ")
        if separator:
            return f"{before} {after}".removesuffix(" ")
    for text in texts:
        line = without_words(line, text.split())
    return line


def _settle(system: System, record: str, text: str) -> None:
    """The record says just that."""
    if not text:
        system.files.remove(record)
    elif boot.need_text(system, record) != f"{text}\n":
        _record(system, record, {text: None})


def _record(system: System, record: str, texts: dict[str, None]) -> None:
    system.files.write(record, "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogateescape"), 0o600)


def _is_made_anew(system: System, wanted: Wanted) -> bool:
    """What was written isn't in what the next boot reads, or that can't be told: where ESPs hold it, a step that is
    still pending must do, and a boot since then without the words.
    """
    if system.files.changed or system.files.is_pending(_STEP):
        return True
    if boot.managed_esps(system):
        return switch.is_armed_before(system) and switch.is_another_boot(system)
    return bool(missing_words(wanted.words, generated(system)))


def _make(system: System, loader: str) -> None:
    files = system.files
    files.begin_step(_STEP)
    failed = _generate(system, loader)
    if failed is None:
        files.done_with(_STEP)
        return
    # First the files, then once more what is made of them: a half-generated configuration must not stay.
    files.undo()
    if _generate(system, loader) is None:
        files.done_with(_STEP)
    else:
        system.log.say(
            "note: the boot configuration could not be generated from the old files either: the next run tries that "
            "again"
        )
    raise Failure(
        "the boot configuration generated again",
        failed or "no output",
        "the next boot would not have what was configured; this step's files are as they were before (earlier steps "
        "stay, in the stack too)",
        "correct what the message names (often: a full /boot or ESP), then run `pulumi up` again",
    )


def _generate(system: System, loader: str) -> str | None:
    failed = boot.generate(system)
    return boot.second_entries(system) if failed is None and loader == "systemd-boot" else failed


def _finish_initramfs(system: System) -> None:
    """Of a run of the layer initramfs that was cut short, or could not make them from the old files either: where
    nothing of homelab's is in them any more, no other layer may come to make them anew.
    """
    if not system.files.is_pending("initramfs") or system.files.has_put("vfio", boot.INIT_TOP):
        return
    failed = boot.make_initramfs(system)
    if failed is not None:
        system.log.say(f"note: the initramfs of an earlier run could not be rebuilt: {failed}")
