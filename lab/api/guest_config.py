"""A guest's configuration file: /etc/pve/nodes/NODE/qemu-server/ID.conf or lxc/ID.conf, read and written.

The form is a node's own: a description as `#` lines, sorted `key: value` lines, for a container its `lxc.*` lines last and
in their order, a section ([PENDING], a container's [pve:pending]) with changes that wait for the next start, then one section
for each snapshot. A comment anywhere becomes description; lines that a node doesn't understand are lost when it writes the file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, unquote

from .checks import typed
from .errors import FormatError
from .options import as_boolean, check_format, split_list
from .reference import reference

Kind = Literal["qemu", "lxc"]

#: Keys that a node writes itself and that no request can set.
_OWN = frozenset({"meta", "parent", "runningcpu", "runningmachine", "snapstate", "snaptime", "vmstate"})
_KEY_VALUE = re.compile(r"([a-z][a-z_-]*\d*):\s*(.+?)\s*", re.ASCII)
_RAW = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*", re.ASCII)
#: Where changes are that wait for the next start; a container can have a snapshot named PENDING.
_PENDING: dict[Kind, str] = {"qemu": "PENDING", "lxc": "pve:pending"}
_SNAPSHOT = r"[a-z][a-z0-9_-]+"
_SECTIONS: dict[Kind, re.Pattern[str]] = {
    "qemu": re.compile(rf"\[(special:(?:cloudinit|fleecing)|{_SNAPSHOT})\]\s*", re.IGNORECASE | re.ASCII),
    "lxc": re.compile(rf"\[(pve:pending|{_SNAPSHOT})\]\s*", re.IGNORECASE | re.ASCII),
}
#: What a node passes over with all below it (qemu-server 8.3.7 and later).
_UNKNOWN_SECTION = re.compile(r"\[[^\]]*\]\s*", re.ASCII)
# lxc.container.conf(5), as far as a node lets them through (PVE::LXC::Config).
_RAW_KEYS = re.compile(
    r"lxc\.(?:apparmor\.(?:profile|allow_incomplete|allow_nesting|raw)|selinux\.context|seccomp\.profile|"
    r"cap\.(?:drop|keep)|cgroup2?\..+|mount(?:\.(?:fstab|entry|auto))?|idmap|hook\.[a-z-]+|environment|"
    r"init\.(?:cmd|uid|gid)|ephemeral|include|kill\.signal|halt\.signal|reboot\.signal|stop\.signal|log\.(?:level|file)|"
    r"monitor\.unshare|namespace\.(?:clone|keep|share\..+)|net\.\d+\..+|no_new_privs|prlimit\..+|proc\..+|pty\.max|"
    r"rootfs\.(?:mount|options|path)|signal\..+|start\.(?:auto|delay|order)|sysctl\..+|tty\.(?:dir|max)|uts\.name|"
    r"autodev(?:\.tmpfs\.size)?|console\.(?:buffer\.size|logfile|path|rotate|size)|execute\.cmd|group)"
)
# PVE::Tools::encode_text: control characters, the colon, and all beyond ASCII.
_TEXT_KEPT = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != ":")


@dataclass
class Section:
    """Keys and values of the configuration itself, or of a snapshot; `raw` are a container's lxc.* lines."""

    values: dict[str, str] = field(default_factory=dict)
    raw: list[tuple[str, str]] = field(default_factory=list)

    def copy(self) -> Section:
        """The same, to be changed apart."""
        return Section(dict(self.values), list(self.raw))


