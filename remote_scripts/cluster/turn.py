"""A node's turn to restart while the other nodes of its cluster wait.

TURN is in /etc/pve, which every node has; lines `KEY VALUE`: node, since (for people), until (seconds since 1970). Two
nodes that take it in the same moment both write it; the one whose note is gone is told so before its restart (`lost`).

The turn of another node is over once that node is back and the time has passed. Its `lrm_status` says both: HA's agent
on each node writes it every few seconds while the node has its quorum, also where HA has no guests (PVE::HA::LRM). When
it was written is compared with `until`. Both are by the clock of that node, which may be any: pmxcfs stamps a file with
its writer's.

/run/homelab/ordered: `BOOT SECONDS`, in which boot and when (since 1970) this node's restart was ordered.
"""

from __future__ import annotations

import re
import time

from remote_scripts.pve import pmxcfs
from remote_scripts.pve.pmxcfs import Node
from remote_scripts.tools import notes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System

TURN = f"{pmxcfs.HOMELAB}/turn"
_ORDERED = "/run/homelab/ordered"
# An order that hasn't ended the boot by then isn't carried out any more.
_ORDERED_SECONDS = 900
_GIVE_BACK_SECONDS = 10.0
_TELLS_CLUSTER = "waiting for the cluster: its other nodes are to know that this one is back"
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")


def _noted(system: System) -> dict[str, str]:
    """:raises Failure: it can't be read."""
    return notes.pairs((system.files.need(TURN) or b"").decode("utf-8", "replace"))


def why_not(system: System, node: Node) -> str:
    """Why it isn't this node's turn; empty: no other node has it."""
    try:
        noted = _noted(system)
    except Failure as failure:
        return f"it isn't known which node restarts: {TURN}: {failure.found}"
    other = noted.get("node", "")
    if other in ("", node.name) or _is_over(system, other, noted.get("until", "")):
        return ""
    return f"{other} restarts, since {noted.get('since', '')} ({TURN})"


def take(system: System, node: Node, seconds: int) -> str:
    """Takes it for so long, or takes this node's own one anew.

    :returns: why not; empty: it has it.
    """
    now = int(time.time())
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    text = f"node {node.name}\nsince {since}\nuntil {now + seconds}\n"
    return why_not(system, node) or _write(system, text)


def _is_over(system: System, node: str, until: str) -> bool:
    try:
        seen = pmxcfs.time_of(system, f"{pmxcfs.NODES}/{node}/lrm_status")
    except OSError:
        return False
    return seen is not None and bool(_SECONDS.fullmatch(until)) and seen > int(until)


def _write(system: System, text: str) -> str:
    """Notes a text, nothing where it is empty; why it can't be."""
    try:
        pmxcfs.note(system, TURN, text.encode())
    except OSError as error:
        return f"{TURN} can't be written: {error.strerror or error}"
    return ""


def lost(system: System) -> str:
    """Asked last before the restart: much was waited for since the turn was taken, and a person may have removed it,
    another node taken it, or this host joined a cluster.

    :returns: why it isn't this node's any more; empty: it is, or needs none.
    """
    node = pmxcfs.this_node(system)
    if not node.clustered:
        return ""
    try:
        now = _noted(system).get("node")
    except Failure as failure:
        return f"it isn't known whether it is still this node's turn: {TURN}: {failure.found}"
    if now == node.name:
        return ""
    return f"it isn't this node's turn any more: {TURN} {f'names {now}' if now else 'is gone'}"


def is_ours(system: System) -> bool:
    """Whether this node has it, or that can't be told."""
    node = pmxcfs.this_node(system)
    try:
        return node.clustered and (not node.name or _noted(system).get("node") == node.name)
    except Failure:
        return True


def end(system: System, seconds: float) -> bool:
    """Lets the other nodes restart. (A node that has just started has no quorum for some seconds, and perhaps no
    /etc/pve.)

    :returns: False: the cluster can't be told in this time, or this node's restart is ordered and still to come.
    """
    if is_restart_ordered(system):
        return not is_ours(system)
    return any(_ended(system) for _ in system.work.tries(seconds, _TELLS_CLUSTER))


def _ended(system: System) -> bool:
    """Takes it away where it is this node's, and what a run that was killed has left; False: it can't be, now."""
    node = pmxcfs.this_node(system)
    if not node.clustered or not node.name:
        return not node.clustered
    try:
        if _noted(system).get("node") == node.name:
            return not _write(system, "")
        pmxcfs.tidy(system, TURN)
    except (Failure, OSError):
        return False
    return True


def give_back(system: System) -> None:
    """For `destroy`. Where the cluster can't be told, the turn ends once its time has passed."""
    if not end(system, _GIVE_BACK_SECONDS):
        system.log.say(f"note: the cluster could not be told that this node doesn't restart: rm {TURN}")


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
    if boot != boot_id(system) or not _SECONDS.fullmatch(since):
        return False
    return -60 < int(time.time()) - int(since) < _ORDERED_SECONDS  # a clock that was set back isn't waited for
