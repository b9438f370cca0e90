"""Snapshots and backups of guests over the API: whether one can be made, the one that is there, making it. Decided in homelab/vm/safety.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from homelab.errors import HomelabError, unlocking
from homelab.remote.proxmox.api import Api
from homelab.settings import Container, Vm
from homelab.vm import safety as decided
from homelab.vm.config import strings


@dataclass(frozen=True)
class GuestCopies:
    """A guest's. `guest`: its place in the settings, such as `vms.sandbox`; `kind`: qemu or lxc; `say`: gets the lines of tasks."""

    api: Api
    guest: str
    kind: str
    vmid: int
    say: Callable[[str], None]

    @property
    def _path(self) -> str:
        return f"nodes/{self.api.node}/{self.kind}/{self.vmid}"

    @property
    def _label(self) -> str:
        return decided.label(self.kind, self.vmid)

    # -- snapshots -----------------------------------------------------------------------------------------------
    def against_snapshot(self) -> HomelabError | None:
        """Why the guest can't have one; None: it can.

        :raises ApiError: the API doesn't say.
        """
        wanted = f"to see whether {self._label} can have a snapshot"
        if self.api.get(f"{self._path}/feature", wanted, feature="snapshot").get("hasFeature"):
            return None
        config = strings(self.api.get(f"{self._path}/config", f"to read the configuration of {self._label}"))
        return decided.no_snapshot(self.guest, self.kind, self.vmid, config)

    def snapshot(self, name: str, about: str) -> str:
        """Takes one of that name without RAM, or waits for the one that an earlier run began; its name.

        :raises HomelabError: there can't be one, or it failed, or is half there.
        """
        wanted = f"the snapshot {name} of {self._label}"
        kind = "qmsnapshot" if self.kind == "qemu" else "vzsnapshot"
        self._await(kind, wanted)
        rows = self.api.get(f"{self._path}/snapshot", f"to see the snapshots of {self._label}")
        there = next((row for row in rows if row.get("name") == name), None)
        if there is None:
            if stands := self.against_snapshot():
                raise stands
            seconds = self.api.host.timeouts.create
            asked = {"snapname": name, "description": about}
            self.api.carry_out("post", f"{self._path}/snapshot", wanted, seconds, self.say, kinds=(kind,), **asked)
        elif state := there.get("snapstate"):
            program = "qm" if self.kind == "qemu" else "pct"
            raise HomelabError(
                wanted=wanted,
                found=f"it was begun and never finished (state {state}): the host went down meanwhile, or the task was ended",
                why="the guest isn't changed before there is a complete one, and the incomplete one locks it",
                next=f"{unlocking(self.kind, self.vmid, 'snapshot')}; then `{program} delsnapshot {self.vmid} {name} --force 1`; then run "
                "`pulumi up` again",
            )
        return name

    # -- backups -------------------------------------------------------------------------------------------------
    def against_backup(self, storage: str) -> HomelabError | None:
        """Why none can lie on that storage, or why it would be no way back; None: all is well.

        :raises ApiError: the API doesn't say.
        """
        config = strings(self.api.get(f"{self._path}/config", f"to read the configuration of {self._label}"))
        if stands := decided.no_backup(self.guest, self.kind, self.vmid, config):
            return stands
        rows: list[Mapping[str, object]] = self.api.get(f"nodes/{self.api.node}/storage", "to see the node's storages")
        return decided.no_storage(self.guest, storage, rows)

    def backup(self, name: str, about: str, storage: str) -> str:
        """Makes one whose notes have that name, or waits for the one that an earlier run began; its volume.

        :raises HomelabError: there can't be one, or it failed.
        """
        wanted = f"a backup of {self._label} on {storage}"
        self._await("vzdump", wanted)
        found = self._backup_of(name, storage)
        if found is None:
            if stands := self.against_backup(storage):
                raise stands
            seconds = self.api.host.timeouts.create
            # Live, where it runs. Protected: no job prunes it; `remove`: nor does it prune others.
            asked: dict[str, object] = {
                "vmid": str(self.vmid),
                "storage": storage,
                "mode": "snapshot",
                "compress": "zstd",
            }
            asked |= {"protected": 1, "remove": 0, "notes-template": f"{about} ({name})"}
            path = f"nodes/{self.api.node}/vzdump"
            self.api.carry_out("post", path, wanted, seconds, self.say, kinds=("vzdump",), **asked)
            found = self._backup_of(name, storage)
        if found is None:
            raise HomelabError(
                wanted=wanted,
                found="its task succeeded, but the storage doesn't list it",
                why="the guest isn't changed before its backup is there",
                next=f"see `pvesm list {storage} --vmid {self.vmid}` on the host, then run `pulumi up` again",
            )
        return found

    def _backup_of(self, name: str, storage: str) -> str | None:
        path = f"nodes/{self.api.node}/storage/{storage}/content"
        about = f"to see the backups of {self._label} on {storage}"
        rows = self.api.get(path, about, content="backup", vmid=self.vmid)
        return next((str(row["volid"]) for row in rows if f"({name})" in str(row.get("notes", ""))), None)

    def _await(self, kind: str, wanted: str) -> None:
        """A task of ours that an earlier run left at work goes on by itself: it is waited for, whatever becomes of it."""
        tasks = self.api.tasks(source="active", vmid=self.vmid, typefilter=kind)
        for task in tasks:
            self.say(f"the node is at work on it already, since an earlier run: waiting for that ({task['upid']})")
            self.api.task(str(task["upid"]), wanted, self.api.host.timeouts.create, self.say)


def check(api: Api, guests: Mapping[str, Vm | Container]) -> list[HomelabError]:
    """What stands against the snapshots and backups that are still to be made.

    :param guests: place in the settings -> the guest.
    :raises ApiError: the API doesn't say.
    """
    errors = []
    for place, guest in guests.items():
        kind, vmid = ("qemu", guest.vmid) if isinstance(guest, Vm) else ("lxc", guest.ctid)
        copies = GuestCopies(api, place, kind, vmid, lambda _: None)
        if guest.safety == "snapshot":
            errors.append(copies.against_snapshot())
        elif guest.safety == "backup":
            errors.append(copies.against_backup(guest.backup_storage or ""))
    return [error for error in errors if error is not None]
