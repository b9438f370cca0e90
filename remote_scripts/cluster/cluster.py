"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts; any host while
nothing is at work on it."""

from __future__ import annotations

import re

from remote_scripts.cluster import activity, ceph, ha, turn
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.pmxcfs import Node
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_FIELD = re.compile(r"^(Nodes|Quorate|Total votes|Quorum|Expected votes):\s+(\S+)", re.MULTILINE)
# A row is `NODEID VOTES NAME`, with a QDevice `NODEID VOTES FLAGS NAME`; ` (local)` follows.
_OWN_VOTES = re.compile(r"^\s*\S+\s+(\d+)\s.*\(local\)\s*$", re.MULTILINE)


def obstacle(system: System, *, keep_quorum: bool) -> str:
    """Why this node had better not restart now; empty: it may. Nothing is changed.

    :param keep_quorum: the others mustn't be without one meanwhile.
    :raises Failure: what decides it can't be read.
    """
    node = pmxcfs.this_node(system)
    why = activity.at_work(system, node)
    if why or not node.clustered:
        return why
    done = system.run.ask("pvecm", "status")
    if why := _lacking_votes(system, node, done, keep_quorum=keep_quorum):
        return why
    if dict(_FIELD.findall(done.text)).get("Nodes") == "1":  # no other one answers
        return ""
    if not node.name:
        return "/etc/pve isn't there, or doesn't answer (pve-cluster.service)"
    return turn.why_not(system, node) or ceph.why_not(system)


def _lacking_votes(system: System, node: Node, done: Done, *, keep_quorum: bool) -> str:
    """Of what `pvecm status` says, which ends with 2 where there is no quorum."""
    own = _OWN_VOTES.search(done.text)
    fields = {**dict(_FIELD.findall(done.text)), "own": own[1] if own else ""}
    numbers = {name: int(text) for name, text in fields.items() if text.isdecimal()}
    if len(numbers) < 5:
        return f"`pvecm status` doesn't say which votes the cluster has: {done.in_a_line}"
    needed = f"of {numbers['Expected votes']} votes, and {numbers['Quorum']} are needed"
    if fields.get("Quorate") != "Yes":
        return f"the cluster has no quorum: {numbers['Total votes']} {needed}"
    left = numbers["Total votes"] - numbers["own"]
    if numbers["Nodes"] == 1 or left >= numbers["Quorum"]:
        return ""
    why = f"without this node the cluster has {left} {needed}"
    if keep_quorum:
        return why
    served = ha.needs_watchdog(system, node)
    watchdog = f"; HA has {served}, and its watchdog resets a node that loses its quorum, with all guests"
    return f"{why}{watchdog}" if served else ""


def await_cluster(system: System, seconds: float, *, keep_quorum: bool, away_seconds: int = 0) -> str:
    """Until it can do without this node, which takes some time where another one has just come back.

    :param keep_quorum: as of `obstacle`.
    :param away_seconds: takes the node's turn then for so long, where it is in a cluster; 0: takes none.
    :returns: what is still in the way after so many seconds; empty: nothing.
    """
    why = ""
    for wait in system.work.tries(seconds):
        why, node = obstacle(system, keep_quorum=keep_quorum), pmxcfs.this_node(system)
        if away_seconds and node.clustered and not why:
            why = turn.take(system, node, away_seconds)
        if not why:
            break
        wait.what = f"waiting to restart: {why}"
    return why


def refused(why: str) -> Failure:
    """What a person reads."""
    return Failure(
        "this host restarted",
        why,
        "a restart would cut off what is at work here, such as a backup that is half written, or leave the cluster "
        "without its quorum, or wait for ever for a guest that HA can't move away",
        "wait until that has ended, or end it: `pvenode task list --source active` shows the tasks of this host, "
        "`ha-manager status` what HA does, `pvecm status` and `ceph -s` how the cluster is. Shut guests down that HA "
        "would move away, or move them yourself (`ha-manager migrate vm:103 pve2`). Then run `pulumi up` again. Or "
        "reboot this host by hand when it suits you, then run it. Where the quorum can't be kept (two nodes without a "
        f"QDevice), docs/clusters.md says what helps. If the node that restarts won't ever come back: rm {turn.TURN}",
    )
