"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts; any host while
nothing is at work on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import activity, ceph, ha, pmxcfs, shutdown_policy, turn
from remote_scripts.shared.pmxcfs import Node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System

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
    """`keep_quorum`: the others mustn't be without one meanwhile; `away_seconds`: for so long this node may be away."""

    keep_quorum: bool
    away_seconds: int


@dataclass(frozen=True)
class Obstacle:
    """Why this node had better not restart now. `kind`: for what runs here (work), for guests that HA would have to
    move (guests), for HA's watchdog on the others (watchdog).
    """

    why: str
    kind: Literal["", "work", "guests", "watchdog"] = ""


def obstacle(system: System, policy: Policy) -> Obstacle | None:
    """Why this node had better not restart now; None: it may. Nothing is changed.

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
    alone = not _has_others(done)
    if why := shutdown_policy.why_not(system, node, alone=alone):
        return Obstacle(why, "guests")
    if alone:
        return None
    if not node.name:
        return Obstacle("/etc/pve isn't there, or doesn't answer (pve-cluster.service)")
    if why := turn.why_not(system, node) or ceph.why_not(system):
        return Obstacle(why)
    return None


def _has_others(pvecm_status: Done) -> bool:
    """Whether the cluster has other nodes that answer."""
    nodes = _VOTES["nodes"].search(pvecm_status.text)
    return not nodes or nodes[1] != "1"


def _obstacle_of_votes(system: System, node: Node, policy: Policy, done: Done) -> Obstacle | None:
    """Of what `pvecm status` says, which ends with 2 where there is no quorum."""
    matches = {name: pattern.search(done.text) for name, pattern in {**_VOTES, "own": _OWN_VOTES}.items()}
    texts = {name: one[1] for name, one in matches.items() if one}
    numbers = {name: int(one) for name, one in texts.items() if one.isdecimal()}
    if len(numbers) < 5:
        return Obstacle(f"`pvecm status` doesn't say which votes the cluster has: {done.in_a_line}")
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


def refused(reason: Obstacle) -> Failure:
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
        return Failure(
            "this node of the cluster restarted",
            reason.why,
            "with `shutdown_policy=migrate` a node restarts once HA has moved all its guests away; it would wait for "
            "this one without an end",
            "shut that guest down, or take it out of HA (`ha-manager remove vm:103`), or set another policy "
            "(Datacenter -> Options -> HA Settings); then run `pulumi up` again",
        )
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
        f"{turn.TURN}",
    )


def take_turn(system: System, policy: Policy, seconds: float) -> Obstacle | None:
    """Takes the node's turn, where it is in a cluster.

    :returns: what is in the way after so many seconds; None: it has it.
    """
    return _wait(system, seconds, lambda: _try_turn(system, policy))


def _try_turn(system: System, policy: Policy) -> Obstacle | None:
    reason = obstacle(system, policy)
    node = pmxcfs.this_node(system)
    if reason or not node.clustered:
        return reason
    why = turn.take(system, node, policy.away_seconds)
    return Obstacle(why) if why else None
