"""The device nodes that a container's configuration gives, their lines and device rules. Pure.

Two ways give a container a device (pct(1), lxc.container.conf(5)): Proxmox VE's `dev[n]`, which brings its own rule
with the numbers that the host's node has at the start; and raw `lxc.mount.entry` lines with `lxc.cgroup2.devices.allow`
beside them. Lines below a `[section]` are a snapshot's and count for nothing; those below `[pve:pending]` count from
the next start on.

Both halves read it by this module. tests/container_configurations.yaml has the results, which are those of
PVE::LXC::Config (parse_pct_config) and of lxc (device_cgroup_rule_parse).
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from remote_scripts.shared.booleans import is_true
from remote_scripts.shared.properties import parse as properties_of

# Raw keys take a colon or an equals sign, options a colon; nothing stands before a key.
# Proxmox VE reads bytes: letters and blanks beyond ASCII are neither.
_RAW = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*", re.ASCII)
_OPTION = re.compile(r"([a-z][a-z_]*\d*):\s*(.+?)\s*", re.ASCII)
#: At a line's end.
BLANKS = " \t\r\f\v"
#: Where another section begins, of a VM, too. Proxmox VE takes any other line in brackets for none, but for the newest
#: versions of qemu-server, which pass over what stands below it.
SECTION = re.compile(r"\[(pve:pending|special:(?:cloudinit|fleecing)|[a-z][a-z0-9_-]+)\]\s*", re.IGNORECASE | re.ASCII)
_DEVICE = re.compile(r"dev\d+")
# A property of dev[n] (PVE::LXC::Config, $dev_desc); a path may stand without its key.
_PROPERTY = re.compile(
    r"path=/dev/.+|mode=0[0-7]{3}|[ug]id=(?:\+?\d+|-0+)|deny-write=(?:1|0|(?i:on|off|yes|no|true|false))"
)
# One blank between the parts, and no part is left out; of more than three letters the first three count.
_RULE = re.compile(r"a|([abc])\s(\d+|\*):(\d+|\*)\s([rwm]{1,2}|[rwm]{3}.*)")
_PENDING = "pve:pending"
#: Where lxc has what Proxmox VE includes for every container (PVE::LXC::update_lxc_config).
LXCS = "/usr/share/lxc/config/"
_PASSED_ON = re.compile(
    r"(dev[0-9]+|lxc\.cgroup2?\.devices\.(allow|deny)|lxc\.idmap|lxc\.apparmor\.profile|hostname|net[0-9]+|rootfs|"
    r"mp[0-9]+|unprivileged|lock|template|features|ostype|hookscript|delete)\s*[:=]|\["
)
_ROOTFS = re.compile(r"/.*?/rootfs/")
# How a line speaks of a card. The majors of device nodes aren't a part of an IP address.
_OF_CARDS = re.compile(r"nvidia|/dri\b|renderD[0-9]|\bkfd\b|(?<![\w.])(?:195|226)(?![\w.])")
_DRM_NODE = re.compile(r"/dev/dri/(card|render)D?([0-9]+)")
_NVIDIA_NODE = re.compile(r"/dev/nvidia([0-9]+)")
_NUMBERS = re.compile(r"/dev/char/([0-9]+):([0-9]+)")
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
    """A device rule of lxc, `c 195:* rwm`. `verb`: allow or deny; `kind`: a, b or c, and `*` for the rule `a` without
    numbers; `major`, `minor`: None stands for `*`; `access`: letters of rwm. `pending`: from the container's next start
    on."""

    verb: str
    kind: str
    major: int | None
    minor: int | None
    access: str
    line: str
    pending: bool = False

    def covers(self, major: int, minor: int, access: str) -> bool:
        """Whether the rule has all of `access` (r, w) to this character device."""
        return (
            self.kind in ("*", "a", "c")
            and self.major in (None, major)
            and self.minor in (None, minor)
            and set(access) <= set(self.access)
        )

    @property
    def device(self) -> tuple[str, int | None, int | None, str]:
        """Kind, major, minor and access: a later rule with the same replaces this one."""
        return self.kind, self.major, self.minor, self.access

    def replaces(self, earlier: Rule) -> bool:
        """Whether an earlier rule has no effect any more. To deny a part of what that allows has none itself: lxc skips
        it, as Proxmox VE denies all that no rule allows (bpf_list_add_device, bpf_device_add)."""
        return self.pending == earlier.pending and (self.kind == "*" or self.device == earlier.device)


@dataclass(frozen=True)
class ContainerConf:
    """A configuration, parsed. `options`: Proxmox VE's own keys; `entries` and `rules` in their order; `folders`:
    mounts that bring nodes along, where a rule lets them be opened: of `/`, or of /dev at another place, and of
    nodes, or links to them, that were made elsewhere; `broken`: device lines that lxc or Proxmox VE doesn't
    understand; `elsewhere`: section -> device lines in it, which have no effect; `pending_raw`: the lines by which the
    next start takes all lxc.* lines away: those that take their place, or `delete: lxc`.
    """

    options: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    folders: list[Entry] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    elsewhere: dict[str, list[str]] = field(default_factory=dict)
    pending_raw: list[str] = field(default_factory=list)

    @property
    def unprivileged(self) -> bool:
        return is_true(self.options.get("unprivileged", ""))

    @property
    def is_template(self) -> bool:
        return is_true(self.options.get("template", ""))

    @property
    def lines(self) -> list[str]:
        """The device lines that have an effect, as they are in the file."""
        return [entry.line for entry in self.entries] + [rule.line for rule in self.rules]

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
        return next(iter(self._rules_for(major, minor, access)), None)

    def _rules_for(self, major: int, minor: int, access: str) -> list[Rule]:
        return [rule for rule in self.allowing if rule.covers(major, minor, access)]

    def following(self, links: Mapping[str, str]) -> ContainerConf:
        """The same, where a device node that a line names by a link is what that leads to.

        :param links: path -> path.
        """
        return dataclasses.replace(
            self,
            entries=[
                dataclasses.replace(entry, source=links.get(entry.source, entry.source)) for entry in self.entries
            ],
            folders=[
                dataclasses.replace(entry, source=links.get(entry.source, entry.source)) for entry in self.folders
            ],
        )

    def line_naming(self, paths: Collection[str]) -> str | None:
        """The line that names one of these device nodes of the host itself, and not a folder that has it.

        :param paths: of `paths_of`.
        """
        return next((entry.line for entry in self.entries if entry.source in paths), None)

    def entry_taking(self, paths: Collection[str]) -> Entry | None:
        """The line by which the container has a device node of the host; None: there is none.

        :param paths: of `paths_of`.
        """
        by_rule = self.folders if any(self._rules_of(path) for path in paths) else []
        return next((entry for entry in (*self.entries, *by_rule) for path in paths if entry.takes(path)), None)

    def _rules_of(self, path: str) -> list[Rule]:
        """The raw rules that let a device be read, by a path with its numbers; none for any other path."""
        match = _NUMBERS.fullmatch(path)
        return self._rules_for(int(match[1]), int(match[2]), "r") if match else []

    def way_to(self, paths: Collection[str]) -> str | None:
        """The line by which the container has a device node of the host, or may make it; None: there is none.

        :param paths: of `paths_of`.
        """
        entry = self.entry_taking(paths)
        if entry is not None:
            return entry.line
        # A privileged container that has a rule, and nothing of that kind is given to it, makes the node itself.
        for path in () if self.unprivileged else paths:
            rule = next((rule for rule in self._rules_of(path) if rule.major is not None), None)
            folder = "/dev/dri" if path.startswith("/dev/char/226:") else "/dev/nvidia"
            if rule and not any(entry.source.startswith(folder) for entry in self.entries):
                return rule.line
        return None

    @property
    def allowing(self) -> list[Rule]:
        """The raw rules that allow something, without those that a later rule replaces. Those of the next start replace
        none of those in force until then."""
        allow_rules: list[Rule] = []
        for rule in self.rules:
            allow_rules = [earlier for earlier in allow_rules if not rule.replaces(earlier)]
            allow_rules += [rule] if rule.verb == "allow" else []
        return allow_rules


@dataclass(frozen=True)
class ConfText:
    """A configuration as it is changed, line by line. `head`: the lines above the first section; `tail`: the others;
    `devices`: a dev[n] option's key -> its value from the next start on; `raw`: the place in `head` of an lxc.* line ->
    its key and value; `conf`: what it says.
    """

    text: str
    head: tuple[str, ...]
    tail: tuple[str, ...]
    devices: dict[str, str]
    raw: dict[int, tuple[str, str]]
    conf: ContainerConf

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return self.text.encode("utf-8", "surrogateescape")

    @property
    def digest(self) -> str:
        """Of the file, as Proxmox VE has it."""
        return hashlib.sha1(self.content, usedforsecurity=False).hexdigest()

    def without(self, devices: Collection[str], raw: Collection[int]) -> ContainerConf:
        """What the configuration says without some of its lines.

        :param devices: keys of dev[n] options.
        :param raw: places of lxc.* lines in `head`; their copies below go as well.
        """
        copies = [self.raw[place] for place in raw]
        lines = [line for place, line in enumerate(self.head) if place not in raw]
        lines += [line for line in self.tail if raw_line(line) not in copies]
        return parse("\n".join(line for line in lines if line.partition(":")[0] not in devices))


def conf_text(content: bytes) -> ConfText:
    """A configuration as it is changed.

    :param content: the file's bytes.
    """
    text = content.decode("utf-8", "surrogateescape")
    lines = text.removesuffix("\n").split("\n")
    end = next((place for place, line in enumerate(lines) if SECTION.fullmatch(line)), len(lines))
    head, tail = lines[:end], lines[end:]
    conf = parse(text)
    devices = {key: value for key, value in conf.options.items() if _DEVICE.fullmatch(key)}
    raw = {place: (match[1], match[2]) for place, line in enumerate(head) if (match := _RAW.fullmatch(line))}
    return ConfText(text, tuple(head), tuple(tail), devices, raw, conf)


def options_of(conf: ConfText) -> dict[str, str]:
    """What a text says above its first section; of an lxc.* line, `KEY: VALUE` is the key."""
    raw = dict.fromkeys((f"{key}: {value}" for key, value in conf.raw.values()), "")
    return raw | parse("\n".join(conf.head)).options


def _raw(line: str) -> tuple[str, str]:
    """The key and the value of an lxc.* line as lxc takes it: without quotes around the value (parse_line)."""
    key, value = raw_line(line)
    is_quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    return key, value[1:-1] if is_quoted else value


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
        if device_lines := [*filter(_is_device_line, lines)]:
            conf.elsewhere[section] = device_lines
    return conf


def sections_of(text: str) -> dict[str, list[str]]:
    """The lines of a guest's configuration by their sections, without blanks at their ends: those above the first one,
    which are its own, by an empty name; those that wait for its next start by `pending` (a VM's) or `pve:pending`; a
    snapshot's by its name. Of several sections of a name the last one counts.
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


def paths_of(node: str, address: str) -> list[str]:
    """The paths by which a configuration may name a card's device node: its own, and those of udev's links to it.

    :param node: `/dev/nvidia0`, `/dev/dri/card0`, `/dev/dri/renderD128`.
    :param address: of the card's function.
    """
    if match := _NVIDIA_NODE.fullmatch(node):
        return [node, f"/dev/char/195:{match[1]}"]
    if match := _DRM_NODE.fullmatch(node):
        return [node, f"/dev/dri/by-path/pci-{address}-{match[1]}", f"/dev/char/226:{match[2]}"]
    return [node]


def whole(text: str, texts_of: Callable[[str], list[str]]) -> str:
    """A configuration with the lines of the files that it names (`lxc.include`, `lxc.mount.fstab`) in their places.
    Above it are the lines that give devices to every container of its kind: Proxmox VE includes lxc's own files, which
    a host's owner may add to. What a hook's program gives isn't known.

    :param texts_of: what a path has: of a file its text, of a folder those of its files `*.conf`; of what isn't there,
        without which the container doesn't start, nothing.
    """
    own = _whole(text, texts_of, frozenset())
    kind = parse("\n".join(own))
    names = [(f"{kind.options.get('ostype')}.common.conf", "common.conf")]
    names += [(f"{kind.options.get('ostype')}.userns.conf", "userns.conf")] if kind.unprivileged else []
    common = (next(filter(None, (texts_of(LXCS + name) for name in either)), []) for either in names)
    lines = (line for texts in common for text in texts for line in _whole(text, texts_of, frozenset({LXCS})))
    return "\n".join([*filter(_gives_devices, lines), *own])


def _gives_devices(line: str) -> bool:
    conf = parse(line)
    return bool(conf.entries or conf.folders or (conf.rules and _OF_CARDS.search(line)))


def _whole(text: str, texts_of: Callable[[str], list[str]], above: frozenset[str]) -> list[str]:
    lines: list[str] = []
    section = False
    # In its own files lxc ends a line at a carriage return, too (lxc_file_for_each_line_mmap).
    for line in text.replace("\r", "\n").split("\n") if above else text.split("\n"):
        if match := SECTION.fullmatch(line):
            section = match[1].lower() != _PENDING
        key, value = _raw(line.strip() if above else line)
        if section:
            lines.append(line)
        elif key == "lxc.include" and value not in above:
            for included in texts_of(value):
                lines += _whole(included, texts_of, above | {value})
        elif key == "lxc.mount.fstab":
            mounts = (mount.strip() for table in texts_of(value) for mount in table.split("\n"))
            lines += [f"lxc.mount.entry: {mount}" for mount in mounts if mount and not mount.startswith("#")]
        else:
            lines.append(line.strip() if above else line)
    return lines


def passed_on(text: str) -> str:
    """The lines of a configuration that are passed on to be judged: devices, their rules, what is needed beside them,
    AppArmor's profile, its disks, and the network cards by which it is known. No others: they may hold passwords
    (lxc.environment, mount options). What else waits for the next start is told without its text: an option's key, or
    that it is an lxc.* line.
    """
    lines: list[str] = []
    section = ""
    for line in text.split("\n"):
        if match := SECTION.fullmatch(line):
            section = match[1].lower()
        if _PASSED_ON.match(line) or _is_passed_on(line):
            lines.append(line)
        elif section == _PENDING and _RAW.fullmatch(line):
            lines.append("lxc.other:")
        elif section == _PENDING and (match := _OPTION.fullmatch(line)):
            lines.append(f"{match[1]}: *")
    return "\n".join(lines)


def _is_passed_on(line: str) -> bool:
    key, value = _raw(line)
    if key != "lxc.mount.entry":
        return False
    conf = ContainerConf()
    _add_mount(conf, value, line)
    return bool(conf.entries or conf.folders) or value.startswith("/dev/")


def _is_device_line(line: str) -> bool:
    raw = _RAW.fullmatch(line)
    if raw:
        return raw[1] == "lxc.mount.entry" or ".devices." in raw[1]
    option = _OPTION.fullmatch(line)
    return bool(option and _DEVICE.fullmatch(option[1]))


def _add_line(conf: ContainerConf, line: str, *, pending: bool = False) -> None:
    (key, value), option = _raw(line), _OPTION.fullmatch(line)
    if key == "lxc.mount.entry":
        _add_mount(conf, value, line, pending=pending)
    elif match := re.fullmatch(r"lxc\.cgroup(2?)\.devices\.(allow|deny)", key):
        # Rules for control groups of version 1 have no effect: Proxmox VE has version 2 alone.
        rule = _RULE.fullmatch(value) if match[1] else None
        if rule is None:
            conf.broken.append(line)
            return
        major, minor = (None if rule[n] in (None, "*") else int(rule[n]) for n in (2, 3))
        conf.rules.append(Rule(match[2], rule[1] or "*", major, minor, (rule[4] or "rwm")[:3], line, pending))
    elif option and not key:
        if option[1] in conf.options:  # the last line of an option counts
            _remove_option(conf, option[1])
        conf.options[option[1]] = option[2]
        if _DEVICE.fullmatch(option[1]):
            _add_device(conf, option[2], line, pending)
        elif re.fullmatch(r"mp\d+", option[1]):
            _add_mount_point(conf, option[2], line, pending)


def _add_device(conf: ContainerConf, value: str, line: str, pending: bool) -> None:
    properties = _device_properties(value)
    if properties is None:
        conf.broken.append(line)
        return
    mode = int(properties["mode"], 8) if "mode" in properties else DEVICE_MODE
    deny = is_true(properties.get("deny-write", ""))
    path, uid, gid = properties["path"], int(properties.get("uid", "0")), int(properties.get("gid", "0"))
    conf.entries.append(Entry(path, _normal(path), "device", line, mode, uid, gid, deny_write=deny, pending=pending))


def _device_properties(value: str) -> dict[str, str] | None:
    """The properties of a dev[n] option, key -> value; None: Proxmox VE refuses the option, and so the start."""
    properties: dict[str, str] = {}
    for part in filter(str.strip, value.split(",")):
        text = part if "=" in part else f"path={part}"
        key, _, content = text.partition("=")
        if key in properties or not _PROPERTY.fullmatch(text):
            return None
        properties[key] = content
    return properties if "path" in properties else None


def _add_mount(conf: ContainerConf, value: str, line: str, *, pending: bool = False) -> None:
    words = value.split()
    if len(words) < 4:
        conf.broken.append(line)
        return
    options = words[3].split(",")
    # lxc-start works in /. An absolute target is a path of the host, which the container doesn't see, but for that of
    # its root file system.
    source, target = _normal(words[0]), _ROOTFS.sub("", words[1], count=1)
    is_bound = not {"bind", "rbind"}.isdisjoint(options) and not target.startswith("/")
    if is_bound and f"{source}/".startswith("/dev/"):
        conf.entries.append(
            Entry(
                path=_normal(target),
                source=source,
                method="mount-entry",
                line=line,
                folder="create=dir" in options,
                optional="optional" in options,
                created=any(option.startswith("create=") for option in options),
                pending=pending,
            )
        )
    elif is_bound and source == "/" and "rbind" in options:
        conf.folders.append(Entry(_normal(target), "", "mount-entry", line, pending=pending))
    elif words[0].startswith("/dev/") and not (is_bound and f"{_normal(target)}/".startswith("/dev/")):
        conf.broken.append(line)
    elif is_bound:
        # A node that somebody has made elsewhere has the card's name inside, or is a link to it.
        path = _normal(target)
        names = [*([path] if f"{path}/".startswith("/dev/") else []), *([source] if "create=file" in options else [])]
        conf.folders.extend(Entry(path, name, "mount-entry", line, pending=pending) for name in names)


def _add_mount_point(conf: ContainerConf, value: str, line: str, pending: bool) -> None:
    """Of a folder of the host. What begins with /dev/ is a disk for Proxmox VE (classify_mountpoint)."""
    properties = properties_of("mp", value)
    volume = properties.get("volume", "")
    source = _normal(volume)
    if volume.startswith("/") and not volume.startswith("/dev/") and f"{source}/".startswith("/dev/"):
        conf.folders.append(Entry(_normal(properties.get("mp", "")), source, "mount-entry", line, pending=pending))


def _normal(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _add_pending(conf: ContainerConf, lines: list[str]) -> None:
    """Adds the pending changes of the next start: new values, and deleted options (PVE::GuestHelpers,
    parse_pending_delete)."""
    options = [_OPTION.fullmatch(line) for line in lines]
    for line, option in zip(lines, options, strict=True):  # first what goes, then what comes (vmconfig_apply_pending)
        keys = re.split(r"[\s,;]+", option[2].replace("!", "")) if option and option[1] == "delete" else []
        for key in keys:
            _remove_option(conf, key)
            conf.options.pop(key, None)
        if "lxc" in keys or _RAW.fullmatch(line):
            conf.pending_raw.append(line)
    # At the next start raw lines from there take the place of all others. Until then those are in force: both count.
    for line, option in zip(lines, options, strict=True):
        if not (option and option[1] == "delete"):
            _add_line(conf, line, pending=True)


def _remove_option(conf: ContainerConf, key: str) -> None:
    """Removes what an option gives."""
    conf.entries[:] = [entry for entry in conf.entries if not entry.line.startswith(f"{key}:")]
    conf.folders[:] = [entry for entry in conf.folders if not entry.line.startswith(f"{key}:")]
    conf.broken[:] = [line for line in conf.broken if not line.startswith(f"{key}:")]


def addresses(text: str) -> str:
    """The hardware addresses of a container's network cards, by which it is told from another one of its id: sorted,
    with commas.
    """
    upper = []
    for line in sections_of(text)[""]:
        if match := re.match(r"net\d*:.*hwaddr=([0-9A-Fa-f:]*)", line):
            upper.append(match[1].upper())
    return ",".join(sorted(upper))


def is_same(earlier: str, current: str) -> bool:
    """Whether two answers of `addresses` are of one container, which may have got network cards in between, or lost
    some.
    """
    return not {*earlier.split(",")}.isdisjoint(current.split(","))
