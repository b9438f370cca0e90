"""The device nodes that a container's configuration gives, their lines and device rules. Pure.

Two ways give a container a device (pct(1), lxc.container.conf(5)): Proxmox VE's `dev[n]`, which brings its own rule
with the numbers that the host's node has at the start; and raw `lxc.mount.entry` lines with `lxc.cgroup2.devices.allow`
beside them. Lines of `lxc.cgroup2.devices.deny` aren't read: what they deny can't be opened. Lines below a `[section]`
are a snapshot's and count for nothing; those below `[pve:pending]` count from the next start on.

Both halves read it by this module. tests/container_configurations.yaml has the results, which are those of
PVE::LXC::Config (parse_pct_config) and of lxc (device_cgroup_rule_parse).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from remote_scripts.pve.booleans import is_true
from remote_scripts.pve.properties import parse as properties_of

# Raw keys take a colon or an equals sign, options a colon; nothing stands before a key.
# Proxmox VE reads bytes: letters and blanks beyond ASCII are neither.
_RAW = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*", re.ASCII)
_OPTION = re.compile(r"([a-z][a-z_]*\d*):\s*(.+?)\s*", re.ASCII)
#: At a line's end.
BLANKS = " \t\r\f\v"
#: Where another section begins, of a VM, too. Proxmox VE takes any other line in brackets for none, but for the newest
#: versions of qemu-server, which pass over what stands below it.
SECTION = re.compile(r"\[(pve:pending|special:(?:cloudinit|fleecing)|[a-z][a-z0-9_-]+)\]\s*", re.IGNORECASE | re.ASCII)
_DEVICE_LINE = re.compile(r"dev\d+:|lxc\.(?:mount\.entry|cgroup2?\.devices\.\w+)\s*[:=]")
# One blank between the parts, and no part is left out; of more than three letters the first three count.
_RULE = re.compile(r"a|([abc])\s(\d+|\*):(\d+|\*)\s([rwm]{1,2}|[rwm]{3}.*)")
_PENDING = "pve:pending"
_PASSED_ON = re.compile(
    r"(dev[0-9]+|lxc\.cgroup2?\.devices\.allow|hostname|net[0-9]+|rootfs|"
    r"mp[0-9]+|unprivileged|lock|template|ostype|hookscript|delete)\s*[:=]|"
    r"lxc\.mount\.entry\s*[:=]\s*(/dev[/\s]|/\S*(nvidia|libcuda))|\[|#.*Created by Pulumi"
)
_DRM_NODE = re.compile(r"/dev/dri/(card|render)D?[0-9]+")
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
        """Whether the line gives the container this device node.

        :param path: of the node, inside the container.
        """
        return path == self.path or (self.folder and path.startswith(f"{self.path}/"))

    def source_of(self, path: str) -> str:
        """The host's path of a device node.

        :param path: of the node, inside the container.
        """
        return self.source + path[len(self.path) :]

    def takes(self, node: str) -> bool:
        """Whether the line gives the container this device node of the host, under any name."""
        return node == self.source or node.startswith(f"{self.source}/")


@dataclass(frozen=True)
class Rule:
    """A rule of lxc that allows devices, `c 195:* rwm`. `kind`: a, b or c; `major`, `minor`: None stands for `*`;
    `access`: letters of rwm."""

    kind: str
    major: int | None
    minor: int | None
    access: str
    line: str

    def covers(self, major: int, minor: int, access: str) -> bool:
        """Whether the rule has all of `access` (r, w) to this character device."""
        return (
            self.kind in ("a", "c")
            and self.major in (None, major)
            and self.minor in (None, minor)
            and set(access) <= set(self.access)
        )


@dataclass(frozen=True)
class ContainerConf:
    """A configuration, parsed. `options`: Proxmox VE's own keys; `entries` and `rules` in their order; `broken`: device
    lines that lxc or Proxmox VE doesn't understand; `elsewhere`: section -> device lines in it, which have no effect.
    """

    options: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    elsewhere: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unprivileged(self) -> bool:
        return is_true(self.options.get("unprivileged", ""))

    def entry_for(self, path: str) -> Entry | None:
        """The line that gives the container a device node: a dev[n] option, which comes after the mounts; else the last
        mount; None: no line gives it.

        :param path: of the node, inside the container.
        """
        entries = [entry for entry in self.entries if entry.gives(path)]
        return next((entry for entry in entries if entry.method == "device"), entries[-1] if entries else None)

    def rule_for(self, major: int, minor: int, access: str) -> Rule | None:
        """The raw rule that allows `access` (r, w) to a character device; None: no raw rule does. The rule that a
        dev[n] option brings isn't among them."""
        return next((rule for rule in self.rules if rule.covers(major, minor, access)), None)

    def names_card(self, paths: Collection[str], named: Collection[str] = ()) -> bool:
        """Whether a line of it gives the container a card. Who has the card by another way, such as a file that it
        includes, is seen once it has it open.

        :param paths: of the card's device nodes, as of `paths_of`.
        :param named: of nodes that count where a line names one itself, and not a folder that has it.
        """
        return any(entry.source in named or any(map(entry.takes, paths)) for entry in self.entries)


