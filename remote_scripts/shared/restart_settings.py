"""What is set for the time of a node's restart, and put back when its turn ends (cluster.py). It is noted before it is
set. A timer of the node's own ends the turn where no run does: in this boot, or in the next one.

/var/lib/homelab/away has lines `KEY VALUE`. It is there only while /var/lib/homelab/turn is.
"""

from __future__ import annotations

from remote_scripts.shared import notes
from remote_scripts.shared.own_timer import OwnTimer
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import ASK_SECONDS, Done
from remote_scripts.tools.system import System

NOTE = f"{HOME}/away"
TIMER = OwnTimer(name="homelab-turn", program=f"{HOME}/turn-end", layer="cluster_turn")
_SERVICE_TEXT = """\
# Written by homelab: puts back what was set for this node's restart, if no `pulumi up` has. Gone then.
[Unit]
Description=homelab: end this node's turn to restart
ConditionPathExists=/var/lib/homelab/turn-end
After=network-online.target pve-cluster.service corosync.service
StartLimitIntervalSec=0
RequiresMountsFor=/var/lib/homelab

[Service]
Type=oneshot
Restart=on-failure
RestartSec=60
"""
_TIMER_TEXT = """\
# Written by homelab: see homelab-turn.service.
[Unit]
Description=homelab: wait for the end of this node's turn to restart

[Timer]
# From now on, and from each boot on.
OnActiveSec={seconds}s
AccuracySec=1s
"""


def noted(system: System, key: str) -> str:
    """What is noted; empty: nothing.

    :raises Failure: the note is there and can't be read.
    """
    return _noted(system).get(key, "")


def note(system: System, key: str, value: str) -> None:
    """On the disk when this returns. An empty value: there is nothing of the kind any more.

    :raises OSError: it can't be written.
    :raises Failure: as of `noted`.
    """
    left = {name: text for name, text in {**_noted(system), key: value}.items() if text}
    if left:
        system.files.write(NOTE, "".join(f"{name} {text}\n" for name, text in left.items()).encode(), 0o600)
    else:
        system.files.remove(NOTE)


def _noted(system: System) -> dict[str, str]:
    wanted = "to know what is set for a restart of this node"
    return notes.pairs(
        notes.need(system, NOTE, wanted, "what isn't known can't be put back").decode("utf-8", "replace")
    )


def arm(system: System, seconds: int) -> str | None:
    """The node's own timer ends the turn in so many seconds: this run may be killed before the restart.

    :returns: None, or why it can't be arranged.
    """
    try:
        TIMER.write(system, _SERVICE_TEXT, _TIMER_TEXT.format(seconds=seconds))
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return TIMER.restart(system)


def in_a_line(done: Done) -> str:
    """What a program said that has failed."""
    text = done.all_text[:300]
    return "".join(c if c.isprintable() else " " for c in text) or f"no answer within {ASK_SECONDS:.0f} s"