@dataclass
class GuestConfig:
    """A configuration as read. `digest` is the file's SHA-1, `pending` waits for the next start."""

    kind: Kind
    current: Section = field(default_factory=Section)
    pending: dict[str, str] = field(default_factory=dict)
    pending_delete: list[str] = field(default_factory=list)
    #: A container's lxc.* lines that take the place of all others at the next start.
    pending_raw: list[tuple[str, str]] = field(default_factory=list)
    snapshots: dict[str, Section] = field(default_factory=dict)
    digest: str = ""
    #: What a node says of lines that it doesn't understand, where it starts the guest. It loses them where it writes the file.
    unread: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, str]:
        """The values in force."""
        return self.current.values

    @classmethod
    def parse(cls, kind: Kind, text: str) -> GuestConfig:
        """Read a file's text."""
        config = cls(kind, digest=hashlib.sha1(text.encode("utf-8", "surrogateescape")).hexdigest())
        section, name, is_known = config.current, "", True
        comments: list[str] = []
        for line in text.split("\n"):
            if match := _SECTIONS[kind].fullmatch(line):
                _describe(section, comments, kind)
                name, comments, section, is_known = match[1], [], Section(), True
                if name.lower() == _PENDING[kind].lower():
                    config.pending, config.pending_delete, config.pending_raw = {}, [], section.raw
                else:
                    config.snapshots[name] = section
            elif kind == "qemu" and _UNKNOWN_SECTION.fullmatch(line):
                is_known = False
                config.unread.append(f"skipping unknown section: '{line.strip()[1:-1]}'")
            elif not is_known:
                continue
            elif line.startswith("#"):
                comments.append(unquote(line[1:]))
            elif kind == "lxc" and (match := _RAW.fullmatch(line)):
                if _RAW_KEYS.fullmatch(match[1]):
                    section.raw.append((match[1], match[2]))
            elif match := _KEY_VALUE.fullmatch(line):
                config._take(section, name, match[1], match[2])
            elif line.strip():
                config.unread.append(f"unable to parse config: {line}")
        _describe(section, comments, kind)
        return config

    def _take(self, section: Section, name: str, key: str, value: str) -> None:
        if name.lower() == _PENDING[self.kind].lower():
            if key == "delete":
                self.pending_delete = [word.removeprefix("!") for word in split_list(value)]
                return
            values = self.pending
        else:
            values = section.values
        if key == "delete":
            self.unread.append(f"property 'delete' is only allowed in [{_PENDING[self.kind]}]")
        elif key == "description":
            values[key] = unquote(value)
        elif key in _OWN or key == "args":
            values[key] = value
        elif name.lower() != "special:cloudinit":
            try:
                values[key] = checked(self.kind, key, value)
            except FormatError as error:
                self.unread.append(f"unable to parse value of '{key}' - {error}".removesuffix("\n"))
                if self.kind == "lxc":  # which keeps it all the same
                    values[key] = value

    def text(self) -> str:
        """The file's text."""
        parts = [_section_text(self.current, self.kind)]
        if self.is_pending:
            lines = dict(self.pending)
            if self.pending_delete:
                lines["delete"] = ",".join(self.pending_delete)
            parts.append(f"[{_PENDING[self.kind]}]\n" + _section_text(Section(lines, self.pending_raw), self.kind))
        parts += [f"[{name}]\n{_section_text(section, self.kind)}" for name, section in sorted(self.snapshots.items())]
        return "\n".join(parts)

    @property
    def is_pending(self) -> bool:
        """Whether something waits for the next start."""
        return bool(self.pending or self.pending_delete or self.pending_raw)

    def merged(self) -> dict[str, str]:
        """The values as they will be after the next start."""
        kept = {key: value for key, value in self.values.items() if key not in self.pending_delete}
        return {**kept, **self.pending}

    def merged_as_shown(self) -> dict[str, str]:
        """The same as a node says it: what Perl takes for false is there still, though its end waits
        (PVE::AbstractConfig, load_current_config: `delete $conf->{$opt} if $conf->{$opt}`)."""
        return {key: value for key, value in self.values.items() if value in ("", "0")} | self.merged()

    def apply_pending(self) -> None:
        """Put what was pending in force."""
        kept = [] if "lxc" in self.pending_delete else self.current.raw
        self.current = Section(self.merged(), self.pending_raw or kept)
        self.pending, self.pending_delete, self.pending_raw = {}, [], []

    def change(self, values: dict[str, str], delete: list[str], *, at_once: bool) -> None:
        """Set and delete keys, in force at once or from the next start on."""
        for key in delete:
            self.pending.pop(key, None)
            if at_once:
                self.values.pop(key, None)
            elif key in self.values and key not in self.pending_delete:
                self.pending_delete.append(key)
        for key, value in values.items():
            self.pending.pop(key, None)
            self.pending_delete = [name for name in self.pending_delete if name != key]
            if at_once:
                self.values[key] = value
            elif self.values.get(key) != value:
                self.pending[key] = value

    def revert(self, keys: list[str]) -> None:
        """Forget what is pending for some keys."""
        for key in keys:
            self.pending.pop(key, None)
        self.pending_delete = [key for key in self.pending_delete if key not in keys]

    def shown(self, values: dict[str, str], raw: list[tuple[str, str]] | None = None) -> dict[str, Any]:
        """Values as the API gives them: numbers where the option is one, with the digest."""
        found: dict[str, Any] = {key: shown_value(self.kind, key, value) for key, value in values.items()}
        found["digest"] = self.digest
        if raw:
            found["lxc"] = [list(pair) for pair in raw]
        return found

    def shown_pending(self) -> list[dict[str, Any]]:
        """Key by key what is in force and what waits."""
        found = []
        for key, value in {**self.values, "digest": self.digest}.items():
            entry = {"key": key, "value": shown_value(self.kind, key, value)}
            if key in self.pending:
                entry["pending"] = shown_value(self.kind, key, self.pending[key])
            elif key in self.pending_delete:
                entry["delete"] = 1
            found.append(entry)
        new = [key for key in self.pending if key not in self.values]
        return found + [{"key": key, "pending": shown_value(self.kind, key, self.pending[key])} for key in new]


