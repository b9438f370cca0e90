"""A container within one transaction, where it isn't as a VM.

Its lines are written as text, for dev[n] options and lxc.* lines alike; no API takes these, and a device that an option
gives is put into a running container at once, or not at all. Proxmox VE writes the file in its own form once the
container is off, so that its original form is given back at the end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from remote_scripts import installed
from remote_scripts.containers.container_text import edited, sources
from remote_scripts.guests import power
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import LOCK_HELD, LOCK_SECONDS, ChangedMeanwhile, refusal
from remote_scripts.notes.container_note import ContainerNote, Given
from remote_scripts.notes.guest_note import Options
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.api import NodeApi, Refused, Unanswered
from remote_scripts.pve.container_conf import conf_text, options_of
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.guests import is_gone
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_WRITE_SECONDS = 60.0


class Container(Guest):
    """A container; errors as of Guest."""

    kind = CONTAINER
    form = ContainerNote
    note: ContainerNote

    def __init__(self, system: System, api: NodeApi, vmid: int) -> None:
        self._path = f"{pmxcfs.PVE_LXC}/{vmid}.conf"
        #: Of its configuration's file.
        self.text = ""
        #: What it is to have once all of it is in force.
        self.given = Given()
        super().__init__(system, api, vmid)
        self._first_text = self.text
        if self.is_here and power.is_on_again(self):
            self.note = self.note.settled()  # Proxmox VE doesn't say what of a text is in force

    def is_at_rest(self) -> bool:
        """Proxmox VE's hook writes the configuration when the container's processes are gone, and its unit isn't."""
        state = self.system.run.ask("systemctl", "is-active", f"pve-container@{self.vmid}").text
        has_processes = self.system.files.exists(f"/sys/fs/cgroup/lxc/{self.vmid}")
        return state != "deactivating" and (has_processes or state != "active")

    def read(self) -> None:
        """Reads its text anew: what that says is its configuration."""
        conf = conf_text(self.api.answer(f"to read {self._path}", self._read))
        self.text, self.digest, self.config = conf.text, conf.digest, options_of(conf)

    def _read(self) -> str:
        """:raises Unanswered: it isn't there, which says nothing of the container: pmxcfs may have ended."""
        if text := self.system.files.need_text(self._path):
            return text
        raise (Failure if is_gone(self.system, "pct", str(self.vmid)) else Unanswered)(
            f"the configuration {self._path}",
            "it isn't there, or empty",
            "without it nothing is known of the container",
            "see `systemctl status pve-cluster` on the host, then run `pulumi up` again",
        )

    def put(self, options: Options) -> None:
        """Sets options in the text."""
        self._write(edited(self.text, options), f"{self.label} given {', '.join(options)}")

    def needs_restart(self, keys: Collection[str]) -> bool:
        """Whether its text was changed and isn't in force: Proxmox VE knows of no such change; or somebody else's
        change of one of these keys waits."""
        return bool(self.note.before) or super().needs_restart(keys)

    def need_startable(self, change: Options) -> None:
        """:raises Failure: something that its configuration gives it isn't on the host."""
        config = {key: value for key, value in {**self.config, **change}.items() if value is not None}
        if missing := [source for source in sources(config) if not self.system.files.exists(source)]:
            raise Failure(
                f"{self.label} switched off and on for a change",
                f"it wouldn't start: {' '.join(missing)} does not exist on the host",
                "its configuration gives it that; nothing was changed",
                "mend that, or take the line out of its configuration, then run `pulumi up` again",
            )

    def note_of(self, options: Options, change: Options, owner: str) -> ContainerNote:
        """What is noted from before a change to its end."""
        return replace(
            self.note.of_change(self.config, self.devices, options, change, owner),
            text=self.note.text or self._first_text,
            revision=self.note.revision + bool(change),
        )

    def note_after(self, options: Options) -> ContainerNote:
        """What is noted once all of it is in force."""
        return replace(self.note.after_change(options), given=self.given)

    def give_form_back(self) -> None:
        """Its configuration gets its original's text, if Proxmox VE reads the same from both.

        :raises ChangedMeanwhile: somebody else has changed it meanwhile.
        :raises Failure: it can't be written.
        """
        if self.note.text not in ("", self.text):
            self._write(self.note.text, f"{self.label} given its configuration's own form again", "same")

    def _write(self, text: str, wanted: str, *words: str) -> None:
        """Writes the file, and reads it."""
        write_text(self.system, self.vmid, text, self.digest, wanted, *words)
        self.read()


def write_text(system: System, ctid: int, text: str, digest: str, wanted: str, *words: str) -> None:
    """Writes a container's configuration whole, on the disk when this returns.

    :param digest: of what is there.
    :param words: as of files/container_text.pl.
    :raises ChangedMeanwhile: something else is there.
    :raises Refused: it can't be written.
    """
    path = str(system.files.at(f"{pmxcfs.PVE_LXC}/{ctid}.conf"))
    arguments = ("-e", installed.TEXTS["container_text"], str(ctid), path, digest, *words)
    for _ in system.work.tries(LOCK_SECONDS, f"waiting for: {wanted}"):
        content = text.encode("utf-8", "surrogateescape")
        done = system.run.ask("perl", *arguments, stdin=content, seconds=_WRITE_SECONDS)
        found = done.failure("perl")
        if done.status == 0 or not LOCK_HELD.search(found):
            break
    if done.status:
        refused = refusal(ChangedMeanwhile if "changed it meanwhile" in found else Refused, wanted, found)
        unlock = f"once nothing works on it: `pct unlock {ctid}`; then run `pulumi up` again"
        raise refused.but(next=unlock) if "is locked" in found else refused
    pmxcfs.flush(system)
