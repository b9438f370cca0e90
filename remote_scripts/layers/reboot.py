"""Reboots the host if its running kernel lacks what is configured; with the dead man's switch armed before, if that is
in the boot configuration.

Not while a backup, a migration, another task or an installation of packages runs here. In a cluster: not before the
other nodes have their quorum without this one, and no other restarts; the layer cluster_turn ends the turn. Meanwhile
Ceph doesn't replace this node's disks, and HA has its guests on other nodes where that is wanted.

Changes what arms the switch (shared/switch.py); the notes and the timers of the node's turn
(shared/restart_settings.py) and of the guests that ran (shared/guests_to_start.py); /var/lib/homelab/wanted-boot, which
`revert` of the command line takes away; then the host restarts. Undone once the host is back, by the switch or by those
timers otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from remote_scripts.shared import (
    boot,
    cluster,
    guests,
    guests_to_start,
    ha,
    maintenance,
    pmxcfs,
    reboot_required,
    restart,
    switch,
)
from remote_scripts.shared.cluster import Obstacle
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.reboot_required import Boot as Boot
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: For so long the cluster is waited for, each time, and HA may move its guests, whose memory goes over the network; in
#: seconds.
TURN_SECONDS, MOVE_SECONDS = 180, 1800


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`policy`: whether the host is restarted by us; `boot`: what its next boot is to have; `rollback_after`: seconds
    from a boot's start until the dead man's switch checks it; `awaited`: for so many seconds an `up` waits for the
    boot; `keep_quorum`: in a cluster, restart only if the other nodes have a quorum without this one; `maintenance`: HA
    moves its guests away meanwhile.
    """

    policy: Literal["auto", "manual"]
    boot: Boot
    rollback_after: int
    awaited: int
    keep_quorum: bool = True
    maintenance: bool = False


@dataclass(frozen=True, kw_only=True)
class Planned:
    """`reasons`: why; `perhaps`: what would be a reason; `guests`: what a reboot stops; `moves`: what is on other nodes
    meanwhile; `cluster`: why it waits: what runs here, or why the cluster can't do without this node now.
    """

    reboot: Literal["yes", "no", "manual"]
    boot_id: str
    reasons: list[str]
    perhaps: list[str]
    guests: str
    moves: str
    cluster: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer(Planned):
    """`turn`: whether it has a turn in the cluster, which is to end; `armed`: since when the switch is, in seconds
    since 1970, empty: it isn't. An `up` that has armed it anew confirms this boot anew.
    """

    turn: bool
    armed: str


def plan(system: System, wanted: Wanted) -> Planned:
    """The same before the layers were written and after.

    :raises Failure: what decides it can't be read.
    """
    decided = _decide(system, wanted, boot.need_loader(system))[0]
    if decided.reboot != "yes":
        return decided
    obstacle = cluster.obstacle(system, _policy(wanted), planned=True)
    return replace(decided, cluster=obstacle.why if obstacle else "")


def apply(system: System, wanted: Wanted) -> Answer:
    """Orders the restart, and answers before it.

    :raises Failure: it can't be, now; what was set for it is put back.
    """
    asked_by = restart.caller()
    return system.changing(lambda: _apply(system, wanted, asked_by))


def _policy(wanted: Wanted) -> cluster.Policy:
    moving = MOVE_SECONDS if wanted.maintenance else 0
    away = wanted.awaited + wanted.rollback_after + moving
    return cluster.Policy(keep_quorum=wanted.keep_quorum, maintenance=wanted.maintenance, away_seconds=away)


def _decide(system: System, wanted: Wanted, loader: str) -> tuple[Planned, reboot_required.RebootRequired]:
    lacks = reboot_required.check(system, wanted.boot, loader)
    leaving: list[str] = []
    node = pmxcfs.this_node(system)
    if (lacks.reasons or lacks.perhaps) and wanted.maintenance and node.clustered:
        try:
            leaving = ha.services_here(system, node)
        except ha.NoAnswerError:
            leaving = []  # that is said where they are to be moved
    stopped, moves = _name_guests(system, leaving)
    planned = Planned(
        reboot="no" if not lacks.reasons else "manual" if wanted.policy == "manual" else "yes",
        boot_id=need_boot_id(system),
        reasons=lacks.reasons,
        perhaps=lacks.perhaps,
        guests=stopped,
        moves=moves,
    )
    return planned, lacks


def _name_guests(system: System, leaving: list[str]) -> tuple[str, str]:
    """What a reboot stops, and what is on other nodes meanwhile: `VM 103 (Sandbox), container 901 (ai-lab)`."""
    stopped: list[str] = []
    moves: list[str] = []
    for kind, service, program, word in (("vm", "vm", "qm", "VM"), ("lxc", "ct", "pct", "container")):
        running = guests.running(system, kind)
        if running is None:
            stopped.append(f"whatever {word}s are running (`{program} list` gave no answer)")
        for guest in running or ():
            group = moves if f"{service}:{guest.id}" in leaving else stopped
            group.append(f"{word} {guest.id} ({guest.name})")
    return ", ".join(stopped), ", ".join(moves)