def checked(kind: Kind, key: str, value: str) -> str:
    """A value of a configuration as a node takes it from the file (check_type of PVE::QemuServer and PVE::LXC::Config).

    Raises:
        FormatError: it takes it for none.
    """
    parameter = reference().options[kind].get(key)
    if parameter is None:
        raise FormatError(f"unknown setting '{key}'\n")
    if parameter.kind == "boolean":
        return as_boolean(value)
    if (parameter.kind == "integer" and not re.fullmatch(r"[0-9]+", value)) or (
        parameter.kind == "number" and not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", value)
    ):
        raise FormatError(f"type check ('{parameter.kind}') failed - got '{value}'\n")
    if parameter.format:
        check_format(parameter.format, value, "")
        return value
    return re.sub(r'^"(.*)"$', r"\1", value) if kind == "qemu" else value


def shown_value(kind: Kind, key: str, value: str) -> Any:
    """A value as the API gives it; a password is never shown."""
    if key == "cipassword":
        return "**********"
    parameter = reference().options[kind].get(key)
    if parameter is None or not re.fullmatch(r"-?\d+(?:\.\d+)?", value):
        return int(value) if key == "snaptime" else value
    return typed(parameter, value)


def _describe(section: Section, comments: list[str], kind: Kind) -> None:
    if comments:
        text = section.values.get("description", "") + "".join(f"{line}\n" for line in comments)
        # A VM's description loses its last newline on the way, a container's keeps it.
        section.values["description"] = text.removesuffix("\n") if kind == "qemu" else text


def _section_text(section: Section, kind: Kind) -> str:
    lines = [f"#{quote(line, safe=_TEXT_KEPT)}" for line in section.values.get("description", "").splitlines()]
    lines += [f"{key}: {value}" for key, value in sorted(section.values.items()) if key != "description"]
    lines += [f"{key}: {value}" for key, value in section.raw]
    return "".join(f"{line}\n" for line in lines)
