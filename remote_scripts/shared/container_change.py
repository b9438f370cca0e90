"""A container's configuration brought to what is planned: read, planned and written again until it was not changed
in between. It is written whole, under the digest of what was read: whatever others have written meanwhile is read
anew.
"""

from __future__ import annotations

import errno
import itertools
import re
from dataclasses import replace
from pathlib import Path

from remote_scripts.shared import card_nodes, container_groups, container_lines, pmxcfs
from remote_scripts.shared.card_nodes import Cards, Nodes
from remote_scripts.shared.container_conf import ConfText, addresses, conf_text
from remote_scripts.shared.container_lines import Change
from remote_scripts.shared.container_needs import need_container, need_open_nodes, not_lasting
from remote_scripts.shared.container_notes import Before, Given, Noted, Notes, waits_for_restart
from remote_scripts.shared.container_power import Power
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.state import file_lock
from remote_scripts.tools.system import System

#: How long the lock of a configuration's file is waited for, in seconds.
CONF_LOCK_SECONDS = 10.0
_GUESTS_SECONDS = 300.0
# As pct says it: by its own check, or since pmxcfs refuses the file that would replace a configuration.
_READ_ONLY = re.compile(r"no quorum|\.conf\.tmp\..*(?:Permission denied|Read-only file system)")
_AGAIN = ("detected modified configuration", "got timeout")
_LOCKED = ("got timeout", "held by another process")


class QuorumFailure(Failure):
    """Nothing in /etc/pve can be changed for now."""


