"""Confirms the running boot, unless this host has taken its boot configuration back, or is about to: disarms the dead
man's switch. That stays armed where this boot doesn't run what is configured.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import switch
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`unless`: a boot's id: nothing is done while that one runs; may be empty. `judged_told`: what this host has
    judged itself was told to somebody. `lock_seconds`: for so long another run is waited for.
    """

    unless: str = ""
    judged_told: bool = False
    lock_seconds: int = 45


@dataclass(frozen=True)
class Answer:
    """`boot`: the running one's id; `confirmed`: the same, empty: it is not; `rolled_back`: which boot was, and why;
    `rolling_back`: and has still to restart; `judged`: for people: this host has judged its boot itself meanwhile.
    """

    boot: str
    confirmed: str
    rolled_back: str
    rolling_back: bool
    judged: str


def apply(system: System, wanted: Wanted) -> Answer:
    """Takes `armed` away, which decides, without the lock: another run may hold that for longer than the switch waits.

    :raises Failure: it can't be taken away, or its note can't be read.
    """
    here = need_boot_id(system)
    if here == wanted.unless or switch.is_undone(system):
        return _answer(system, "", "")
    judged = system.files.text(switch.JUDGED)
    system.work.lock_seconds = wanted.lock_seconds
    try:
        if _shows_nothing(system):
            system.work.take_lock()
            if not switch.is_undone(system) and _shows_nothing(system):
                system.log.say(
                    "this boot runs without what is configured: the dead man's switch stays for the next one that has "
                    "it"
                )
                switch.await_no_boot(system)
        elif switch.is_armed(system) and not _take_armed(system):
            return _answer(system, "", judged)
        _tidy_up(system, wanted)
    finally:
        system.work.release()
    return _answer(system, "" if switch.is_undone(system) else here, judged)


def _answer(system: System, confirmed: str, judged: str) -> Answer:
    return Answer(need_boot_id(system), confirmed, switch.rolled_back(system), switch.is_rolling_back(system), judged)


def _shows_nothing(system: System) -> bool:
    """An armed switch waits for a boot with what is configured, which this isn't: it was started from what was made
    before.
    """
    return switch.is_armed(system) and (switch.is_another_boot(system) or system.files.is_pending("boot"))


def _take_armed(system: System) -> bool:
    """Whether it was there to be taken: a roll-back takes it, too. What was armed in this boot is for the next one, by
    a run that may still hold the lock: that is waited for.
    """
    here = f"boot {need_boot_id(system)}\n".encode()
    while True:
        if system.work.lock is None and not switch.is_armed_before(system):
            system.work.take_lock()
        try:
            taken = system.files.take(switch.ARMED, lambda content: system.work.lock is not None or here not in content)
        except OSError as error:
            raise Failure(
                f"this boot confirmed: {switch.ARMED} removed",
                str(error),
                "while it is there, the dead man's switch undoes this boot in a few minutes and restarts the host",
                "correct what the message names (a file system that is read-only: `dmesg`), then run `pulumi up` "
                "again; to keep this boot meanwhile: `systemctl stop homelab-rollback.timer`",
            ) from error
        if taken is not False:  # else it was armed just now
            return bool(taken)


def _tidy_up(system: System, wanted: Wanted) -> None:
    """What is left of the switch. If another run holds the lock, the switch's own timer does it: it finds nothing
    armed. What is armed by now is that other run's, for the next boot.
    """
    files = system.files
    if not switch.is_there(system) and not wanted.judged_told:
        return
    if system.work.lock is None:
        try:
            system.work.take_lock()
        except Failure:
            system.log.say(
                "another run is at work on this host: its timer takes the rest of the dead man's switch away"
            )
            return
    try:
        files.clear_leftovers()
        if switch.is_there(system) and not (switch.is_armed(system) or switch.is_undone(system)):
            switch.disarm(system)
        if wanted.judged_told:
            files.remove(switch.JUDGED)
        files.finish()
    except OSError as error:  # the boot is confirmed all the same
        system.log.say(f"the rest of the dead man's switch stays for the next run: {error}")
