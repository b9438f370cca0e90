"""Reboots the host if its running kernel lacks what is configured; into the boot on trial, where there is one.

Not while a backup, a migration, another task or an installation of packages runs here. In a cluster: not before the
other nodes have their quorum without this one, and no other restarts; the layer cluster_turn ends the turn.

Changes what arms the trial (boot/trial.py); the note and the timer of the guests that ran
(notes/owed.py); the node's turn (cluster/turn.py); /var/lib/homelab/wanted-boot, which `revert` of the
command line takes away; then the host restarts. Undone once the host is back, by its timers otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from remote_scripts.boot import trial
from remote_scripts.boot.loaders import found as loaders
from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.both.reboot import TURN_SECONDS, Answer, Planned, Wanted
from remote_scripts.cluster import cluster, turn
from remote_scripts.notes import owed
from remote_scripts.pve import guests
from remote_scripts.reading import reboot_required
from remote_scripts.tools import restart
from remote_scripts.tools.errors import Failure, in_words
from remote_scripts.tools.kernel import need_boot_id
from remote_scripts.tools.system import System


def plan(system: System, wanted: Wanted) -> Planned:
    """The same before the layers were written and after.

    :raises Failure: what decides it can't be read.
    """
    decided = _decide(system, wanted, loaders.need(system))
    if decided.reboot != "yes":
        return decided
    return replace(decided, cluster=cluster.obstacle(system, keep_quorum=wanted.keep_quorum))


def apply(system: System, wanted: Wanted) -> Answer:
    """Orders the restart, and answers before it.

    :raises Failure: it can't be, now; what was set for it is put back.
    """
    return system.changing(lambda: _apply(system, wanted))


def _decide(system: System, wanted: Wanted, loader: Loader) -> Planned:
    reasons = reboot_required.check(system, wanted.boot, loader)
    running, why = guests.listed(system)
    return Planned(
        reboot="no" if not reasons else "manual" if wanted.policy == "manual" else "yes",
        boot_id=need_boot_id(system),
        reasons=tuple(reasons),
        guests=tuple(running),
        unlisted=why and f"whatever guests run (Proxmox VE's API gives no answer: {why})",
        kernel=loaders.other_kernel(system, loader),
    )


def _apply(system: System, wanted: Wanted) -> Answer:
    loader = loaders.need(system)
    decided = _decide(system, wanted, loader)
    reboot_required.note(system, wanted.boot)
    if decided.reboot == "no":
        system.log.say("no reboot is needed: the running kernel has what is wanted")
        if not trial.is_ending(system):  # that an earlier one has ended is no news any more
            system.files.remove(trial.ROLLED_BACK)
        turn.end(system, 0)  # of an earlier run; what verifies this boot waits for the cluster
        owed.drop_restart(system)
    elif decided.reboot == "manual":
        system.log.say(f"a reboot is needed ({' '.join(one.said for one in decided.reasons)}) and left to you")
    else:
        return _reboot(system, wanted, decided)
    return _answer(system, decided)


def _answer(system: System, decided: Planned) -> Answer:
    return Answer(**vars(decided), turn=turn.is_ours(system), armed=trial.armed_since(system))


def _reboot(system: System, wanted: Wanted, decided: Planned) -> Answer:
    if system.files.is_pending("boot") or trial.state(system) == "confirmed":
        raise Failure(
            "this host restarted with what was configured",
            "the boot configuration was not made after the last change (/var/lib/homelab/pending/boot)",
            "it would start with what was configured before, and be restarted again and again",
            "run `pulumi up --refresh`, which makes it; then this host restarts",
        )
    loaders.need_default(system)
    await_cluster = partial(cluster.await_cluster, system, TURN_SECONDS, keep_quorum=wanted.keep_quorum)
    if why := await_cluster():
        raise cluster.refused(why)
    stops = ", ".join(map(str, decided.guests)) or decided.unlisted or "no guest"
    system.log.say(f"rebooting ({' '.join(one.said for one in decided.reasons)}); this stops: {stops}")
    if trial.state(system) == "running":  # unconfirmed: it is to be started once more
        trial.arm(system, wanted.rollback_after, {})
    is_trial = trial.state(system) == "armed"
    system.files.finish()
    # Last, so that no failure before it keeps others waiting. Each wait may end this run, too.
    system.also_put_back = lambda: _stay_up(system)
    if why := await_cluster(away_seconds=wanted.awaited + wanted.rollback_after) or _await_boot_from_now(
        system, wanted.awaited, is_trial=is_trial
    ):
        raise cluster.refused(why)
    answer = _ordered(system, decided)
    system.also_put_back = None
    return answer


def _ordered(system: System, decided: Planned) -> Answer:
    """Orders it. Nothing that could fail comes after the order: the system goes down under it.

    :raises Failure: it can't be ordered, or it isn't this node's turn any more.
    """
    try:
        owed.note_running(system)
        if lost := turn.lost(system):
            raise cluster.refused(lost)
        for line in owed.news(system):  # no boot keeps it
            system.log.say(f"note: {line}")
        turn.note_restart(system)
        system.files.finish()
        answer = _answer(system, decided)
        done = restart.restart_soon(system)
        if done.status == 0:
            return answer
        why = done.text or f"systemd-run ended with {done.status}"
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    raise Failure(
        "a reboot of this host",
        why,
        "the running kernel lacks what was configured",
        "reboot it by hand, then run `pulumi up` again",
    )


def _await_boot_from_now(system: System, awaited: int, *, is_trial: bool) -> str:
    """The time for which an `up` waits begins here: all that was waited for before took its own."""
    if is_trial and trial.state(system) != "armed":
        return f"the trial of this restart was taken away meanwhile ({trial.NOTE})"
    try:
        trial.await_boot(system, awaited)
    except OSError:
        return f"{trial.NOTE} can't be written"
    return ""


def _stay_up(system: System) -> None:
    """There is no restart after all. Each part for itself: one that fails keeps no other from being put back."""
    acts: list[Callable[[], object]] = [
        lambda: turn.drop_restart(system),
        lambda: owed.drop_restart(system),
        lambda: trial.await_boot(system, 0),
        lambda: turn.end(system, TURN_SECONDS),
    ]
    for act in acts:
        try:
            act()
        except (OSError, Failure) as error:
            system.log.say(
                f"note: not all that was set for a restart of this host could be put back: {in_words(error)}"
            )
