"""A boot on trial: what is configured is started once, by an entry of its own, while the default stays what boots
today. A confirmed boot makes it the default; whatever else ends it, the next boot is the old one.

In /var/lib/homelab:

- trial: KEY VALUE lines: in which boot it was armed, which words are to come, where the choice lies, until when an
  `up` waits for the boot, how this host was reached then;
- confirmed, taken-back: `trial`, renamed: who renames it first decides. It goes when all that follows is done;
- rollback: the program of a timer (files/rollback.sh), which restarts a boot on trial that nobody confirmed;
- rolled-back, judged: for people: which trial has ended and why, or that this host confirmed its boot itself.

/run/homelab/restarting, which no boot keeps: which boot is being ended, and why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from remote_scripts import installed
from remote_scripts.shared import (
    boot,
    boot_service,
    cmdline,
    esp,
    guests_to_start,
    next_boot,
    notes,
    route,
    trial_entry,
)
from remote_scripts.shared.boot_menu import ENTRIES, make_menus
from remote_scripts.shared.boot_service import UNITS
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.words import missing_words
from remote_scripts.tools.errors import Failure, in_words
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

NOTE, CONFIRMED, TAKEN_BACK, ROLLED_BACK, JUDGED, PROGRAM = (
    f"{HOME}/{name}" for name in ("trial", "confirmed", "taken-back", "rolled-back", "judged", "rollback")
)
_RESTARTING = "/run/homelab/restarting"
_NAME = "homelab-rollback"
_UNIT_FILES = {name: f"{UNITS}/{name}" for name in (f"{_NAME}.service", f"{_NAME}.timer")}
_LINKS = {f"{UNITS}/timers.target.wants/{_NAME}.timer": _UNIT_FILES[f"{_NAME}.timer"]}
_ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ENTRY = f"{trial_entry.ID}.conf"
# Where no variable can be written: systemd-boot's default pattern takes it, and counts it down (Boot Loader
# Specification, boot counting).
_COUNTED = f"proxmox-999-{trial_entry.ID}+1.conf"
# Proxmox VE's own file systems that GRUB writes, as grub-probe calls them; the others are ZFS and btrfs.
_WRITTEN_BY_GRUB = ("ext2", "xfs")
_SYSCTLS = ("/proc/sys/kernel/panic", "/proc/sys/kernel/softlockup_panic")

_TEXTS = {
    f"{_NAME}.service": """\
