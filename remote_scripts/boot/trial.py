"""A boot on trial: what is configured is started once, by an entry of its own, while the default stays what boots
today. A confirmed boot makes it the default; whatever else ends it, the next boot is the old one.

In /var/lib/homelab:

- trial: KEY VALUE lines: in which boot it was armed, which words are to come, where the choice lies, until when an
  `up` waits for the boot (`until`, by the clock) and for how many seconds in all (`awaited`), how this host was reached
  then;
- confirmed, taken-back: `trial`, renamed: who renames it first decides. It goes when all that follows is done;
- rollback: the program of a timer (rollback_timer.py), which restarts a boot on trial that nobody confirmed;
- rolled-back, judged: for people: which trial has ended and why, or that this host confirmed its boot itself.

/run/homelab/restarting, which no boot keeps: which boot is being ended, and why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from remote_scripts.boot import boot, rollback_timer, route, trial_entry
from remote_scripts.boot.loaders import found as loaders
from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.notes import owed
from remote_scripts.tools import notes
from remote_scripts.tools.errors import Failure, NotConfirmed, in_words
from remote_scripts.tools.files import HOME
from remote_scripts.tools.kernel import need_boot_id
from remote_scripts.tools.system import System
from remote_scripts.tools.words import missing_words

NOTE, CONFIRMED, TAKEN_BACK, ROLLED_BACK, JUDGED = (
    f"{HOME}/{name}" for name in ("trial", "confirmed", "taken-back", "rolled-back", "judged")
)
_RESTARTING = "/run/homelab/restarting"
_SYSCTLS = ("/proc/sys/kernel/panic", "/proc/sys/kernel/softlockup_panic")
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
    return {name: lines.get(name, words) for name, words in loaders.own(system).items()}


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
    for key in ("until", "awaited"):
        lines.pop(key, None)
    if not lines:
        return
    if seconds:
        lines |= {"until": str(int(time.time()) + seconds), "awaited": str(seconds)}
    _write_note(system, lines)


def _write_note(system: System, lines: Mapping[str, str], path: str = NOTE) -> None:
    text = "".join(f"{key} {value}\n" for key, value in lines.items())
    system.files.write(path, text.encode("utf-8", "surrogateescape"), 0o600)


def arm(system: System, after: int, words: Mapping[str, str], without: str = "") -> None:
    """The next boot is on trial. The choice comes last, and that of an earlier one goes first: no boot is started with
    other words than are noted.

    :param after: seconds from a boot's start until it is looked at.
    :param words: of each layer that gets others.
    :param without: a layer whose words aren't tried any more; empty: none.
    :raises Failure: what the loader reads can't be read or written.
    """
    files, here = system.files, need_boot_id(system)
    before = note(system)
    kept = before if before.get("boot") == here else _new_note(system, here) | _kept(before)
    lines = {**kept, **words}
    lines.pop(without, None)
    files.need_folder(HOME)
    files.remember(TAKEN_BACK, ROLLED_BACK, JUDGED)
    system.also_put_back = lambda: _put_back(system, before)
    files.at_finish.insert(0, lambda: setattr(system, "also_put_back", None))
    rollback_timer.put(system, after)
    if before:
        _write_note(system, _not_yet_chosen(before))
    files.remember(NOTE)  # as it is now: after a failure its words are noted, and not chosen
    if before:
        _take_back(system, before)
    _set_up(system, lines)
    # What became of earlier boots is no news any more.
    files.remove(TAKEN_BACK, ROLLED_BACK, JUDGED)


def _not_yet_chosen(lines: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in lines.items() if key != "chosen"}


def _kept(before: Mapping[str, str]) -> dict[str, str]:
    """Of a trial that runs, and is to run once more."""
    return {key: before[key] for key in ("sysctls", *boot.NAMES) if key in before}


def _put_back(system: System, before: Mapping[str, str]) -> None:
    """What was armed is so again; if it can't be, its words stay noted, and the next run arms them. One that runs is
    started no second time.
    """
    now = note(system)
    if now != before:
        try:
            _take_back(system, now)
        except BaseException:
            system.files.leave(NOTE, *rollback_timer.TIMER.paths)  # the next boot may be the trial
            raise
    if not before:
        _uninstall(system)
    elif now != before and "chosen" in before and before["boot"] == need_boot_id(system):
        try:
            _set_up(system, before)
            system.files.leave(NOTE)
        except (OSError, Failure) as error:
            _say_that_none_is(system, error)


def _say_that_none_is(system: System, error: OSError | Failure) -> None:
    system.log.say(f"note: no boot is on trial any more: {in_words(error)}")


def _new_note(system: System, here: str) -> dict[str, str]:
    loader = loaders.need(system)
    return {
        "boot": here,
        "loader": loader.name,
        "places": " ".join(loader.places(system)),
        "sysctls": " ".join(system.files.line(path) for path in _SYSCTLS).strip(),
        **route.find(system),
    }


def plan(system: System, loader: Loader) -> None:
    """Nothing beside what a layer plans.

    :raises Failure: no boot could be tried; also as of `boot.uuids` and `loaders.need_default`.
    """
    loaders.need_default(system)
    loader.places(system)


def _set_up(system: System, lines: Mapping[str, str]) -> None:
    lines = _not_yet_chosen(lines)
    loader, without = loaders.LOADERS[lines["loader"]], " ".join(loaders.own(system).values()).split()
    words = [*_words(system, lines).values(), trial_entry.WORD, trial_entry.RESTARTS]
    with loaders.mounted(system, lines.get("places", "")) as places:
        loader.need_default(system, places)
        _write_note(system, lines)
        loader.choose(system, without, " ".join(filter(None, words)), places)
    _write_note(system, {**lines, "chosen": "yes"})


def _take_back(system: System, lines: Mapping[str, str]) -> None:
    """No boot starts it any more: first the choice goes, of whichever loader, then the entry."""
    for loader in loaders.LOADERS.values():
        loader.unchoose(system)
    with loaders.mounted(system, lines.get("places", "")) as places:
        for loader in loaders.LOADERS.values():
            loader.take_back(system, places)


def _take_down(system: System, lines: Mapping[str, str]) -> None:
    """As of `_take_back`; this boot goes on as an ordinary one."""
    files = system.files
    _take_back(system, lines)
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
        raise NotConfirmed(
            f"this boot confirmed: {NOTE} renamed",
            str(error),
            "else this host restarts in a few minutes, with what it had before",
            "correct what the message names (a file system that is read-only: `dmesg`), then run `pulumi up` "
            "again; to keep this boot meanwhile: `systemctl stop homelab-rollback.timer`",
        ) from error
    lines = note(system, CONFIRMED)
    try:
        with loaders.mounted(system, lines.get("places", "")) as places:
            loaders.GRUB.keep(system, places)
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
            lines, loader = note(system, CONFIRMED), loaders.need(system)
            files.followed_by = "boot"
            for name in boot.NAMES:
                if name in lines:
                    loaders.write(system, name, lines[name], loader)
            loaders.make_menus(system, loader)
            files.finish()  # nothing of that is undone any more
            _forget(system, lines)
        case "over":
            if not files.exists(ROLLED_BACK):
                files.write(ROLLED_BACK, rolled_back(system).encode(), 0o600)
            _forget(system, note(system, TAKEN_BACK) or note(system))
        case "":
            _uninstall(system)  # a power cut may have left it


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
    elif path != NOTE:
        system.files.remember(path)
        _write_note(system, lines, path)
    elif is_in or state(system) != "running":  # else a boot on trial that runs would wait for another one
        _arm_without(system, name, after)
    return is_in


def _arm_without(system: System, name: str, after: int) -> None:
    lines = _not_yet_chosen(note(system))
    try:  # its entry is a copy of one that has changed
        arm(system, after, {}, name)
    except (OSError, Failure) as error:  # such as an ESP that is gone: the others' words stay to be tried
        _say_that_none_is(system, error)
        lines.pop(name, None)
        _write_note(system, lines)
        _take_down(system, lines)
        system.also_put_back = None


def forget_when_given_back(system: System) -> None:
    """After something was given back: nothing of homelab's is told of a host that has none of it."""
    files = system.files
    owed.leave_to_host(system)
    if not (files.exists(ROLLED_BACK) or files.exists(JUDGED)):
        return
    files.finish()  # settles the records
    is_something_left = any([*map(files.of_layer, boot.NAMES), *loaders.own(system).values()])
    if not (is_something_left or files.exists(NOTE) or files.is_pending("boot") or files.is_pending("initramfs")):
        files.remove(ROLLED_BACK, JUDGED)


def _uninstall(system: System) -> None:
    rollback_timer.TIMER.remove(system)
    system.files.remove(f"{HOME}/armed")  # a version that wrote the default first has noted it
