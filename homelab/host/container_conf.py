"""A container's configuration, as far as devices go: which nodes it gives, by which lines, under which rules. Pure.

Two ways give a container a device (pct(1), lxc.container.conf(5)): Proxmox VE's `dev[n]`, which brings its own rule
with the numbers that the host's node has at the start; and raw `lxc.mount.entry` lines with `lxc.cgroup2.devices.allow`
beside them. Lines below a `[section]` are a snapshot's and count for nothing; those below `[pve:pending]` count from
the next start on.

remote_scripts/lib/container/conf.sh reads the same file for the script that changes it: that one works on the host
itself, under the lock of Proxmox VE's writers, and a host need not have Python. This one explains a reading.
tests/container_configurations.yaml holds both to the same answers, which are those of PVE::LXC::Config
(parse_pct_config) and of lxc (device_cgroup_rule_parse).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from homelab.properties import TRUE

# Raw keys take a colon or an equals sign, options a colon; nothing stands before a key.
_RAW = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*")
_OPTION = re.compile(r"([a-z][a-z_]*\d*):\s*(.+?)\s*")
_SECTION = re.compile(r"\[([^]]*)\]\s*")
_DEVICE = re.compile(r"dev\d+")
# A property of dev[n] (PVE::LXC::Config, $dev_desc); a path may stand without its key.
_PROPERTY = re.compile(r"path=/dev/.+|mode=0[0-7]{3}|[ug]id=\d+|deny-write=(?:1|0|(?i:on|off|yes|no|true|false))")
# One blank between the parts, and no part is left out; of more than three letters the first three count.
_RULE = re.compile(r"a|([abc])\s(\d+|\*):(\d+|\*)\s([rwm]{1,2}|[rwm]{3}.*)")
_PENDING = "pve:pending"
# pct(1): the mode of a node that dev[n] makes, unless it says another.
DEVICE_MODE = 0o660

Method = Literal["device", "mount-entry"]


@dataclass(frozen=True)
class Entry:
    """A line that gives the container a device.

    `path`: where it is inside; `source`: the host's node or folder. `mode`, `uid`, `gid`: what dev[n] gives its node
    (a mount entry's node keeps the host's). `folder`: all nodes below it. `optional`: the container starts without it.
    `pending`: from its next start on.
    """

    path: str
    source: str
    method: Method
    line: str
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    deny_write: bool = False
    folder: bool = False
    optional: bool = False
    created: bool = True
    pending: bool = False

    def gives(self, path: str) -> bool:
        """Is the node inside its doing?"""
        return path == self.path or (self.folder and path.startswith(f"{self.path}/"))

    def source_of(self, path: str) -> str:
        """The host's node behind one inside."""
        return self.source + path[len(self.path) :]

    def takes(self, node: str) -> bool:
        """Is it about this node of the host, whatever it is called inside?"""
        return node == self.source or node.startswith(f"{self.source}/")


@dataclass(frozen=True)
class Rule:
    """A device rule, `c 195:* rwm`; None stands for `*`."""

    verb: str
    kind: str
    major: int | None
    minor: int | None
    access: str
    line: str

    def covers(self, major: int, minor: int, access: str) -> bool:
        """Is all of `access` (r, w) to this character device in it?"""
        return (
            self.kind in ("a", "c")
            and self.major in (None, major)
            and self.minor in (None, minor)
            and set(access) <= set(self.access)
        )

    @property
    def about(self) -> tuple[str, int | None, int | None]:
        return self.kind, self.major, self.minor


@dataclass(frozen=True)
class ContainerConf:
    """`options`: Proxmox VE's own keys; `entries` and `rules` in their order; `broken`: raw device lines that lxc
    doesn't understand; `elsewhere`: section -> device lines in it, which have no effect."""

    options: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    elsewhere: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unprivileged(self) -> bool:
        return self.options.get("unprivileged") == "1"

    @property
    def lines(self) -> list[str]:
        """The device lines that count, as they stand."""
        return [entry.line for entry in self.entries] + [rule.line for rule in self.rules]

    def entry_for(self, path: str) -> Entry | None:
        """What gives the container a node: a dev[n] option, which is done after the mounts; else the last such line.

        :param path: the node's, inside.
        """
        found = [entry for entry in self.entries if entry.gives(path)]
        return next((entry for entry in found if entry.method == "device"), found[-1] if found else None)

    def rule_for(self, major: int, minor: int, access: str) -> Rule | None:
        """The raw rule that allows it; None where there is none. An entry's own rule isn't asked."""
        return next((rule for rule in self.allowing if rule.covers(major, minor, access)), None)

    @property
    def allowing(self) -> list[Rule]:
        """The raw rules that allow something, without those that a later rule replaces."""
        kept: list[Rule] = []
        for rule in self.rules:
            kept = [] if rule.kind == "a" else [one for one in kept if one.about != rule.about]
            kept += [rule] if rule.verb == "allow" else []
        return kept


