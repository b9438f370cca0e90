"""What is noted of a container that was given cards: /var/lib/homelab/containers/CTID.

Proxmox VE writes a configuration anew whenever it changes something: keys sorted, comments made the description, raw
lxc.* lines last, and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot.
So our lines are found by content, never by place, and what we add is noted before it is added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from remote_scripts.shared import container_conf, guest_tasks, pmxcfs
from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.container_conf import addresses
from remote_scripts.shared.notes import Note, unreadable
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

RECORDS = f"{HOME}/containers"
_CTID = re.compile(r"[1-9][0-9]*")
# How soon after it was noted that a container ran a shutdown is this program's, in seconds: `pct` names no task.
PROMPT_SECONDS = 30


@dataclass(frozen=True)
class RecordedNode:
    """A node that homelab's lines give. `path`, `numbers`: empty: the container was given it and has no line for it,
    since the name that it had is another card's; `address`: the card's; `kind`: which of its nodes it is (card,
    renderD, nvidia); both are empty where it is known by its path; `given`: how it is given: a dev[n] option's words,
    or `mount`.
    """

    path: str
    numbers: str
    address: str
    kind: str
    given: str

    @property
    def key(self) -> str:
        """What stays the same whatever the node is called."""
        return f"{self.address} {self.kind}" if self.address else self.path

    @property
    def lines(self) -> list[str]:
        """The lines by which it is given."""
        if not self.path:
            return []
        return [*mount_lines(self.path, self.numbers)] if self.given == "mount" else [f"dev {self.path},{self.given}"]


def mount_lines(path: str, numbers: str) -> tuple[str, str]:
    """The two lines by which a node is given without a dev[n] option: its rule, and its mount."""
    return (
        f"lxc.cgroup2.devices.allow: c {numbers} rwm",
        f"lxc.mount.entry: {path} {path.lstrip('/')} none bind,optional,create=file",
    )


@dataclass(frozen=True)
class Given:
    """What a container was given. `lines`: each of homelab's: `dev VALUE` (a dev[n] option, whatever its number), or an
    lxc.* line as it stands; `nodes`: that these give; `cards`: what the last run was asked for, None: a run was cut
    short; `groups`: the numbers of the groups inside, where there are cards of other makers.
    """

    lines: tuple[str, ...] = ()
    nodes: tuple[RecordedNode, ...] = ()
    cards: Cards | None = None
    groups: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Before:
    """What was so before a change that waits for a restart. `conf`: the configuration; empty: a user has changed it
    since, and nothing is put back.
    """

    conf: str
    given: Given


@dataclass(frozen=True)
class Ran:
    """That a container is to be started again: since when, in seconds since 1970, in which boot, whether it is off by
    now, and by what it is told from another one of its id.
    """

    at: int
    boot: str
    off: bool
    known: str


@dataclass(frozen=True, kw_only=True)
class Noted:
    """All of it. `guest`: its name in the settings of the last run; `revision`: how often the configuration was changed
    by us; `restart`: is there while the running container still has what was before: by these addresses it is told from
    another one of its id; `after`: the digest of what the configuration became after `before`; `ran`: is there from
    before a shutdown until the start that follows it; `mounted`: a container that is off is looked into.
    """

    given: Given = field(default_factory=Given)
    guest: str = ""
    revision: int = 0
    restart: str | None = None
    before: Before | None = None
    after: str = ""
    ran: Ran | None = None
    mounted: bool = False

    @property
    def in_force(self) -> Noted:
        """The same where the container has what its configuration says."""
        return replace(self, restart=None, before=None, after="")


class Notes:
    """What is noted of one container."""

    def __init__(self, system: System, ctid: int) -> None:
        self._files = system.files
        self._ctid = ctid
        self._note = Note(f"{RECORDS}/{ctid}", Noted)

    def read(self) -> Noted:
        """All of it.

        :raises Failure: it is there, and can't be read.
        """
        try:
            return self._note.read(self._files) or Noted()
        except OSError as error:
            wanted = f"what is noted of container {self._ctid} on this host"
            why = "these notes tell which of the container's lines are this program's; it stays as it is"
            raise unreadable(self._note.path, wanted, why) from error

    def write(self, noted: Noted) -> None:
        """Notes it, on the disk when this returns; or forgets it, where there is nothing to note."""
        if noted == Noted():
            self._files.remove(self._note.path)
        else:
            self._note.write(self._files, noted)

    def change(self, **changes: Any) -> None:
        """Notes these parts anew."""
        self.write(replace(self.read(), **changes))


def noted_containers(system: System) -> list[int]:
    """The containers of which something is noted."""
    return sorted(int(name) for name in system.files.names(RECORDS) if _CTID.fullmatch(name))


def why_not_owed(system: System, ctid: int, ran: Ran) -> str:
    """Why a container that was shut down to be started again, and isn't yet, no longer is to; empty: it is."""
    if not is_same(system, ctid, ran.known):
        return "that this is still the same container isn't certain"

    def is_prompt(task: guest_tasks.Task) -> bool:
        return task.user == "root@pam" and task.start <= ran.at + PROMPT_SECONDS

    return guest_tasks.why_stays_off(system, "vz", ctid, ran.at, ran.boot, is_prompt, off=ran.off)


def is_same(system: System, ctid: int, mac_addresses: str) -> bool:
    """Whether this is still the container that had such addresses. On another node it has no configuration here.

    :raises Failure: its configuration can't be read.
    """
    current = _addresses_now(system, ctid)
    return current is None or container_conf.is_same(mac_addresses, current)


def waits_for_restart(system: System, ctid: int) -> bool:
    """Whether the running container still has what was before. Another one that has its id by now hasn't.

    :raises Failure: what is noted, or its configuration, can't be read.
    """
    earlier = Notes(system, ctid).read().restart
    if earlier is None:
        return False
    current = _addresses_now(system, ctid)
    return not earlier or not current or container_conf.is_same(earlier, current)


def _addresses_now(system: System, ctid: int) -> str | None:
    """Of its network cards; None: on another node it has no configuration here.

    :raises Failure: its configuration can't be read.
    """
    conf = pmxcfs.content_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf")
    return None if conf is None else addresses(conf.decode("utf-8", "replace"))
