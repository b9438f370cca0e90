"""What is noted of a container beside what is noted of any guest (guest_note.py). Pure.

Proxmox VE writes a configuration anew whenever it changes something: keys sorted, comments made the description, raw
lxc.* lines last, and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot.
So our lines are found by content, never by place, and what we add is noted before it is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_scripts.notes.guest_note import Note
from remote_scripts.pve.container_conf import Method


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