def parse(text: str) -> ContainerConf:
    """A configuration file's text; other lines than those about devices, and comments, are passed over."""
    conf = ContainerConf()
    pending: list[str] = []
    section = ""
    for line in (one.rstrip() for one in text.split("\n")):
        if found := _SECTION.fullmatch(line):
            section = found[1]
        elif section.lower() == _PENDING:
            pending.append(line)
        elif section:
            if _is_about_devices(line):
                conf.elsewhere.setdefault(section, []).append(line)
        else:
            _take(conf, line)
    _take_pending(conf, pending)
    return conf


def _is_about_devices(line: str) -> bool:
    raw = _RAW.fullmatch(line)
    if raw:
        return raw[1] == "lxc.mount.entry" or ".devices." in raw[1]
    option = _OPTION.fullmatch(line)
    return bool(option and _DEVICE.fullmatch(option[1]))


def _take(conf: ContainerConf, line: str, *, pending: bool = False) -> None:
    raw, option = _RAW.fullmatch(line), _OPTION.fullmatch(line)
    if raw and raw[1] == "lxc.mount.entry":
        _take_mount(conf, raw[2], line)
    elif raw and (found := re.fullmatch(r"lxc\.cgroup(2?)\.devices\.(allow|deny)", raw[1])):
        # Rules for control groups of version 1 have no effect: Proxmox VE has version 2 alone.
        rule = _RULE.fullmatch(raw[2]) if found[1] else None
        if rule is None:
            conf.broken.append(line)
            return
        major, minor = (None if rule[n] in (None, "*") else int(rule[n]) for n in (2, 3))
        conf.rules.append(Rule(found[2], rule[1] or "a", major, minor, (rule[4] or "rwm")[:3], line))
    elif option and not raw:
        conf.options[option[1]] = option[2]
        if _DEVICE.fullmatch(option[1]):
            _take_device(conf, option[1], option[2], line, pending)


def _take_device(conf: ContainerConf, key: str, value: str, line: str, pending: bool) -> None:
    _forget(conf, key)
    given = _device_properties(value)
    if given is None:
        conf.broken.append(line)
        return
    mode = int(given["mode"], 8) if "mode" in given else DEVICE_MODE
    deny = given.get("deny-write", "0").lower() in TRUE
    path, uid, gid = given["path"], int(given.get("uid", "0")), int(given.get("gid", "0"))
    conf.entries.append(Entry(path, path, "device", line, mode, uid, gid, deny_write=deny, pending=pending))


def _device_properties(value: str) -> dict[str, str] | None:
    """What a dev[n] option says; None where Proxmox VE refuses it, and with it the container's start."""
    found: dict[str, str] = {}
    for part in filter(None, value.split(",")):
        text = part if "=" in part else f"path={part}"
        key, _, content = text.partition("=")
        if key in found or not _PROPERTY.fullmatch(text):
            return None
        found[key] = content
    return found if "path" in found else None


def _take_mount(conf: ContainerConf, value: str, line: str) -> None:
    words = value.split()
    if len(words) < 4:
        conf.broken.append(line)
        return
    options = words[3].split(",")
    # An absolute target is a path of the host, below which nobody inside ever looks.
    if {"bind", "rbind"} & set(options) and f"{words[0]}/".startswith("/dev/") and not words[1].startswith("/"):
        conf.entries.append(
            Entry(
                path=f"/{words[1].rstrip('/')}",
                source=words[0].rstrip("/"),
                method="mount-entry",
                line=line,
                folder="create=dir" in options,
                optional="optional" in options,
                created=any(option.startswith("create=") for option in options),
            )
        )
    elif words[0].startswith("/dev/"):
        conf.broken.append(line)


def _take_pending(conf: ContainerConf, lines: list[str]) -> None:
    """What the next start changes: new values, and options that go (PVE::GuestHelpers, parse_pending_delete)."""
    for line in lines:
        option = _OPTION.fullmatch(line)
        if option and option[1] == "delete":
            for key in re.split(r"[\s,;]+", option[2]):
                _forget(conf, key.lstrip("!"))
                conf.options.pop(key.lstrip("!"), None)
        elif not _RAW.fullmatch(line):  # such lines wait for nothing, and are never taken from there
            _take(conf, line, pending=True)


def _forget(conf: ContainerConf, key: str) -> None:
    """An option that is there twice counts once, the last time."""
    conf.entries[:] = [entry for entry in conf.entries if not entry.line.startswith(f"{key}:")]
    conf.broken[:] = [line for line in conf.broken if not line.startswith(f"{key}:")]