@dataclass(frozen=True)
class ConfText:
    """A configuration as it is changed, line by line. `head`: the lines above the first section; `tail`: the others;
    `conf`: what it says.
    """

    text: str
    head: tuple[str, ...]
    tail: tuple[str, ...]
    conf: ContainerConf

    @property
    def digest(self) -> str:
        """Of the file, as Proxmox VE has it."""
        return hashlib.sha1(self.text.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()

    def without(self, options: Collection[str]) -> ContainerConf:
        """What the configuration says without some of its options.

        :param options: keys, and lxc.* lines as they are.
        """
        raw = {raw_line(key) for key in options if key.startswith("lxc.")}
        lines = (line for line in (*self.head, *self.tail) if line.partition(":")[0] not in options)
        return parse("\n".join(line for line in lines if raw_line(line) not in raw))


def conf_text(text: str) -> ConfText:
    """A configuration as it is changed.

    :param text: of the file; bytes that aren't UTF-8 are escaped.
    """
    lines = text.removesuffix("\n").split("\n")
    end = next((place for place, line in enumerate(lines) if SECTION.fullmatch(line)), len(lines))
    return ConfText(text, tuple(lines[:end]), tuple(lines[end:]), parse(text))


def options_of(conf: ConfText) -> dict[str, str]:
    """What a text says: its options as the next start takes them, and its lxc.* lines above the first section, of
    which `KEY: VALUE` is the key.
    """
    raw = (f"{key}: {value}" for key, value in map(raw_line, conf.head) if key)
    return dict.fromkeys(raw, "") | conf.conf.options


def raw_line(line: str) -> tuple[str, str]:
    """The key and the value of an lxc.* line."""
    match = _RAW.fullmatch(line)
    return (match[1], match[2]) if match else ("", "")


def parse(text: str) -> ContainerConf:
    """Parses the text of a configuration file. Unknown lines and comments are skipped."""
    conf = ContainerConf()
    by_section = sections_of(text)
    for line in by_section.pop(""):
        _add_line(conf, line)
    _add_pending(conf, by_section.pop(_PENDING, []))
    for section, lines in by_section.items():
        if device_lines := [*filter(_DEVICE_LINE.match, lines)]:
            conf.elsewhere[section] = device_lines
    return conf


def sections_of(text: str) -> dict[str, list[str]]:
    """The lines of a guest's configuration by section, without blanks at their ends. The lines above the first section
    are the guest's own, under an empty name. Those that wait for its next start are under `pending` (a VM) or
    `pve:pending` (a container), those of a snapshot under its name. If a name is there twice, the last section counts.
    """
    by_section: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.split("\n"):
        if match := SECTION.fullmatch(line):
            name = match[1].lower() if match[1].lower() in ("pending", _PENDING) else match[1]
            by_section[name] = []
        else:
            by_section[name].append(line.rstrip(BLANKS))
    return by_section


def paths_of(nodes: Iterable[str], address: str) -> list[str]:
    """The paths by which a configuration may name a card's device nodes: their own, and those of udev's links to them.

    :param nodes: `/dev/nvidia0`, `/dev/dri/card0`, `/dev/dri/renderD128`.
    :param address: of the card's function.
    """
    matches = [match for node in nodes if (match := _DRM_NODE.fullmatch(node))]
    return [*nodes, *(f"/dev/dri/by-path/pci-{address}-{match[1]}" for match in matches)]


def passed_on(text: str) -> str:
    """The lines of a configuration that are passed on to be judged: devices, their rules, what is needed beside them,
    its disks, the network cards by which it is known, and the mark of who made it. No others: they may hold passwords
    (lxc.environment, mount options). Of an option that waits for the next start the key is told.
    """
    lines: list[str] = []
    section = ""
    for line in text.split("\n"):
        if match := SECTION.fullmatch(line):
            section = match[1].lower()
        if _PASSED_ON.match(line):
            lines.append(line)
        elif section == _PENDING and (match := _OPTION.fullmatch(line)):
            lines.append(f"{match[1]}: *")
    return "\n".join(lines)


def _add_line(conf: ContainerConf, line: str, *, pending: bool = False) -> None:
    (key, value), option = raw_line(line), _OPTION.fullmatch(line)
    if key == "lxc.mount.entry":
        _add_mount(conf, value, line, pending=pending)
    elif match := re.fullmatch(r"lxc\.cgroup(2?)\.devices\.allow", key):
        # Rules for control groups of version 1 have no effect: Proxmox VE has version 2 alone.
        rule = _RULE.fullmatch(value) if match[1] else None
        if rule is None:
            conf.broken.append(line)
            return
        major, minor = (None if rule[n] in (None, "*") else int(rule[n]) for n in (2, 3))
        conf.rules.append(Rule(rule[1] or "a", major, minor, (rule[4] or "rwm")[:3], line))
    elif option and not key:
        _remove_option(conf, option[1])  # the last line of an option counts
        conf.options[option[1]] = option[2]
        if re.fullmatch(r"dev\d+", option[1]):
            _add_device(conf, option[2], line, pending)


def _add_device(conf: ContainerConf, value: str, line: str, pending: bool) -> None:
    properties = properties_of("dev", value)
    try:
        path, mode = properties["path"], int(properties.get("mode", f"{DEVICE_MODE:o}"), 8)
        uid, gid = (int(properties.get(key, "0")) for key in ("uid", "gid"))
    except (LookupError, ValueError):  # Proxmox VE refuses the option, and so the start
        conf.broken.append(line)
        return
    deny = is_true(properties.get("deny-write", ""))
    conf.entries.append(Entry(path, _normal(path), "device", line, mode, uid, gid, deny_write=deny, pending=pending))


def _add_mount(conf: ContainerConf, value: str, line: str, *, pending: bool = False) -> None:
    words = value.split()
    if not words or not f"{words[0]}/".startswith("/dev/"):
        return
    options = words[3].split(",") if len(words) > 3 else []
    # A target of lxc's is a path in the container, without its first slash.
    if {"bind", "rbind"}.isdisjoint(options) or words[1].startswith("/"):
        conf.broken.append(line)
        return
    conf.entries.append(
        Entry(
            path=_normal(words[1]),
            source=_normal(words[0]),
            method="mount-entry",
            line=line,
            folder="create=dir" in options,
            optional="optional" in options,
            created=any(option.startswith("create=") for option in options),
            pending=pending,
        )
    )


def _normal(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _add_pending(conf: ContainerConf, lines: list[str]) -> None:
    """Adds the pending changes of the next start: new values, and deleted options (PVE::GuestHelpers,
    parse_pending_delete)."""
    deletions = [option[2] for option in map(_OPTION.fullmatch, lines) if option and option[1] == "delete"]
    for value in deletions:  # first what goes, then what comes (vmconfig_apply_pending)
        for key in re.split(r"[\s,;]+", value.replace("!", "")):
            _remove_option(conf, key)
    for line in lines:
        _add_line(conf, line, pending=True)
    conf.options.pop("delete", None)


def _remove_option(conf: ContainerConf, key: str) -> None:
    """Removes an option, and what it gives."""
    conf.options.pop(key, None)
    conf.entries[:] = [entry for entry in conf.entries if not entry.line.startswith(f"{key}:")]
    conf.broken[:] = [line for line in conf.broken if not line.startswith(f"{key}:")]
