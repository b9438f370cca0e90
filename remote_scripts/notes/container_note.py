"""What is noted of a container beside what is noted of any guest (guest_note.py). Pure.

Proxmox VE writes a configuration anew whenever it changes something: keys sorted, comments made the description, raw
lxc.* lines last, and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot.
So our lines are found by content, never by place, and what we add is noted before it is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_scripts.notes.guest_note import Note
from remote_scripts.pve.container_conf import Method
from remote_scripts.tools.errors import Failure


def mount_lines(path: str, numbers: str) -> tuple[str, str]:
    """The two lines by which a node is given without a dev[n] option: its rule, and its mount."""
    return (
        f"lxc.cgroup2.devices.allow: c {numbers} rwm",
        f"lxc.mount.entry: {path} {path.lstrip('/')} none bind,optional,create=file",
    )


@dataclass(frozen=True, kw_only=True)
class Cards:
    """What a container is to have. `method`: how; `minors`: numbers of /dev/nvidiaN; `functions`: addresses of NVIDIA's
    cards' display functions, whose nodes in /dev/dri go along; `cards`: those of other makers, ADDRESS=KIND,…; a kind
    is render, card or kfd.
    """

    method: Method = "device"
    minors: tuple[int, ...] = ()
    functions: tuple[str, ...] = ()
    cards: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a container was given. `cards`: what was asked for; None: nothing; `groups`: of the container, by which that
    was decided; `nodes`: what of the host its lines depend on (container_lines.py), an empty text for
    one that wasn't there at the last boot.
    """

    cards: Cards | None = None
    groups: dict[str, int] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContainerNote(Note):
    """What is noted of a container."""

    text: str = ""
    """Its configuration before this program, whole."""
    given: Given = field(default_factory=Given)
    revision: int = 0
    """How often this program has changed it."""

    def __bool__(self) -> bool:
        return super().__bool__() or self.given != Given()


def refused_to_stack(note: Note, ctid: int, stack: str) -> Failure | None:
    """The refusal of a container that another stack has given its cards: each of the two would take out what the other
    one gives. None: it is free, or this stack's.

    :param stack: PROJECT/STACK.
    """
    others, _, name = note.owner.rpartition("/")
    if others in ("", stack):
        return None
    return Failure(
        f"container {ctid} given its cards",
        f"it has its cards from the stack {others}, as containers.{name}",
        "a container is one stack's; nothing was changed",
        f"take it out of the settings of one of the two, and run `pulumi up` there; if {others} is gone or renamed, "
        f'correct "owner" in /etc/pve/homelab/lxc-{ctid}',
    )
