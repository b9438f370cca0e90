"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts; any host while
nothing is at work on it.

In the cluster, TURN: lines `KEY VALUE`: node, since, until (seconds since 1970), noout (its disks that have it from
this program). It is changed only under a lock of the cluster's (pmxcfs.take_lock). On this host, /var/lib/homelab/turn:
that it has the turn. It is written first and removed last.

A turn of another node is over when that node is back and the turn has been there for its whole length. Both ends of the
length are by that node's clock, which may be any: pmxcfs stamps a file with its writer's. How long it has been there is
by this node's clock alone, from when it has first seen these very bytes, as pmxcfs does it for its locks
(memdb_lock_expired).

/run/homelab/ordered: `BOOT SECONDS`, in which boot and when (since 1970) this node's restart was ordered.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import activity, ceph, ha, maintenance, notes, pmxcfs, restart_settings
from remote_scripts.shared.kernel import boot_id
from remote_scripts.shared.pmxcfs import Node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System

TURN = "/etc/pve/priv/homelab-reboot"
_TURN_LOCK = "/etc/pve/priv/lock/homelab-reboot"
_OWN = f"{HOME}/turn"
_ORDERED = "/run/homelab/ordered"
# In which second since this node's boot it has first seen another node's turn, and the sum of that.
_SEEN = "/run/homelab/turn-seen"
#: How long the cluster is waited for, in seconds: a node that was verified a moment ago has its vote back within a
#: minute.
TURN_SECONDS = 180.0
# For `destroy`. HA follows within a round of its manager and one of its agent, ten seconds each; monitors of Ceph have
# a quorum some time after a boot.
_GIVE_BACK_SECONDS, _NOTHING_SET_SECONDS = 90.0, 10.0
# The cluster's lock ends by itself after 120 s. A process that was held up for longer than this while it had the lock
# may have it no more, and another node has taken the turn.
_LOCK_HELD_SECONDS = 60.0
# The clock may be set between the moment that the end of a turn is reckoned from and the one in which it is written.
_CLOCK_SECONDS = 60.0
# An order that hasn't ended the boot by then isn't carried out any more.
_ORDERED_SECONDS = 900
_TELLS_CLUSTER = "waiting for the cluster: its other nodes are to know that this one is back"
_SECOND = re.compile(r"[0-9]{1,12}\.[0-9]{2}")
_UNTIL = re.compile(r"[1-9][0-9]{0,11}")
_VOTES = {
    name: re.compile(rf"^{text}:\s+(\S+)", re.MULTILINE)
    for name, text in {
        "nodes": "Nodes",
        "quorate": "Quorate",
        "total": "Total votes",
        "quorum": "Quorum",
        "expected": "Expected votes",
    }.items()
}
# A row is `NODEID VOTES NAME`, with a QDevice `NODEID VOTES FLAGS NAME`; ` (local)` follows.
_OWN_VOTES = re.compile(r"^\s*\S+\s+(\d+)\s.*\(local\)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`keep_quorum`: the others mustn't be without one meanwhile; `maintenance`: HA is to move its guests away;
    `away_seconds`: for so long this node may be away.
    """

    keep_quorum: bool
    maintenance: bool
    away_seconds: int


@dataclass(frozen=True)
class Obstacle:
    """Why this node had better not restart now. `kind`: for what runs here (work), for guests that HA is to move
    (guests), for HA's watchdog on the others (watchdog).
    """

    why: str
    kind: Literal["", "work", "guests", "watchdog"] = ""


@dataclass(frozen=True)
class _Turn:
    """What a node has noted in the cluster. `content`: its bytes; `disks`: that have noout from it."""

    content: bytes
    node: str
    since: str
    until: str
    disks: tuple[str, ...]


def _turn(system: System, path: str = TURN) -> _Turn | None:
    """The turn that is noted; None: there is none.

    :raises Failure: it can't be read.
    """
    content = pmxcfs.content_of(system, path)
    lines = notes.pairs((content or b"").decode("utf-8", "replace"))
    if content is None or not lines.get("node"):
        return None
    since, until, disks = (lines.get(key, "") for key in ("since", "until", "noout"))
    return _Turn(content, lines["node"], since, until, tuple(disks.split()))


# Whether it may restart.


def obstacle(system: System, policy: Policy, *, planned: bool = False) -> Obstacle | None:
    """Why this node had better not restart now; None: it may.

    :param planned: nothing is noted.
    :raises Failure: what decides it can't be read.
    """
    node = pmxcfs.this_node(system)
    if why := activity.at_work(system, node):
        return Obstacle(why, "work")
    if not node.clustered:
        return None
    done = system.run.ask("pvecm", "status")
    if obstacle_of_votes := _obstacle_of_votes(system, node, policy, done):
        return obstacle_of_votes
    if not has_others(done):
        return None
    if not node.name:
        return Obstacle("/etc/pve isn't there, or doesn't answer (pve-cluster.service)")
    if why := _turn_of_another(system, node, planned=planned) or ceph.why_not(system):
        return Obstacle(why)
    if policy.maintenance and (why := maintenance.why_not(system, node)):
        return Obstacle(why, "guests")
    return None


def has_others(pvecm_status: Done) -> bool:
    """Whether the cluster has other nodes that answer."""
    nodes = _VOTES["nodes"].search(pvecm_status.text)
    return not nodes or nodes[1] != "1"


def _obstacle_of_votes(system: System, node: Node, policy: Policy, done: Done) -> Obstacle | None:
    """Of what `pvecm status` says, which ends with 2 where there is no quorum."""
    matches = {name: pattern.search(done.text) for name, pattern in {**_VOTES, "own": _OWN_VOTES}.items()}
    texts = {name: one[1] for name, one in matches.items() if one}
    numbers = {name: int(one) for name, one in texts.items() if one.isdecimal()}
    if len(numbers) < 5:
        return Obstacle(f"`pvecm status` doesn't say which votes the cluster has: {restart_settings.in_a_line(done)}")
    needed = f"of {numbers['expected']} votes, and {numbers['quorum']} are needed"
    if texts.get("quorate") != "Yes":
        return Obstacle(f"the cluster has no quorum: {numbers['total']} {needed}")
    left = numbers["total"] - numbers["own"]
    if numbers["nodes"] == 1 or left >= numbers["quorum"]:
        return None
    why = f"without this node the cluster has {left} {needed}"
    if policy.keep_quorum:
        return Obstacle(why)
    served = ha.needs_watchdog(system, node)
    if served:
        why += f"; HA has {served}, and its watchdog resets a node that loses its quorum, with all guests"
        return Obstacle(why, "watchdog")
    return None


def _turn_of_another(system: System, node: Node, *, planned: bool = False) -> str:
    """Why it isn't this node's turn; empty: no other node has it. The turn of a node that is back is over once it has
    been there for its time; that of one which isn't back stays.
    """
    try:
        turn = _turn(system)
    except Failure as failure:
        return f"it isn't known which node restarts: {TURN}: {failure.found}"
    if turn is None or turn.node == node.name:
        if not planned:
            system.files.remove(_SEEN)
        return ""
    left = _seconds_left(system, turn, planned=planned)
    if left is not None and left <= 0 and _is_member(system, turn.node):
        return ""
    why = f"{turn.node} restarts, since {turn.since} ({TURN})"
    return why if left is None or left <= 0 else f"{why}; once it is back, that counts for {left:.0f} s more at most"


def _seconds_left(system: System, turn: _Turn, *, planned: bool) -> float | None:
    """Of another node's turn, for which it counts still; None: it has no end."""
    try:
        written = pmxcfs.time_of(system, TURN)
    except OSError:
        return None
    if written is None or not _UNTIL.fullmatch(turn.until):
        return None
    return int(turn.until) - written - _seen_for(system, turn.content, written, planned=planned)


def _seen_for(system: System, content: bytes, written: float, *, planned: bool) -> float:
    """How long this node has seen the same turn, in seconds. Its clock goes on in sleep, is never set, and begins
    with its boot, as the note does.
    """
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    mark = hashlib.sha256(f"{written} ".encode() + content).hexdigest()
    since, _, seen = system.files.line(_SEEN).partition(" ")
    if seen == mark and _SECOND.fullmatch(since) and float(since) <= now:
        return now - float(since)
    if not planned:
        system.files.write(_SEEN, f"{now:.2f} {mark}\n".encode(), 0o600)
    return 0.0


def _is_member(system: System, name: str) -> bool | None:
    """Whether a node is back; None: it can't be told."""
    done = system.run.ask("pvecm", "nodes")
    if done.status != 0:
        return None
    rows = [line.removesuffix("(local)").split() for line in map(str.rstrip, done.text.split("\n"))]
    return any(len(row) > 2 and row[0].isdecimal() and row[-1] == name for row in rows)


def await_cluster(system: System, policy: Policy, seconds: float) -> Obstacle | None:
    """Until it can do without this node, which takes some time where another one has just come back.

    :returns: what is still in the way; None: nothing.
    """
    return _wait(system, seconds, lambda: obstacle(system, policy))


def _wait(system: System, seconds: float, ask: Callable[[], Obstacle | None]) -> Obstacle | None:
    reason = None
    for wait in system.work.tries(seconds):
        reason = ask()
        if reason is None:
            break
        wait.what = f"waiting to restart: {reason.why}"
    return reason


def refused(system: System, reason: Obstacle) -> Failure:
    """What a person reads."""
    if reason.kind == "work":
        return Failure(
            "this host restarted",
            reason.why,
            "a restart would cut it off: a backup that is half written, a guest that is on neither node, packages that "
            "are half configured",
            "wait until it has ended, or end it (`pvenode task list --source active` shows the tasks of this host, "
            "`ha-manager status` what HA does), then run `pulumi up` again. Or reboot this host by hand when it suits "
            "you, then run it",
        )
    if reason.kind == "guests":
        return maintenance.refused(system, reason.why)
    if reason.kind == "watchdog":
        return Failure(
            "this node of the cluster restarted",
            reason.why,
            "allowQuorumLoss permits that the others have no quorum for a while; it permits no reset of them",
            "give the cluster a QDevice; or stop these guests (`ha-manager set vm:103 --state stopped`) or take them "
            "out of HA (`ha-manager remove vm:103`) until HA is idle (`ha-manager status`); or, on Proxmox VE 9.2, "
            "disarm HA meanwhile (`ha-manager crm-command disarm-ha ignore`); then run `pulumi up` again",
        )
    return Failure(
        "this node of the cluster restarted",
        reason.why,
        "the nodes of a cluster restart one at a time, while the others go on with a quorum",
        "look at `pvecm status`, and at `ceph -s` where it is Ceph; when the others are well, run `pulumi up` again. "
        "Or reboot this host by hand when it suits you, then run it. Where the quorum can't be kept (two nodes without "
        "a QDevice), hosts.NAME.allowQuorumLoss permits it. If the node that restarts won't ever come back: rm "
        f"{TURN}",
    )


# Its turn.


def take_turn(system: System, policy: Policy, seconds: float) -> Obstacle | None:
    """Takes the node's turn, where it is in a cluster; what was set is put back where it doesn't get it.

    :returns: what is in the way after so many seconds; None: it has it.
    """
    reason = _wait(system, seconds, lambda: _try_turn(system, policy))
    if reason is None:
        return None
    try:
        end_turn(system, 0)
    except OSError as error:  # such as where it can't be noted either; the node's own timer goes on
        system.log.say(f"note: {error.filename}: {error.strerror}: {still_set(system)}")
    return reason


def _try_turn(system: System, policy: Policy) -> Obstacle | None:
    reason = obstacle(system, policy)
    node = pmxcfs.this_node(system)
    if reason or not node.clustered:
        return reason
    if not pmxcfs.take_lock(system, _TURN_LOCK):
        return Obstacle(f"another node holds {_TURN_LOCK}, or nothing can be written in /etc/pve")
    until = _lock_ends()
    try:
        # Again, now that no other node can take it.
        why = _turn_of_another(system, node) or _note_turn(system, policy, node, until)
    except OSError:
        why = f"{TURN}, or {_OWN}, can't be written"
    finally:
        pmxcfs.free_lock(system, _TURN_LOCK, until)
    why = why or ceph.keep_disks(system)
    return Obstacle(why) if why else None


def _lock_ends() -> float:
    """Of the cluster's lock, which was taken this moment, by CLOCK_BOOTTIME: until then it is surely this node's."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) + _LOCK_HELD_SECONDS


def _note_turn(system: System, policy: Policy, node: Node, until: float) -> str:
    """Why it can't be noted; empty: it is, on this host and in the cluster.

    :param until: as of `_lock_ends`.
    :raises OSError: so it is.
    """
    files = system.files
    files.need_folder(HOME)
    files.write(_OWN, f"boot {boot_id(system)}\n".encode(), 0o600)
    # Before anything is set: the turn itself ends where its `up` was killed.
    if why := restart_settings.arm(system, policy.away_seconds):
        return f"the end of this node's turn can't be arranged on this host: {why}"
    if has_others(system.run.ask("pvecm", "status")) and (why := ceph.note_disks(system)):
        return why
    now = int(time.time())
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    noout = restart_settings.noted(system, "noout")
    text = f"node {node.name}\nsince {since}\nuntil {now + policy.away_seconds}\n" + (
        f"noout {noout}\n" if noout else ""
    )
    try:
        pmxcfs.write(system, TURN, text.encode(), until)
    except TimeoutError:
        return f"what this node has to note took so long that another one may have {_TURN_LOCK} by now"
    if pmxcfs.content_of(system, TURN) != text.encode():
        return f"{TURN} isn't what this node has written there"
    written = pmxcfs.time_of(system, TURN)
    if written is None or abs(written - now) > _CLOCK_SECONDS:
        return f"the clock of this node was set while {TURN} was written, and the others would not know when that ends"
    return ""


def lost_turn(system: System) -> Obstacle | None:
    """Asked last before the restart: much was waited for since the turn was taken, and a person may have removed it,
    another node taken it, or this host joined a cluster; None: it is this node's, or needs none.
    """
    node = pmxcfs.this_node(system)
    if not node.clustered:
        return None
    try:
        turn = _turn(system)
    except Failure as failure:
        return Obstacle(f"it isn't known whether it is still this node's turn: {TURN}: {failure.found}")
    if turn and turn.node == node.name:
        return None
    return Obstacle(f"it isn't this node's turn any more: {TURN} {f'names {turn.node}' if turn else 'is gone'}")


def lacks_quorum(system: System) -> bool:
    """Whether nothing in /etc/pve can be changed now, such as by a guest's start; also where that can't be told."""
    if not pmxcfs.this_node(system).clustered:
        return False
    quorate = _VOTES["quorate"].search(system.run.ask("pvecm", "status").text)
    return not quorate or quorate[1] != "Yes"


def has_turn(system: System) -> bool:
    """Whether this node has it, or is to put back what was set for it."""
    return system.files.exists(_OWN)


def note_restart(system: System) -> None:
    """Before the restart is ordered. The next boot knows nothing of it.

    :raises OSError: it can't be noted.
    """
    boot = boot_id(system)
    system.files.write(_ORDERED, f"{boot} {int(time.time())}\n".encode(), 0o644)


def drop_restart(system: System) -> None:
    """There is none after all."""
    system.files.remove(_ORDERED)


def is_restart_ordered(system: System) -> bool:
    """Whether this node's restart is ordered and still to come: guests would come back to a node that goes away, and
    another node would restart beside it.
    """
    boot, _, since = system.files.line(_ORDERED).partition(" ")
    if boot != boot_id(system) or not _UNTIL.fullmatch(since):
        return False
    return -60 < int(time.time()) - int(since) < _ORDERED_SECONDS  # a clock that was set back isn't waited for


def end_turn(system: System, seconds: float, return_seconds: float = 0, *, itself: bool = False) -> bool:
    """Puts back what was set for the restart, and lets the others restart. (A node that has just started has no quorum
    for some seconds, and perhaps no /etc/pve.)

    :param return_seconds: for so long guests that HA brings back are waited for.
    :param itself: the node's own timer does it.
    :returns: False: not all of it could be in this time.
    :raises Failure: what is set can't be told.
    """
    if not has_turn(system):
        return True
    if is_restart_ordered(system):
        return False
    for _ in system.work.tries(seconds, _TELLS_CLUSTER):
        if _is_over(system):
            break
    else:
        return False
    maintenance.await_services(system, pmxcfs.this_node(system), return_seconds)
    restart_settings.TIMER.remove(system, itself=itself)
    system.files.remove(_OWN)
    return True


def _is_over(system: System) -> bool:
    """Each part for itself: one that fails keeps no other from being put back."""
    left, let_go = _is_put_back(system, maintenance.leave), _is_put_back(system, ceph.let_disks_go)
    node = pmxcfs.this_node(system)
    if not left or not let_go or not node.name:
        return False
    try:
        own = [path for path in (TURN, f"{TURN}.new") if _is_own(system, node, path)]
        if not own:
            return True
        if not pmxcfs.take_lock(system, _TURN_LOCK):
            return False
        until = _lock_ends()
        try:
            for path in own:
                if _is_own(system, node, path):  # another node's by now
                    pmxcfs.remove(system, path)
        finally:
            pmxcfs.free_lock(system, _TURN_LOCK, until)
    except (OSError, Failure):  # it doesn't answer, or there is no quorum
        return False
    return True


def _is_put_back(system: System, put_back: Callable[[System], bool]) -> bool:
    """False also where it can't be noted on this host that it isn't set any more, such as on a full disk."""
    try:
        return put_back(system)
    except OSError:
        return False


def _is_own(system: System, node: Node, path: str) -> bool:
    turn = _turn(system, path)
    return turn is not None and turn.node == node.name


def still_set(system: System) -> str:
    """In words, with the commands that put it back."""
    words = [f"no node of the cluster restarts: rm {TURN}"]
    with suppress(Failure):
        if noout := restart_settings.noted(system, "noout"):
            words.append(f"Ceph replaces none of these disks: ceph osd rm-noout {noout}")
        if name := restart_settings.noted(system, "maintenance"):
            words.append(f"HA keeps its guests away: ha-manager crm-command node-maintenance disable {name}")
    return "; ".join(words)


def give_turn_back(system: System) -> None:
    """For `destroy`: now, or the node's own timer does it. Nothing that is still set is forgotten.

    :raises Failure: it is still set, and nothing here would go on with it.
    """
    files = system.files
    if end_turn(system, _GIVE_BACK_SECONDS if files.exists(restart_settings.NOTE) else _NOTHING_SET_SECONDS):
        return
    files.finish()
    if restart_settings.TIMER.is_whole(system):
        system.log.say(
            "note: the node goes on by itself (homelab-turn.service), and takes that away when it is done; until then "
            f"{still_set(system)}"
        )
        restart_settings.TIMER.start_now(system)
        return
    if files.exists(restart_settings.NOTE):
        raise Failure(
            "what was set for this node's restart put back",
            f"not all of it could be: {still_set(system)}",
            "it would stay set for ever",
            "see why the cluster doesn't take it (`pvecm status`, `ceph -s`, `ha-manager status`), then run "
            "`pulumi destroy` again",
        )
    system.log.say(f"note: the cluster could not be told that this node doesn't restart: {still_set(system)}")
    files.remove(_OWN)


# Another node that had its turn and hasn't come back.

Lifted = Literal["yes", "no", "none"]


def lift_noout(system: System, name: str) -> Lifted:
    """It isn't known whether that node will ever come back: Ceph is to replace its disks. Its turn stays.

    :returns: none: there is nothing to lift; no: it couldn't be, or can't be told.
    """
    try:
        turn = _turn(system)
    except Failure:
        return "no"
    if turn is None:
        return "none" if pmxcfs.this_node(system).name else "no"
    disks = turn.disks
    if turn.node != name or not disks or not all(map(str.isdecimal, disks)):
        return "none"
    is_back = _is_member(system, name)
    if is_back is not False:
        return "none" if is_back else "no"
    if ceph.allow_replacement(system, disks):
        system.log.say(f"{name} isn't back: Ceph replaces its disks {' '.join(disks)} again (noout is unset)")
        return "yes"
    system.log.say(
        f"note: {name} isn't back, and its disks {' '.join(disks)} still have Ceph's noout: ceph osd rm-noout "
        f"{' '.join(disks)}"
    )
    return "no"


def lift_noout_of_absent(system: System) -> None:
    """Of the node that has the turn, once that has been there for its time."""
    try:
        turn = _turn(system)
    except Failure:
        return  # the process that takes the turn says so
    if turn is None or turn.node == pmxcfs.this_node(system).name:
        return
    left = _seconds_left(system, turn, planned=False)
    if left is not None and left <= 0:
        lift_noout(system, turn.node)