# Written by homelab: restarts a boot on trial that nobody confirmed. Gone once it is confirmed.
[Unit]
Description=homelab: end the boot on trial, unless it is in order
ConditionPathExists=/var/lib/homelab/rollback
RequiresMountsFor=/var/lib/homelab
# Not stopped by a shutdown: it forces one that hangs.
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/sh /var/lib/homelab/rollback {after}
Restart=on-failure
RestartSec=10""",
    f"{_NAME}.timer": """\
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed
# Started first of all: a boot that ends in emergency mode, since a disk is gone, starts no other timer.
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
# From systemd's start on: an initramfs may wait for the passphrase of a disk for as long as it likes.
OnStartupSec={after}s
AccuracySec=1s""",
}
State = Literal["", "armed", "running", "confirmed", "over", "ending"]


def note(system: System, path: str = NOTE) -> dict[str, str]:
    """The lines of one of the notes.

    :raises Failure: it is there and can't be read.
    """
    return notes.pairs(system.files.need_text(path))


def state(system: System) -> State:
    """`armed`: for the next boot; `running`: in this one; `confirmed`: and not yet the default; `over`: it has ended,
    or was never started, and its entry is to go; `ending`: this host is about to restart for it; empty: there is none.

    :raises Failure: as of `note`.
    """
    files = system.files
    if files.exists(_RESTARTING):
        return "ending"
    if files.exists(CONFIRMED):
        return "confirmed"
    if files.exists(TAKEN_BACK):
        return "ending" if _runs(system, note(system, TAKEN_BACK)) else "over"
    if not files.exists(NOTE):
        return ""
    lines = note(system)
    if lines.get("boot") == need_boot_id(system):
        return "armed"
    return "running" if _runs(system, lines) else "over"


def to_come(system: System) -> dict[str, str] | None:
    """Each layer's words once the trial is confirmed; None: there is none.

    :raises Failure: as of `note`.
    """
    lines = note(system) if is_chosen(system) else note(system, CONFIRMED)
    return _words(system, lines) if lines else None


def is_chosen(system: System) -> bool:
    """Whether the next boot, or this one, is on trial with all that is noted: arming was not cut short.

    :raises Failure: as of `note`.
    """
    return (now := state(system)) == "running" or (now == "armed" and "chosen" in note(system))


def _words(system: System, lines: Mapping[str, str]) -> dict[str, str]:
    return {name: lines.get(name, words) for name, words in cmdline.own(system).items()}


def _runs(system: System, lines: Mapping[str, str]) -> bool:
    """Whether this boot is the trial. A person may have chosen another entry."""
    running = system.files.need_text("/proc/cmdline")
    wanted = " ".join([trial_entry.WORD, *(lines.get(name, "") for name in boot.NAMES)])
    return not missing_words(wanted, running)


def rolled_back(system: System) -> str:
    """Which trial has ended unconfirmed, or is being ended, and why; empty: none."""
    for path in (ROLLED_BACK, _RESTARTING):
        if text := system.files.text(path):
            return text
    if state(system) not in ("over", "ending"):
        return ""
    return (
        f"boot {need_boot_id(system)} is not the one on trial: that has ended before it was confirmed (its kernel "
        "stopped, or the host was switched off or restarted), or the boot loader never started it"
    )


def is_ending(system: System) -> bool:
    """Whether this host still has to restart for that; errors as of `note`."""
    return state(system) == "ending"


def forget_earlier_roll_back(system: System) -> None:
    """That an earlier trial has ended is no news to what is wanted now; errors as of `note`."""
    if not is_ending(system):
        system.files.remove(ROLLED_BACK)


def armed_since(system: System) -> str:
    """Since when, in seconds since 1970 with all their digits; empty: there is no trial."""
    try:
        at = system.files.at(NOTE).stat().st_mtime_ns
    except FileNotFoundError:
        return ""
    return f"{at // 10**9}.{at % 10**9:09d}"


def await_boot(system: System, seconds: int) -> None:
    """For so long from now an `up` waits for the next boot; 0: none does. Nothing happens where there is no trial.

    :raises OSError: it can't be noted.
    :raises Failure: as of `note`.
    """
    lines = note(system)
    lines.pop("until", None)
    if lines:
        _write_note(system, lines | ({"until": str(int(time.time()) + seconds)} if seconds else {}))


def _write_note(system: System, lines: Mapping[str, str], path: str = NOTE) -> None:
    text = "".join(f"{key} {value}\n" for key, value in lines.items())
    system.files.write(path, text.encode("utf-8", "surrogateescape"), 0o600)


def arm(system: System, after: int, words: Mapping[str, str]) -> None:
    """The next boot is on trial. The choice comes last: until then nothing starts it.

    :param after: seconds from a boot's start until it is looked at.
    :param words: of each layer that gets others.
    :raises Failure: what the loader reads can't be read or written.
    """
    files, here = system.files, need_boot_id(system)
    before = note(system)
    kept = before if before.get("boot") == here else _new_note(system, here) | _kept(before)
    lines = {**_not_yet_chosen(kept), **words}
    files.need_folder(HOME)
    for path in (NOTE, TAKEN_BACK, ROLLED_BACK, JUDGED):
        files.remember(path)
    system.also_put_back = lambda: _put_back(system, before)
    _install(system, after)
    _write_note(system, lines)
    _set_up(system, lines)
    _write_note(system, {**lines, "chosen": "yes"})
    # What became of earlier boots is no news any more.
    files.remove(TAKEN_BACK, ROLLED_BACK, JUDGED)


def _not_yet_chosen(lines: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in lines.items() if key != "chosen"}


def _kept(before: Mapping[str, str]) -> dict[str, str]:
    """Of a trial that runs, and is to run once more."""
    return {key: before[key] for key in ("sysctls", *boot.NAMES) if key in before}


def _put_back(system: System, before: Mapping[str, str]) -> None:
    if before.get("boot") == need_boot_id(system):
        _set_up(system, before)
        return
    _take_down(system, note(system))  # one that runs is started no second time
    if not before:
        _uninstall(system)


def _new_note(system: System, here: str) -> dict[str, str]:
    loader = boot.need_loader(system)
    return {
        "boot": here,
        "loader": loader,
        "places": " ".join(_places(system) if loader == "grub" else []),
        "sysctls": " ".join(system.files.line(path) for path in _SYSCTLS).strip(),
        **route.find(system),
    }


def _places(system: System) -> list[str]:
    """Where GRUB's choice lies: the ESPs; else beside its menu, if GRUB can write there (00_header of Debian's
    grub-common, `check_writable` in its words).

    :raises Failure: GRUB could take it back nowhere, or that can't be told.
    """
    listed = boot.uuids(system)
    if listed:
        return listed
    rows = system.run.ask_once("lsblk", "-Pno", "KNAME,PKNAME,UUID,PARTTYPE,MOUNTPOINT")
    if rows.status != 0:
        raise _not_chosen(f"lsblk says no partitions: {rows.in_a_line}")
    if uuids := trial_entry.esps(rows.text):
        return uuids
    abstraction, kind = (
        system.run.ask_once("grub-probe", f"--target={target}", system.files.name("/boot/grub"))
        for target in ("abstraction", "fs")
    )
    if abstraction.status == 0 and not abstraction.text.strip() and kind.text.strip() in _WRITTEN_BY_GRUB:
        return [trial_entry.WRITABLE_MENU]
    layers = ", ".join(one.in_a_line for one in (abstraction, kind) if one.all_text)
    raise _not_chosen(
        f"the disk of /boot has no EFI system partition, and GRUB can't write beside its menu, in /boot/grub ({layers})"
    ).but(
        why="GRUB couldn't take the choice back: a kernel that hangs would be started again and again; nothing was "
        "changed",
        next="make an EFI system partition on that disk, of some 64 MB, with the file system FAT (a host that starts "
        "by its BIOS has no other use for it), then run `pulumi up` again",
    )


def plan(system: System, loader: str) -> None:
    """Nothing beside what a layer plans.

    :raises Failure: no boot could be tried; also as of `boot.uuids` and `next_boot.need_default`.
    """
    next_boot.need_default(system)
    if loader == "grub":
        _places(system)


@contextmanager
def _loaders_folders(system: System, lines: Mapping[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The ESPs with a choice or entries, by their UUIDs; and the folders of GRUB's menus."""
    listed = boot.uuids(system)
    chosen = [place for place in lines.get("places", "").split() if place != trial_entry.WRITABLE_MENU]
    with esp.mounted(system, [*listed, *chosen]) as folders:
        menus = [f"{folders[uuid]}/grub" for uuid in listed if uuid in folders]
        yield folders, [menu for menu in menus if system.files.is_folder(menu)] if listed else ["/boot/grub"]


