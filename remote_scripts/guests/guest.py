"""One guest, within one transaction: what it has, what is noted of it, and its options changed. A VM as it stands here;
of a container the rest is in guests/container.py.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from remote_scripts.guests.requests import GuestApi
from remote_scripts.notes import guest_notes, owed
from remote_scripts.notes.guest_note import Note, Options, is_another
from remote_scripts.pve import guest_conf
from remote_scripts.pve.api import NodeApi, Refused, Unanswered
from remote_scripts.pve.guest_kinds import VM, Kind
from remote_scripts.pve.guests import is_on, place_of
from remote_scripts.pve.properties import same
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

# How long a start or shutdown that is under way is waited for, in seconds; and QEMU's end once its guest is off.
_SWITCH_SECONDS, _END_SECONDS = 180.0, 10.0


class Guest:
    """A guest. One that is on another node, or nowhere, has no configuration here.

    :raises Failure: it can't be read, or is being switched on or off for minutes.
    """

    kind: Kind = VM
    #: Of what is noted of it.
    form: type[Note] = Note

    def __init__(self, system: System, api: NodeApi, vmid: int) -> None:
        self.system, self.vmid, self.label = system, vmid, f"{self.kind.label} {vmid}"
        self.api = GuestApi(system, api, self.kind, vmid)
        #: The node that it is on; empty: there is no such guest, or not the one that is noted.
        self.node, self.is_here = place_of(system, self.kind, vmid)
        #: As its next start takes it.
        self.config: dict[str, str] = {}
        self.digest = ""
        self._noted = self.note = guest_notes.of(system, self.kind, vmid, self.form)
        self.base: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        #: What is owed to it, if anything is.
        self.debt = owed.of(system, self.kind, vmid)
        #: The UPIDs of its starts here, and of all of its tasks when it was last settled.
        self.begun, self.settled = list[str](), list[str]()
        #: Whether it was off when that was last seen, or is being shut down by homelab.
        self.is_off = False
        #: Whether what is noted is of a VM that had this id before.
        self.is_another = False
        if not self.is_here:
            if self.node and self.note:
                there = guest_conf.options_of(system, self.kind, self.node, vmid)
                self.node = "" if is_another(self.note, there) else self.node  # the id may be used again
            return
        self.settle()
        self.read()
        if self.debt and is_another(Note(identity=self.debt.identity), self.config):
            self.debt = None
        if is_another(self.note, self.config):
            self.is_another, self.note = bool(self.note), self.form()
        self.devices = self.api.devices()
        self.base = self.note.base(self.config, self.devices)

    def settle(self) -> None:
        """Waits while somebody, or a run that was killed, switches it: Proxmox VE writes its configuration then."""
        for _ in self.system.work.tries(_SWITCH_SECONDS, f"waiting for: {self.label} switched on or off"):
            tasks = self.api.tasks()
            if all("endtime" in task for task in tasks) and self.is_at_rest():
                self.settled = [task["upid"] for task in tasks]
                return
        raise Failure(
            f"{self.label} on or off",
            f"a task that switches it is at work for more than {_SWITCH_SECONDS:g} s",
            "Proxmox VE writes its configuration at the end of that",
            f"see `{self.kind.program} status {self.vmid}` and its tasks, then run `pulumi up` again",
        )

    def is_at_rest(self) -> bool:
        """Whether nothing is left of an end that no task is at work for any more."""
        return True

    def read(self) -> None:
        """Reads the configuration anew."""
        # Its /config shows a 0 still that is to go at the next start (PVE::AbstractConfig, load_current_config).
        options = self.api.get("/pending", f"to read the configuration of {self.label}")
        stays = [one for one in options if not one.get("delete")]
        self.config = {one["key"]: str(one.get("pending", one.get("value"))) for one in stays}
        self.digest = self.config.pop("digest")

    def write_note(self, note: Note) -> None:
        """Notes it, on the disk when this returns.

        :raises Failure: it can't be noted.
        """
        if note != self._noted and (note or self._noted):
            guest_notes.write(self.system, self.kind, self.vmid, note)
        self._noted = self.note = note

    def give_up(self) -> None:
        """Nothing is owed to it any more. Where that can't be noted, the host's timer sees it."""
        if self.debt:
            with suppress(Failure):
                owed.drop(self.system, self.debt)
        self.debt = None

    def note_of(self, options: Options, change: Options, owner: str) -> Note:
        """What is noted from before a change to its end: Note.of_change."""
        return self.note.of_change(self.config, self.devices, options, change, owner)

    def note_after(self, options: Options) -> Note:
        """What is noted once all of it is in force: Note.after_change."""
        return self.note.after_change(options)

    def status(self) -> dict[str, Any]:
        """What Proxmox VE says of it now."""
        return dict(self.api.get("/status/current", f"to see whether {self.label} runs"))

    def runs(self) -> bool:
        """Whether it is on; a VM may be paused, or halted.

        :raises Failure: the guest is off, and QEMU doesn't end.
        """
        for _ in self.system.work.tries(_END_SECONDS, f"waiting for: QEMU of {self.label} ended"):
            status = self.status()
            if status.get("qmpstatus") != "shutdown":
                self.is_off = not is_on(status)
                return not self.is_off
        raise Failure(
            f"{self.label} off",
            "its guest is off, and QEMU isn't ended",
            "qmeventd ends it then, which seems not to run",
            "see `systemctl status qmeventd` on the host, then run `pulumi up` again",
        )

    def set(self, options: Options) -> None:
        """Sets options by the digest of what was read last; one of None is taken away. Those of a guest that runs may
        wait for its next start.

        :raises ChangedMeanwhile: somebody else has changed the configuration since.
        :raises Failure: it was refused, of which a part may have been done; or nobody answers.
        """
        if not options:
            return
        self.put(options)
        for key, value in options.items():
            self.system.log.say(f"{key} removed" if value is None else f"{key}: {value}" if value else key)

    def put(self, options: Options) -> None:
        """Does that by a request, and reads what became of it. One that gets the value it has waits no more
        (PVE::AbstractConfig, cleanup_pending). Errors as of `set`.
        """
        values = {key: value for key, value in options.items() if value is not None}
        deleted = ",".join(key for key in options if key not in values)
        delete = {"delete": deleted} if deleted else {}
        wanted = f"{self.label} given {', '.join(options)}"
        try:
            self.api.put("/config", wanted, **values, **delete, digest=self.digest)
        except (Refused, Unanswered):  # of its own change only the answer may be lost, or say that another part failed
            self.read()
            if not all(same(key, self.config.get(key), value) for key, value in options.items()):
                raise
        self.read()

    def needs_restart(self, keys: Collection[str]) -> bool:
        """Whether a change of one of these keys waits for its next start."""
        pending = self.api.get("/pending", f"to see what waits for the next start of {self.label}")
        return any(one["key"] in keys and ("pending" in one or one.get("delete")) for one in pending)

    def need_startable(self, change: Options) -> None:
        """:raises Failure: it wouldn't start with that, which Proxmox VE would say too late."""

    def give_form_back(self) -> None:
        """Its configuration has its original's values again: it gets that one's form, where there is a way."""
