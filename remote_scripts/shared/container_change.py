"""A container's configuration brought to what is planned: read, planned and written again until it was not changed
in between. It is written whole, under the digest of what was read: whatever others have written meanwhile is read
anew.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from remote_scripts.shared import card_nodes, container_lines, pmxcfs
from remote_scripts.shared.card_nodes import Cards, Nodes
from remote_scripts.shared.container_conf import ConfText, addresses, conf_text
from remote_scripts.shared.container_lines import Change
from remote_scripts.shared.container_notes import Before, Given, Noted, Notes, waits_for_restart
from remote_scripts.shared.container_power import Power
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.state import file_lock
from remote_scripts.tools.system import System

#: How long the lock of a configuration's file is waited for, in seconds.
CONF_LOCK_SECONDS = 10.0
_GUESTS_SECONDS = 300.0
# What is read of a container's groups, in bytes; the rest is left out.
_GROUP_BYTES = 65536
_GROUPS = 'getent group render video || { cd /etc && cat group; }; echo "#"'
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
                self._need_open_nodes(conf, nodes)
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
            change = container_lines.follow(self._system, conf, self.notes)
        else:
            change = container_lines.plan(self._system, conf, self.notes, self._cards, self._groups)
        if not container_lines.lasts(conf, self.notes, change):
            raise _not_lasting(self._ctid)
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

    def _need_open_nodes(self, conf: ConfText, nodes: Nodes) -> None:
        """A mount entry's node is the host's, for the host's groups. In an unprivileged container these are nobody's.

        :raises Failure: it could not be opened.
        """
        assert self._cards is not None
        if self._cards.method != "mount-entry" or not conf.conf.unprivileged:
            return
        others = container_lines.find_own_lines(conf, self.notes).others
        closed = []
        for node in nodes.nodes:
            device = self._system.files.device(node.path)
            if node.group and device and device.mode & 6 != 6 and not container_lines.provider(others, node.path):
                closed.append(f"{node.path} (mode {device.mode:o})")
        if closed:
            raise Failure(
                f"container {self._ctid}, which is unprivileged, given a card's nodes by mount entries",
                f"on the host only their group may open them: {' '.join(closed)}",
                "nobody in an unprivileged container is in the host's groups, so not even its root could open them; "
                "its configuration is unchanged",
                'take method: mount-entry out of the settings; or let the host\'s udev open them: MODE="0666" for '
                'KERNEL=="renderD*"',
            )

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
        """The groups render and video. A dev[n] entry's gid is one of the container's: the host's number means another
        group there, or none (ADR 23).

        :raises Failure: a container that runs doesn't tell them.
        """
        noted = container_lines.noted_groups(self.notes)
        self._groups = noted or {}
        if not look_inside:
            return
        conf = self._conf()
        if self._power.is_up():
            done = self._system.run.ask(
                "pct", "exec", str(self._ctid), "--", "sh", "-c", _GROUPS, seconds=60, limit=_GROUP_BYTES
            )
            text = done.output
            if done.status != 0 or not text.endswith(b"#\n"):  # half of an answer would be no such groups
                raise Failure(
                    f"to know the groups render and video of container {self._ctid}",
                    f"`pct exec {self._ctid}` didn't list them all (exit status {done.status})",
                    "a card's nodes are for the members of these groups; its configuration is unchanged",
                    f"try `pct enter {self._ctid}`, then run `pulumi up` again",
                )
        elif noted is not None:
            return  # it has been looked into
        elif "lock" in conf.conf.options or conf.conf.is_template:
            text = b""
        else:
            text = self._groups_while_off()
            if not text.strip(b"\0\n"):
                self._system.log.say(
                    f"note: the groups of container {self._ctid}, which is off, can't be read: its nodes are for "
                    "everybody in it"
                )
        self._groups = container_lines.groups_in(text, conf)

    def _groups_while_off(self) -> bytes:
        """The group file of a container that is off. Its file system is its root's: nothing in it is followed, and what
        isn't a plain file isn't read.
        """
        self.notes.change(mounted=True)
        content = b""
        # As work, which keeps the lock to its end where this run is killed: the next run sees what it has mounted.
        if self._system.run.do("pct", "mount", str(self._ctid), seconds=60).status == 0:
            place = self._system.files.at(f"/var/lib/lxc/{self._ctid}/rootfs")
            try:
                content = within_limit(lambda: _group_file(place))
            except OSError as error:
                self._system.log.say(f"/etc/group of container {self._ctid}: {error.strerror or error}")
        self._unmount()
        return content

    def _unmount(self) -> None:
        """What a look into a container that is off has left mounted, maybe by a run that was cut short."""
        if not self.notes.read().mounted:
            return
        conf = pmxcfs.content_of(self._system, self._path)
        if conf is not None and conf_text(conf).conf.options.get("lock") == "mounted":
            done = self._system.run.ask("pct", "unmount", str(self._ctid), seconds=60)
            if done.status != 0:
                # It stays noted as ours: the next run tries that again.
                message = (done.error or done.output).decode("utf-8", "replace").strip()
                self._system.log.say(f"note: pct unmount {self._ctid} failed: {message or f'status {done.status}'}")
                return
        self.notes.change(mounted=False)


def need_container(system: System, ctid: int) -> None:
    """:raises Failure: this host has no such container."""
    if pmxcfs.content_of(system, f"/etc/pve/qemu-server/{ctid}.conf") is not None:
        raise Failure(
            f"container {ctid}",
            f"{ctid} is a virtual machine",
            "cards are shared with containers; a VM gets one whole",
            "correct ctid; a VM is described under homelab:vms",
        )
    if pmxcfs.content_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf") is not None:
        return
    elsewhere, here = pmxcfs.node_of(system, ctid), pmxcfs.this_node(system).name
    if elsewhere:
        raise Failure(
            f"container {ctid}",
            f"it is on the node {elsewhere}, not on this one",
            "a card is in one machine: a guest can have it only on the node that the card is in",
            f"migrate it to this node (on {elsewhere}, while it is off: `pct migrate {ctid} {here}`), or describe "
            f"{elsewhere} as a host of its own",
        )
    others = " ".join(pmxcfs.guest_ids(system, pmxcfs.PVE_LXC))
    raise Failure(
        f"container {ctid}",
        f"no such container on this host; there are: {others or 'none'}",
        "nothing can be given to it",
        "correct ctid, or describe the container under `create`",
    )


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


def _not_lasting(ctid: int) -> Failure:
    return Failure(
        f"container {ctid} given its devices by lxc.* lines",
        "its configuration has lxc.* lines, or `delete: lxc`, below [pve:pending]",
        "at its next start these take the place of all its lxc.* lines, homelab's among them; its configuration is "
        "unchanged",
        f"start it once, or restart it (`pct reboot {ctid}`), which moves them up; or move them above the section "
        "by hand; then run `pulumi up` again",
    )


def _with_lines(conf: ConfText, change: Change) -> str:
    """The configuration with its new lines after the last one that isn't empty, where Proxmox VE has raw lines."""
    lines = [line for place, line in enumerate(conf.head) if place not in change.drop_raw]
    last = max((place for place, line in enumerate(lines) if line.strip()), default=-1)
    lines = [*lines[: last + 1], *change.add_raw, *lines[last + 1 :]] if last >= 0 else [*lines, *change.add_raw]
    return "".join(f"{line}\n" for line in (*lines, *conf.tail))


def _group_file(place: Path) -> bytes:
    """The beginning of a root's etc/group, by no link.

    :raises OSError: it isn't there, or can't be read.
    """
    opened: list[int] = []

    def step(path: str | Path, flags: int) -> int:
        opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=opened[-1] if opened else None))
        return opened[-1]

    try:
        step(place, os.O_DIRECTORY)
        step("etc", os.O_DIRECTORY | os.O_NOFOLLOW)
        # Before it is opened: that of a device may do something.
        if not stat.S_ISREG(os.stat("group", dir_fd=opened[-1], follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return os.read(step("group", os.O_NOFOLLOW | os.O_NONBLOCK), _GROUP_BYTES)
    finally:
        for descriptor in opened:
            os.close(descriptor)