def _set_up(system: System, lines: Mapping[str, str]) -> None:
    with _loaders_folders(system, lines) as (folders, menus):
        if lines["loader"] == "systemd-boot":
            next_boot.need_files(system, [], folders.values())
            _set_up_systemd_boot(system, lines, [*folders.values()])
            return
        next_boot.need_files(system, menus, [])
        _choose(system, lines, folders, "none")  # until its entry is whole
        for menu in menus:
            _write_custom(system, menu, _section(system, lines, menu))
        if not menus or not _choose(system, lines, folders, "once"):
            raise _not_chosen("no EFI system partition that this host starts from is there")


def _section(system: System, lines: Mapping[str, str], menu: str) -> str:
    text, entry, is_default = next_boot.of_menu(system, menu)
    if not entry or "custom.cfg" not in text:
        lacks = "reads no custom.cfg (41_custom in /etc/grub.d)" if entry else "has no entry with a kernel"
        raise _not_chosen(f"GRUB's menu {lacks}")
    if not is_default:
        system.log.say("note: which entry GRUB starts by default can't be told: the trial is its first one")
    text = trial_entry.trial_entry(entry, _own_words(system), _with_trial(system, lines))
    return trial_entry.section(text, lines["places"].split())


def _own_words(system: System) -> list[str]:
    return " ".join(cmdline.own(system).values()).split()


def _with_trial(system: System, lines: Mapping[str, str]) -> str:
    return " ".join(filter(None, [*_words(system, lines).values(), trial_entry.WORD, trial_entry.RESTARTS]))


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


def _choose(system: System, lines: Mapping[str, str], folders: Mapping[str, str], value: str) -> bool:
    """Writes the choice; whether it could be written anywhere."""
    files, block, is_chosen = system.files, trial_entry.environment(value), False
    for place in lines.get("places", "").split():
        path = f"/boot/grub/{trial_entry.BESIDE_MENU}"
        if place != trial_entry.WRITABLE_MENU:
            if place not in folders:
                continue
            path = f"{folders[place]}/{trial_entry.ON_ESP}"
        if len(files.read(path) or b"") == len(block):
            files.overwrite(path, block)
        else:
            files.need_folder(path.rpartition("/")[0])
            files.write(path, block, 0o644)
        is_chosen = True
    return is_chosen


