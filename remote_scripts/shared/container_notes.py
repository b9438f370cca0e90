"""What is noted of a container that was given cards: /var/lib/homelab/containers/CTID, a file for each part.

Proxmox VE writes a configuration anew whenever it changes something: keys sorted, comments made the description, raw
lxc.* lines last, and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot.
So our lines are found by content, never by place, and what we add is noted before it is added:

- ours: each of homelab's lines: `dev VALUE` (a dev[n] option, whatever its number), or an lxc.* line as it stands
- wanted: the method, numbers of /dev/nvidiaN, functions; where there are cards of other makers, these and the groups
  inside (`render=104 video=44`)
- nodes: of each node that homelab's lines give: path, numbers, the card's address, which of its nodes it is (card,
  renderD, nvidia; -: it is known by its path), and how it is given (a dev[n] option's words, or `mount`)
- guest: its name in the settings of the last run
- revision: how often the configuration was changed by us
- restart: is there while the running container still has what was before; by its addresses it is told from another one
  of its id
- before: the configuration before the change that waits for a restart; after: the digest of what it became. Empty:
  a user has changed it since, and nothing is put back
- ran: is there from before a shutdown until the start that follows it
- mounted: is there while a container that is off is looked into
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from remote_scripts.shared import container_conf, guest_tasks, pmxcfs
from remote_scripts.shared.container_conf import addresses
from remote_scripts.shared.notes import need
from remote_scripts.tools import disk
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

RECORDS = f"{HOME}/containers"
#: What a change may write, and takes back where nothing came of it.
PARTS = (
    "ours",
    "wanted",
    "nodes",
    "revision",
    "restart",
    "before",
    "after",
    "ours_before",
    "wanted_before",
    "nodes_before",
)
NAME = re.compile(r"[a-z][a-z_]*")
_CTID = re.compile(r"[1-9][0-9]*")
# How soon after it was noted that a container ran a shutdown is this program's, in seconds: `pct` names no task.
PROMPT_SECONDS = 30
_BYTES = 1 << 20


@dataclass(frozen=True)
class Ran:
    """That a container is to be started again: since when, in seconds since 1970 (empty: that isn't noted), in which
    boot, whether it is off by now, and by what it is told from another one of its id.
    """

    at: str
    boot: str
    off: bool
    known: str


class Notes:
    """What is noted of one container."""

    def __init__(self, system: System, ctid: int) -> None:
        self._system, self._files = system, system.files
        self._ctid = ctid
        self.folder = f"{RECORDS}/{ctid}"

    def has(self, name: str) -> bool:
        """Whether that part is there; it may be empty."""
        return self._files.exists(f"{self.folder}/{name}")

    def content(self, name: str) -> bytes:
        """A part's bytes; empty where it isn't there.

        :raises Failure: it is there, and can't be read.
        """
        wanted = f"what is noted of container {self._ctid} on this host"
        why = "these notes tell which of the container's lines are this program's; it stays as it is"
        return need(self._system, f"{self.folder}/{name}", wanted, why, _BYTES)

    def text(self, name: str) -> str:
        """The same as text; bytes that are no UTF-8 are surrogates."""
        return self.content(name).decode("utf-8", "surrogateescape")

    def lines(self, name: str) -> list[str]:
        """A part's lines, but for empty ones."""
        return [line for line in self.text(name).split("\n") if line]

    def parts(self) -> dict[str, bytes]:
        """All that is noted.

        :raises Failure: as of `content`.
        """
        try:
            names = os.listdir(self._files.at(self.folder))
        except FileNotFoundError:
            return {}
        return {name: self.content(name) for name in sorted(filter(NAME.fullmatch, names))}

    def write(self, name: str, text: str | bytes) -> None:
        """Notes it, on the disk when this returns."""
        content = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        where = self._files.at(f"{self.folder}/{name}")
        if self.has(name) and self.content(name) == content:
            disk.flush(where)  # a run that was killed may not have come so far
            disk.flush(where.parent)
            return
        self._files.need_folder(self.folder)
        self._files.write(f"{self.folder}/{name}", content, 0o600)

    def write_lines(self, name: str, lines: Iterable[str]) -> None:
        """The same, a line each."""
        self.write(name, "".join(f"{line}\n" for line in lines))

    def rename(self, name: str, new: str) -> None:
        """A part takes another one's place."""
        self.write(new, self.content(name))
        self.forget(name)

    def forget(self, *names: str) -> None:
        """These parts are noted no more."""
        self._files.remove(*(f"{self.folder}/{name}" for name in names))

    def forget_all(self) -> None:
        """Nothing is noted any more; the folder goes with the end of the run."""
        self.forget(*self._files.names(self.folder))

    def ran(self) -> Ran:
        """The part of that name."""
        return ran_of(self.content("ran"))


def ran_of(content: bytes) -> Ran:
    """What the part `ran` says."""
    words = content.decode("utf-8", "replace").partition("\n")[0].split(None, 3)
    at, boot, off, mac_addresses = [*words, "", "", "", ""][:4]
    return Ran(at if at.isdigit() else "", boot, off == "yes", mac_addresses.strip())


def noted_containers(system: System) -> list[int]:
    """The containers of which something is noted."""
    return sorted(int(name) for name in system.files.names(RECORDS) if _CTID.fullmatch(name))


def why_not_owed(system: System, ctid: int, ran: Ran) -> str:
    """Why a container that was shut down to be started again, and isn't yet, no longer is to; empty: it is."""
    if not ran.at:
        return "when is not noted"
    if not is_same(system, ctid, ran.known):
        return "that this is still the same container isn't certain"
    at = int(ran.at)

    def is_prompt(task: guest_tasks.Task) -> bool:
        return task.user == "root@pam" and task.start <= at + PROMPT_SECONDS

    return guest_tasks.why_stays_off(system, "vz", ctid, at, ran.boot, is_prompt, off=ran.off)


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
    notes = Notes(system, ctid)
    if not notes.has("restart"):
        return False
    earlier, current = notes.text("restart").strip(), _addresses_now(system, ctid)
    return not earlier or not current or container_conf.is_same(earlier, current)


def _addresses_now(system: System, ctid: int) -> str | None:
    """Of its network cards; None: on another node it has no configuration here.

    :raises Failure: its configuration can't be read.
    """
    conf = pmxcfs.content_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf")
    return None if conf is None else addresses(conf.decode("utf-8", "replace"))