def _apply(system: System, wanted: Wanted, asked_by: restart.Caller) -> Answer:
    loader = boot.need_loader(system)
    decided, found = _decide(system, wanted, loader)
    reboot_required.note(system, wanted.boot)
    if decided.reboot == "no":
        system.log.say("no reboot is needed: the running kernel has what is wanted")
        switch.forget_earlier_roll_back(system)
        cluster.end_turn(system, 0)  # of an earlier run; what verifies this boot waits for the cluster
        guests_to_start.drop(system)
    elif decided.reboot == "manual":
        system.log.say(f"a reboot is needed ({' '.join(decided.reasons)}) and left to you")
    else:
        return _reboot(system, wanted, decided, loader, asked_by, of_boot=bool(found.of_boot))
    return _answer(system, decided)


def _answer(system: System, decided: Planned) -> Answer:
    return Answer(**vars(decided), turn=cluster.has_turn(system), armed=switch.armed_since(system))


def _reboot(
    system: System, wanted: Wanted, decided: Planned, loader: str, asked_by: restart.Caller, *, of_boot: bool
) -> Answer:
    if system.files.is_pending("boot"):
        raise Failure(
            "this host restarted with what was configured",
            "the boot configuration was not made after the last change (/var/lib/homelab/pending/boot)",
            "it would start with what was configured before, and be restarted again and again",
            "run `pulumi up --refresh`, which makes it; then this host restarts",
        )
    policy = _policy(wanted)
    if pmxcfs.this_node(system).clustered:
        cluster.lift_noout_of_absent(system)
    if obstacle := cluster.await_cluster(system, policy, TURN_SECONDS):
        raise cluster.refused(system, obstacle)
    moves = f"; on other nodes meanwhile: {decided.moves}" if decided.moves else ""
    system.log.say(f"rebooting ({' '.join(decided.reasons)}); this stops: {decided.guests or 'no guest'}{moves}")
    # Is there anything that a roll-back would give back, and is it new to the next boot? A reboot for NVIDIA's driver
    # alone brings the boot configuration that runs already.
    arms = not switch.is_all_given_back(system) and (of_boot or switch.is_armed(system))
    if arms:
        switch.arm(system, wanted.rollback_after, wanted.awaited, loader)
    system.files.finish()
    # Last, so that no failure before it keeps others waiting. Each wait may end this run, too.
    system.also_put_back = lambda: _stay_up(system)
    obstacle = (
        cluster.take_turn(system, policy, TURN_SECONDS)
        or _move_guests_away(system, policy, asked_by)
        or _await_boot_from_now(system, wanted.awaited, was_armed=arms)
    )
    if obstacle:
        raise _refused(system, obstacle)
    answer = _ordered(system, decided)
    system.also_put_back = None
    return answer


def _ordered(system: System, decided: Planned) -> Answer:
    """Orders it. Nothing that could fail comes after the order: the system goes down under it.

    :raises Failure: it can't be ordered, or it isn't this node's turn any more.
    """
    try:
        why = guests_to_start.note_running(system)
        if not why:
            if lost := cluster.lost_turn(system):
                raise _refused(system, lost)
            cluster.note_restart(system)
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


def _refused(system: System, obstacle: Obstacle) -> Failure:
    """Puts back first, so that what is said then is what is so then."""
    system.also_put_back = None
    _stay_up(system)
    return cluster.refused(system, obstacle)


def _move_guests_away(system: System, policy: cluster.Policy, asked_by: restart.Caller) -> Obstacle | None:
    """Where that is wanted."""
    node = pmxcfs.this_node(system)
    if not policy.maintenance or not node.clustered or not cluster.has_others(system.run.ask("pvecm", "status")):
        return None
    if why := maintenance.enter(system, node, MOVE_SECONDS):
        return Obstacle(why, "guests")
    # That took up to half an hour: the votes, Ceph and what is at work are asked anew.
    if obstacle := cluster.await_cluster(system, policy, TURN_SECONDS):
        return obstacle
    # A restart that no run waits for would be undone by the switch.
    if not asked_by.is_waiting():
        return Obstacle("the `pulumi up` that waited for this host isn't there any more")
    return None


def _await_boot_from_now(system: System, awaited: int, *, was_armed: bool) -> Obstacle | None:
    """The time for which an `up` waits begins here: all that was waited for before took its own."""
    if not switch.is_armed(system):
        gone = "the dead man's switch for this restart was taken away meanwhile (/var/lib/homelab/armed)"
        return Obstacle(gone) if was_armed else None
    try:
        switch.await_boot(system, awaited)
    except OSError:
        return Obstacle("/var/lib/homelab/armed can't be written")
    return None


def _stay_up(system: System) -> None:
    """There is no restart after all. Each part for itself: one that fails keeps no other from being put back."""
    acts: list[Callable[[], object]] = [
        lambda: cluster.drop_restart(system),
        lambda: guests_to_start.drop(system),
        lambda: switch.await_no_boot(system),
        lambda: cluster.end_turn(system, TURN_SECONDS),
    ]
    for act in acts:
        try:
            act()
        except (OSError, Failure) as error:
            reason = error.found if isinstance(error, Failure) else f"{error.filename}: {error.strerror}"
            system.log.say(f"note: not all that was set for a restart of this host could be put back: {reason}")
