"""What the dead man's switch (files/rollback.sh) asks on the host itself: whether this boot is in order; and, once it
has taken our words from the next boot's command line, that the rest is given back.

Changes what shared/switch.py says; `revert` gives back all that the layers cmdline and initramfs have written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import boot, cmdline, guests_to_start, notes, route, switch
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.route import Route
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`after`: so many seconds after the boot's start it is asked. `restarts`: the host is restarted then.
    `lock_seconds`: for so long another run is waited for, which may hang.
    """

    after: int
    restarts: bool = False
    lock_seconds: int = 60


def apply(system: System, wanted: Wanted) -> str:
    """Whether this boot is to stay: `stay`, or `give back: REASON`. One that stays for good disarms the switch, and is
    told to the next `up`.

    :raises Failure: it can't be told, and so is to be given back.
    :raises OSError: so it is.
    """
    here = need_boot_id(system)
    if not switch.is_armed(system):  # what a power cut left of it
        _settle(system, wanted, lambda: _tidy_up(system))
    elif switch.is_armed_before(system):
        armed = boot.need_text(system, switch.ARMED)
        if switch.is_all_given_back(system):
            reason = (
                "has nothing of this program in its boot configuration any more, so that there is nothing to give back"
            )
        elif switch.is_another_boot(system):
            # By the second entry, which a person or a roll-back that could note nothing has chosen, or from an older
            # menu: the next boot with what is configured is the one to look at.
            sentence = (
                f"boot {here} runs without what is configured: another boot entry was chosen, or the entries are older"
            )
            system.log.say(sentence)
            text = f"{sentence}; the one that is configured was not judged"
            _settle(system, wanted, lambda: switch.tell(system, switch.JUDGED, text))
            return "stay"
        else:
            is_well, reason = _verdict(system, wanted.after, notes.pairs(armed))
            if not is_well:
                return f"give back: {reason}".replace('"', "").replace("\\", "")
        _settle(system, wanted, lambda: _stay(system, armed, f"boot {here} {reason}"))
    return "stay"


def revert(system: System, wanted: Wanted) -> Literal["finished", "unfinished"]:
    """Gives back what has no effect without our words, and disarms the switch. `unfinished`: something of it is still
    to be done.
    """
    system.work.lock_seconds = wanted.lock_seconds
    if wanted.restarts:
        _note_running(system)
    return system.changing(lambda: _finish(system))


def _note_running(system: System) -> None:
    """Guests that come back are started again by the next boot, where its program is."""
    if not system.files.exists(guests_to_start.PROGRAM):
        return
    try:
        missed = guests_to_start.note_running(system)
    except Failure as failure:
        missed = failure.found
    except OSError as error:
        missed = str(error)
    if missed:
        system.log.say(f"guests that run now are not noted: {missed}")


def _settle(system: System, wanted: Wanted, change: Callable[[], None]) -> None:
    """Does it under the lock; but neither who holds that nor a disk that takes nothing makes a boot a bad one. Without
    the lock nothing may be touched that another run may be writing: `change` looks whether this one has it.
    """
    system.work.lock_seconds = wanted.lock_seconds
    try:
        system.work.take_lock()
    except Failure as failure:
        system.log.say(f"going on without the lock: {failure.found}")
    try:
        if system.work.lock is not None:
            system.files.clear_leftovers()
        change()
        if system.work.lock is not None:
            system.files.finish()
    except OSError as error:
        system.log.say(f"the switch stays armed: {error}")
    finally:
        system.work.release()


def _tidy_up(system: System) -> None:
    """What is left of the switch; where another run has the lock, the next one does it."""
    if system.work.lock is not None and not switch.is_armed(system):
        switch.disarm(system)


def _stay(system: System, armed: str, sentence: str) -> None:
    # Not if it was confirmed, or armed anew, meanwhile.
    if boot.need_text(system, switch.ARMED) == armed:
        switch.tell(system, switch.JUDGED, sentence)
        system.files.take(switch.ARMED, lambda content: content == armed.encode("utf-8", "surrogateescape"))
        _tidy_up(system)


def _verdict(system: System, after: int, noted: Mapping[str, str]) -> tuple[bool, str]:
    until = noted.get("until", "")
    if until.isdecimal() and time.time() < int(until):
        return False, f"was not confirmed within {after} s of its start"
    is_reached, answer = _reached_in_time(system, after / 10, route.noted(noted))
    return is_reached, f"was waited for by no `up`, and judged by this host itself {after} s after its start: {answer}"


def _reached_in_time(system: System, seconds: float, before: Route) -> tuple[bool, str]:
    """How this host is reached, or what of it doesn't hold: what held when the switch was armed has to."""
    if not before.address:
        return False, "it is not known over which address this host is reached"
    deadline = time.monotonic() + seconds
    while True:
        is_reached, answer = _reached(system, before)
        if is_reached or time.monotonic() >= deadline:
            return is_reached, answer
        time.sleep(_LOOK_SECONDS)


def _reached(system: System, before: Route) -> tuple[bool, str]:
    interface = route.interface_of(system, before.address)
    if not interface:
        return False, (
            f"no interface that is up has {before.address}, over which it was configured ({before.interface} had)"
        )
    heard = f", whether sshd listens was not asked, since nothing did on port {before.port} when it was configured"
    if before.listens:
        heard = f", and sshd listens on port {before.port}"
        if not route.listens(system, before.port):
            return False, f"nothing listens on port {before.port}, on which sshd did when it was configured"
    asked = ", its gateway was not asked, since none answered when it was configured"
    if before.gateway:
        gateway = route.answering_gateway(system, before.address, interface)
        if not gateway:
            return False, f"no default gateway answers, and {before.gateway} did when it was configured"
        asked = f", its gateway {gateway} answers"
    return True, f"{interface} is up with {before.address}{asked}{heard}"


def _finish(system: System) -> Literal["finished", "unfinished"]:
    files = system.files
    are_words_left = any(boot.drop_in(layer) in files.of_layer(layer) for layer in switch.LAYERS)
    if are_words_left or cmdline.records(system) or files.is_pending("boot"):
        return "unfinished"
    loader = switch.note(system, switch.ROLLING_BACK, "loader")
    if files.of_layer("vfio"):
        files.followed_by = "initramfs"
    for layer in switch.LAYERS:
        for path in boot.files_of(layer):  # of one that was cut short the copy alone may be left
            files.drop(layer, path)
    failed = boot.second_entries(system) if loader == "systemd-boot" else None
    if files.is_pending("initramfs") and failed is None:
        failed = boot.make_initramfs(system)
    if failed is not None:
        system.log.say(f"the roll-back is not finished: {failed}")
        return "unfinished"
    switch.disarm(system)
    return "finished"