class ConfigChange:
    """One container's configuration, within one run that has the host's lock.

    :param cards: what it is to have; None: homelab's lines follow their nodes (container_lines.follow).
    """

    def __init__(self, system: System, ctid: int, power: Power, cards: Cards | None) -> None:
        self._system = system
        self._ctid = ctid
        self._power = power
        self._cards = cards
        self._groups: dict[str, int] = {}
        self._message = ""
        self._is_read_only = False
        self._path = f"{pmxcfs.PVE_LXC}/{ctid}.conf"
        self.notes = Notes(system, ctid)
        #: Whether the configuration was changed.
        self.changed = False
        self._noted = Noted()

    def apply(self, *, look_inside: bool = True) -> Change:
        """Brings the configuration to what it is to be; returns the last plan, which changes nothing.

        :param look_inside: for the groups; otherwise they are as they were noted.
        :raises Failure: that isn't possible; where it was not changed, what is noted is as it was.
        """
        nodes = self._prepared(look_inside=look_inside)
        self._check_original()
        conf, change = self._written(nodes)
        if self.changed:
            # pmxcfs answers before its database is on the disk.
            self._system.files.flush_all()
            # It may have been started meanwhile, with what was before.
            self._note_restart(conf)
        self._keep(change)
        if waits_for_restart(self._system, self._ctid):
            self.notes.change(after=conf.digest)
        else:
            self.mark_in_force()  # it is off: its next start takes what is there
        return change

    def _prepared(self, *, look_inside: bool) -> Nodes:
        """What was left half-way is out of the way; the nodes, all of which are there."""
        need_container(self._system, self._ctid)
        self._unmount()
        self._wait_for_guests()
        self._noted = self.notes.read()
        nodes = Nodes((), ())
        if self._cards is not None:
            nodes = card_nodes.nodes_of(self._system, self._cards)
            card_nodes.need(self._system, self._ctid, self._cards, nodes)
            if self._cards.cards:
                self._find_groups(look_inside=look_inside and self._cards.method == "device")
        if pmxcfs.has_left(self._system, self._path):
            with file_lock(self._lock, CONF_LOCK_SECONDS) as locked:
                if locked:
                    pmxcfs.remove_left(self._system, self._path)
        return nodes

    def _written(self, nodes: Nodes) -> tuple[ConfText, Change]:
        """Writes until nothing is to be changed any more; what there is then, and its plan."""
        for tries in itertools.count():
            conf = self._conf()
            change = self._plan(conf)
            if not change.is_any:
                return conf, change
            _need_changeable(self._ctid, conf, change)
            if self._cards is not None:
                others = container_lines.find_own_lines(conf, self.notes).others
                need_open_nodes(self._system, self._ctid, self._cards, others, nodes)
            # Each try has waited ten seconds for the lock: for a minute at least.
            if tries >= (7 if any(words in self._message for words in _LOCKED) else 5):
                break
            self._note_change(conf, change)
            self._message, self._is_read_only = "", False
            if self._write_devices(conf, change) and self._write_lines(conf, change):
                self.changed = True  # and once more round: what was written is read
                continue
            self._need_quorum()
            self._forget_original()
            self._system.log.say(
                f"the configuration of container {self._ctid} was changed from elsewhere, or is being changed: reading "
                "it again"
            )
        self._forget_change()
        raise Failure(
            f"the configuration of container {self._ctid} changed",
            self._message or "it was changed from elsewhere five times meanwhile",
            "writing now could lose another change",
            "see who changes it, then run `pulumi up` again",
        )

    def planned(self) -> Change:
        """What `apply` would change, as it is now.

        :raises Failure: there is no such container, what is noted of it can't be read, or the next start would change
            homelab's lines.
        """
        return self._plan(self._conf())

    def mark_in_force(self) -> None:
        """The running container, or the one that is off, has what its configuration says."""
        self.notes.write(self.notes.read().in_force)

    def restore_original(self) -> bool:
        """The container won't go off, so that it runs on as it was: its configuration says what it runs with, too, if
        it was not changed since; whether it does.
        """
        noted, conf = self.notes.read(), self._conf()
        before = noted.before
        if not before or not before.conf or conf.digest != noted.after:
            return False
        with file_lock(self._lock, CONF_LOCK_SECONDS) as locked:
            if not locked or self._conf().digest != conf.digest:
                return False
            try:
                pmxcfs.replace(self._system, self._path, before.conf.encode("utf-8", "surrogateescape"))
            except OSError:
                # What is noted stays: the next run brings the container to what is written.
                return False
        self._system.files.flush_all()
        if before.given.cards:
            self.notes.write(replace(noted.in_force, given=before.given))
        else:
            self.notes.write(Noted(ran=noted.ran, mounted=noted.mounted))
        return True

    @property
    def _lock(self) -> Path:
        return self._system.files.at(f"/run/lock/lxc/pve-config-{self._ctid}.lock")

    def _conf(self) -> ConfText:
        content = pmxcfs.content_of(self._system, self._path)
        if content is None:
            need_container(self._system, self._ctid)
        return conf_text(content or b"")

    def _plan(self, conf: ConfText) -> Change:
        if self._cards is None:
            own = container_lines.find_own_lines(conf, self.notes)
            change = container_lines.follow(self._system, own, self.notes.read().given.nodes)
        else:
            change = container_lines.plan(self._system, conf, self.notes, self._cards, self._groups)
        if not container_lines.lasts(conf, self.notes.read().given.lines, change.want):
            raise not_lasting(self._ctid)
        return change

    # What is noted.

    def _check_original(self) -> None:
        """Once: if the configuration isn't what an earlier run left (`after`), a user has changed it since, or that
        run was cut short. What was before it would take the change away.
        """
        noted = self.notes.read()
        if noted.before and noted.before.conf and self._conf().digest != noted.after:
            self._forget_original()

    def _forget_original(self) -> None:
        """Until the configuration is in force: an empty one is never put back, and none is noted in its place."""
        before = self.notes.read().before
        self.notes.change(before=Before("", before.given if before else Given()))

    def _note_change(self, conf: ConfText, change: Change) -> None:
        """Before anything is written: all lines that may be homelab's afterwards, whatever happens in between."""
        noted = self.notes.read()
        lines = tuple(dict.fromkeys([*noted.given.lines, *change.want]))
        nodes = tuple(dict.fromkeys([*noted.given.nodes, *change.nodes]))
        self.notes.change(
            given=replace(noted.given, lines=lines, nodes=nodes),
            before=noted.before or Before(conf.content.decode("utf-8", "surrogateescape"), noted.given),
            revision=noted.revision + 1,
        )
        self._note_restart(conf)

    def _note_restart(self, conf: ConfText) -> None:
        if self._power.is_up():
            self.notes.change(restart=addresses(conf.text))

    def _forget_change(self) -> None:
        """Where nothing was written: the record is what it was when this run began. A run that was killed, or stands
        before a lock, may have come half-way.
        """
        own = container_lines.find_own_lines(self._conf(), self.notes)
        if self.changed or not own.lines <= {*self._noted.given.lines}:
            return
        self.notes.write(replace(self._noted, mounted=self.notes.read().mounted))

    def _keep(self, change: Change) -> None:
        given = replace(self.notes.read().given, lines=change.want, nodes=change.nodes)
        if self._cards is not None:  # at a boot what is wanted is as it was
            given = replace(given, cards=self._cards, groups=self._groups)
        self.notes.change(given=given)

    # What is written.

    def _write_devices(self, conf: ConfText, change: Change) -> bool:
        """dev[n] options through pct, which alone may: it checks them, and gives them to a running container if it can.
        Whether it was done, and not changed meanwhile.
        """
        arguments: list[str] = []
        for key in change.drop_devices:
            self._system.log.say(f"{key} goes: {conf.devices[key]}")
        if change.drop_devices:
            arguments += ["--delete", ",".join(change.drop_devices)]
        number = 0
        for value in change.add_devices:
            # A number that is to go is free only once it has gone.
            while f"dev{number}" in conf.devices or f"\ndev{number}:" in f"\n{conf.text}":
                number += 1
            arguments += [f"--dev{number}", value]
            self._system.log.say(f"dev{number}: {value}")
            number += 1
        if not arguments:
            return True
        done = self._system.run.do("pct", "set", str(self._ctid), "--digest", conf.digest, *arguments)
        self._message = done.text
        if done.status == 0:
            return True
        self._is_read_only = bool(_READ_ONLY.search(done.text))
        # Changed meanwhile, or the file is locked: that passes. Anything else stays.
        if any(words in self._message for words in _AGAIN):
            return False
        self._need_quorum()
        self._forget_change()
        # Since Proxmox VE 9, of one that runs.
        off = f"shut it down (`pct shutdown {self._ctid}`)" if "unable to hotplug" in self._message else ""
        raise Failure(
            f"container {self._ctid} given its devices: pct set {' '.join(arguments)}",
            self._message or f"it ended with status {done.status}",
            "its configuration is unchanged"
            if self._conf().digest == conf.digest
            else "it is half done, and noted: a run goes on from there",
            f"{off or 'correct what pct says'}, then run `pulumi up` again",
        )

    def _write_lines(self, conf: ConfText, change: Change) -> bool:
        """Raw lines, by the file: no API takes them. Under the lock of Proxmox VE's own writers, and as it was read."""
        if (change.add_devices or change.drop_devices) and (change.add_raw or change.drop_raw):
            conf = self._conf()  # pct has written the file anew
            change = self._plan(conf)
        if not change.add_raw and not change.drop_raw:
            return True
        text = _with_lines(conf, change)
        for line in change.add_raw:
            self._system.log.say(line)
        with file_lock(self._lock, CONF_LOCK_SECONDS) as locked:
            if not locked:
                self._message = f"/run/lock/lxc/pve-config-{self._ctid}.lock is held by another process"
                return False
            if self._conf().text != conf.text:
                return False
            try:
                pmxcfs.replace(self._system, self._path, text.encode("utf-8", "surrogateescape"))
            except OSError as error:
                self._message = f"{self._path}: {error.strerror or error}"
                self._is_read_only = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                return False
        return True

    def _need_quorum(self) -> None:
        """Where /etc/pve can only be read nothing was changed, and trying again is of no use.

        :raises QuorumFailure: so it is.
        """
        if not self._is_read_only:
            return
        self._forget_change()
        last = self._message.rpartition("\n")[2]
        raise QuorumFailure(
            f"the configuration of container {self._ctid} written",
            f"{last if last.endswith('no quorum') else f'{last}: no quorum'}{self._offline_nodes()}",
            "without a quorum /etc/pve can only be read: nothing can be changed or started; the container runs on as "
            "it was",
            "see `pvecm status`; bring the missing nodes back, or wait until they are, then run `pulumi up` again",
        )

    def _offline_nodes(self) -> str:
        members = self._system.files.text("/etc/pve/.members")
        silent = re.findall(r'"([^"]+)": *\{[^{}]*"online": *0', members)
        return f"; these nodes of the cluster don't answer: {' '.join(silent)}" if silent else ""

    # What is looked at before.

    def _wait_for_guests(self) -> None:
        """Until those that start with the host have been started: one that starts while its configuration is written
        would run with what was before, unnoticed.
        """
        if self._system.work.lock is None:  # the lock's holder may be such a start
            return
        for _ in self._system.work.tries(_GUESTS_SECONDS, "waiting for the guests that start with the host"):
            if self._system.run.ask("systemctl", "is-active", "pve-guests.service").text != "activating":
                return

    def _find_groups(self, *, look_inside: bool) -> None:
        """As of container_groups.groups_of.

        :raises Failure: a container that runs doesn't tell them.
        """
        noted = container_lines.noted_groups(self.notes)
        self._groups = noted or {}
        if look_inside:
            is_up, conf = self._power.is_up(), self._conf()
            self._groups = container_groups.groups_of(self._system, self._ctid, conf, noted, self._mark, is_up=is_up)

    def _mark(self, mounted: bool) -> None:
        self.notes.change(mounted=mounted)

    def _unmount(self) -> None:
        if self.notes.read().mounted:
            container_groups.unmount(self._system, self._ctid, self._mark)


def _need_changeable(ctid: int, conf: ConfText, change: Change) -> None:
    lock = conf.conf.options.get("lock")
    if lock:
        raise Failure(
            f"container {ctid} free to be changed",
            f"it is locked: {lock}",
            "something else works on it now (a backup, a snapshot, a migration); its configuration is unchanged",
            f"wait until that is done; a lock that was left behind: `pct unlock {ctid}`; then run `pulumi up` again",
        )
    # A container made of it gets it back without homelab's lines.
    if conf.conf.is_template and change.want:
        raise Failure(
            f"container {ctid}",
            "it is a template, which never runs",
            "its configuration is unchanged",
            "name a container",
        )


def _with_lines(conf: ConfText, change: Change) -> str:
    """The configuration with its new lines after the last one that isn't empty, where Proxmox VE has raw lines."""
    lines = [line for place, line in enumerate(conf.head) if place not in change.drop_raw]
    last = max((place for place, line in enumerate(lines) if line.strip()), default=-1)
    lines = [*lines[: last + 1], *change.add_raw, *lines[last + 1 :]] if last >= 0 else [*lines, *change.add_raw]
    return "".join(f"{line}\n" for line in (*lines, *conf.tail))