def _not_chosen(found: str) -> Failure:
    return Failure(
        "the next boot of this host tried once, by an entry of its own",
        found,
        "it would become the default without having been tried; nothing of it was changed",
        "see `proxmox-boot-tool status`, /etc/grub.d and /etc/default/grub, mend what is said there, then run "
        "`pulumi up` again",
    )


def _set_up_systemd_boot(system: System, lines: Mapping[str, str], folders: list[str]) -> None:
    """The loader's variable, read back after it is set; else an entry that the loader counts down."""
    refusal, words, written = _set_one_shot(system), _with_trial(system, lines), []
    is_set = trial_entry.efi_text(system.files.read(_ONE_SHOT) or b"") == _ENTRY
    for folder in folders:
        place, loader_conf = f"{folder}/{ENTRIES}", system.files.need_text(f"{folder}/loader/loader.conf")
        entry = next_boot.of_esp(system, folder)
        text = trial_entry.copied(entry, f"title    {trial_entry.TITLE}", _own_words(system), words)
        is_counted = not is_set and trial_entry.default_conf(loader_conf, [_COUNTED]) == _COUNTED
        if text and (is_set or is_counted):
            path = f"{place}/{_ENTRY if is_set else _COUNTED}"
            system.files.write(path, text.encode("utf-8", "surrogateescape"), 0o644)
            written.append(path)
    if not written:
        raise _not_chosen("no ESP has a whole entry of Proxmox VE" if is_set else f"no EFI variable is kept{refusal}")


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


def _take_down(system: System, lines: Mapping[str, str]) -> None:
    """No boot starts it any more: first the choice goes, of whichever loader, then the entry."""
    files = system.files
    if trial_entry.ID in trial_entry.efi_text(files.read(_ONE_SHOT) or b""):
        _unlock_one_shot(system)
        files.remove(_ONE_SHOT)
    with _loaders_folders(system, lines) as (folders, menus):
        files.remove(f"/boot/grub/{trial_entry.BESIDE_MENU}")
        for folder in folders.values():
            files.remove(f"{folder}/{trial_entry.ON_ESP}")
            below = f"{folder}/{trial_entry.ON_ESP.partition('/')[0]}"
            if not files.need_names(below):  # else its owner has something there, too
                files.remove_tree(below)
        for menu in dict.fromkeys([*menus, "/boot/grub"]):  # which GRUB read before another loader came
            _write_custom(system, menu, "")
        for place in (f"{folder}/{ENTRIES}" for folder in folders.values()):
            files.remove(*(f"{place}/{name}" for name in files.names(place) if trial_entry.ID in name))
    # This boot goes on as an ordinary one.
    for path, value in zip(_SYSCTLS, lines.get("sysctls", "").split(), strict=False):
        if trial_entry.WORD in files.line("/proc/cmdline").split() and files.exists(path):
            files.set_attribute(path, value)


def confirm(system: System) -> bool:
    """This boot stays; from here on a power cut ends in it. The rest is `settle`'s. False: it is no trial, or not any
    more: confirmed, taken back, or armed for the next boot meanwhile.

    :raises Failure: it can't be noted; also as of `note`.
    """
    if state(system) != "running":
        return False
    try:
        system.files.move(NOTE, CONFIRMED)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Failure(
            f"this boot confirmed: {NOTE} renamed",
            str(error),
            "else this host restarts in a few minutes, with what it had before",
            "correct what the message names (a file system that is read-only: `dmesg`), then run `pulumi up` "
            "again; to keep this boot meanwhile: `systemctl stop homelab-rollback.timer`",
        ) from error
    lines = note(system, CONFIRMED)
    try:
        with _loaders_folders(system, lines) as (folders, _):
            _choose(system, lines, folders, "keep")
    except (OSError, Failure) as error:  # the menu is made next
        system.log.say(f"note: until the boot menu is made, the next boot is the old one: {in_words(error)}")
    return True


def settle(system: System) -> None:
    """What a confirmed trial, or one that has ended, leaves to do.

    :raises Failure: it can't be done: then it is still to be done; or this host is about to restart.
    """
    files = system.files
    match state(system):
        case "ending":
            raise Failure(
                "the next boot of this host configured",
                f"it is ending a boot on trial now: {rolled_back(system)}",
                "it restarts, and would lose what is written meanwhile",
                "wait for its restart (`journalctl -u homelab-rollback` on the host shows it), then run "
                "`pulumi up --refresh`",
            )
        case "confirmed":
            lines, loader = note(system, CONFIRMED), boot.need_loader(system)
            files.followed_by = "boot"
            for name in boot.NAMES:
                if name in lines:
                    cmdline.write(system, name, lines[name], loader)
            make_menus(system, loader)
            files.finish()  # nothing of that is undone any more
            _forget(system, lines)
        case "over":
            if not files.exists(ROLLED_BACK):
                tell(system, ROLLED_BACK, rolled_back(system))
            _forget(system, note(system, TAKEN_BACK) or note(system))
        case "":
            if files.exists(PROGRAM):  # a power cut has left it
                _uninstall(system)


def settle_if_free(system: System, lock_seconds: int) -> None:
    """The same, if no other run is at work: else that is the next run's. Nor does a disk that takes nothing make a
    boot a bad one.
    """
    system.work.lock_seconds = lock_seconds
    try:
        system.changing(lambda: settle(system))
    except (Failure, OSError) as error:
        system.log.say(f"what is left of the boot on trial is left to the next run: {in_words(error)}")


def _forget(system: System, lines: Mapping[str, str]) -> None:
    if system.files.exists(NOTE):
        _write_note(system, _not_yet_chosen(lines))
    _take_down(system, lines)
    system.files.remove(NOTE, TAKEN_BACK, CONFIRMED)
    _uninstall(system)


def drop(system: System, name: str, after: int = 0) -> bool:
    """A layer's words aren't tried: they are written at once, or given back. The trial goes on with the others'.

    :param after: as of `arm`.
    :returns: whether they were to be tried, or were.
    """
    path = CONFIRMED if system.files.exists(CONFIRMED) else NOTE
    lines = note(system, path)
    before = dict(lines)
    is_in = lines.pop(name, None) is not None
    if not before:
        return False
    if not any(of_layer in lines for of_layer in boot.NAMES):
        _forget(system, before)
    else:
        system.files.remember(path)
        _write_note(system, _not_yet_chosen(lines), path)
        if path == NOTE:
            _arm_without(system, before, after)
    return is_in


def _arm_without(system: System, before: Mapping[str, str], after: int) -> None:
    try:  # its entry is a copy of one that has changed
        arm(system, after, {})
    except (OSError, Failure) as error:  # such as an ESP that is gone: the others' words stay to be tried
        system.log.say(f"note: no boot is on trial any more: {in_words(error)}")
        system.also_put_back = None
        _take_down(system, before)


def tell(system: System, path: str, sentence: str) -> None:
    """For the next `up`."""
    system.files.write(path, sentence.encode(), 0o600)


def forget_when_given_back(system: System) -> None:
    """After something was given back: nothing of homelab's is told of a host that has none of it."""
    files = system.files
    guests_to_start.settle(system)
    if not (files.exists(ROLLED_BACK) or files.exists(JUDGED)):
        return
    files.finish()  # settles the records
    is_something_left = any([*map(files.of_layer, boot.NAMES), *cmdline.own(system).values()])
    if not (is_something_left or files.exists(NOTE) or files.is_pending("boot") or files.is_pending("initramfs")):
        files.remove(ROLLED_BACK, JUDGED)


def _install(system: System, after: int) -> None:
    """Enabled by links, which need nothing of a running systemd; not started: the next boot reads them."""
    files = system.files
    texts = {_UNIT_FILES[name]: text.format(after=after) for name, text in _TEXTS.items()}
    for path, text in {PROGRAM: installed.TEXTS["rollback"], **texts}.items():
        if system.files.need_text(path) != f"{text}\n":
            files.make_folder(path.rpartition("/")[0])
            files.remember(path)
            files.write(path, f"{text}\n".encode("utf-8", "surrogateescape"), 0o700 if path == PROGRAM else 0o644)
    for link, path in _LINKS.items():
        if not files.at(link).is_symlink():
            files.make_folder(link.rpartition("/")[0])
            files.remember(link)
            files.write_link(path, link)


def _uninstall(system: System) -> None:
    # `armed`: a version that wrote the default first has noted it.
    boot_service.remove(system, _NAME, *_LINKS, *_UNIT_FILES.values(), PROGRAM, f"{HOME}/armed")
