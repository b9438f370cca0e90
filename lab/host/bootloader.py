"""What GRUB and systemd-boot would start: entries from the *generated* configuration, the default among them.

GRUB: /boot/grub/grub.cfg and grubenv, or the copy on the first EFI system partition when proxmox-boot-tool
manages them. systemd-boot: loader/loader.conf and loader/entries/*.conf on that partition.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from .grub_script import Script
from .state import HostState, version_key
from .sysfs import take_one_shot

GRUBENV_SIZE = 1024
_GRUBENV_HEADER = "# GRUB Environment Block\n"


class BootError(Exception):
    """The boot loader or the early kernel gives up; the text is what a person would see on the console."""


@dataclass(frozen=True)
class BootEntry:
    """What a boot loader hands over: title path and id, kernel and initrd files, the command line."""

    title: str
    identifier: str
    kernel: str
    image: Path
    initrd: Path | None
    cmdline: str


@dataclass
class MenuItem:
    """A menuentry, or a submenu with its children."""

    title: str
    identifier: str
    linux: list[str] = field(default_factory=list)
    initrd: str | None = None
    children: list[MenuItem] | None = None


@dataclass
class GrubConfig:
    """A parsed grub.cfg: the menu and the value of `default`."""

    items: list[MenuItem]
    default: str


def choose(host: HostState) -> BootEntry:
    """The entry that the firmware and the boot loader would start now.

    Raises:
        BootError: nothing bootable is found.
    """
    machine = host.machine
    wanted = machine["next_entry"]
    if machine["boot"]["loader"] == "systemd-boot":
        return _systemd_boot(host, wanted)
    return _grub(host, wanted)


def boot_esp(host: HostState) -> Path | None:
    """The first EFI system partition that proxmox-boot-tool manages and that is there, else None."""
    for line in host.read("/etc/kernel/proxmox-boot-uuids", "").splitlines():
        if line.strip() and (host.esp / line.strip()).is_dir():
            return host.esp / line.strip()
    return None


# -- GRUB ------------------------------------------------------------------------------------------------
def _grub(host: HostState, wanted: str | None) -> BootEntry:
    esp = boot_esp(host) if host.machine["boot"]["esps"] else None
    prefix = (esp or host.root / "boot") / "grub"
    config_file = prefix / "grub.cfg"
    if not config_file.exists():
        raise BootError(f"grub> (no {host.unrooted(config_file)}: GRUB stops at its prompt)")
    text = config_file.read_text(encoding="utf-8")
    custom = prefix / "custom.cfg"
    is_sourced = custom.exists() and "custom.cfg" in text
    config = parse_grub(text)
    if is_sourced:
        config.items.extend(parse_grub(custom.read_text(encoding="utf-8")).items)
    environment = read_grubenv(prefix / "grubenv")
    if wanted is not None:
        choice = wanted
    elif environment.get("next_entry"):
        choice = environment["next_entry"]
        if esp is not None or host.machine["boot"]["grub_can_write"]:
            # GRUB's save_env only writes to plain file systems, never to LVM or ZFS.
            environment["next_entry"] = ""
            write_grubenv(prefix / "grubenv", environment)
    elif config.default == "${saved_entry}":
        choice = environment.get("saved_entry") or "0"
    else:
        choice = config.default
    if wanted is None and is_sourced:
        script = Script(host, prefix, writable=host.machine["boot"]["grub_can_write"])
        script.run(custom.read_text(encoding="utf-8"))
        choice = script.variables.get("default", choice)
        chosen = find_entry(config.items, choice)
        if chosen and "fallback" in script.variables and not _has_kernel(host, chosen, esp):
            choice = script.variables["fallback"]
    found = find_entry(config.items, choice)
    if found is None:
        if wanted is not None:
            raise BootError(f"GRUB: no entry {wanted!r}")
        found = find_entry(config.items, "0")
    if found is None or not found.linux:
        raise BootError("GRUB: error: no menu entry with a Linux kernel")
    return _grub_entry(host, found, esp)


def _real(host: HostState, path: str, esp: Path | None) -> Path:
    """A file by GRUB's name of it."""
    return (esp if esp is not None else host.root) / re.sub(r"^/ROOT/[^/]+@", "", path).lstrip("/")


def _has_kernel(host: HostState, item: MenuItem, esp: Path | None) -> bool:
    return bool(item.linux) and _real(host, item.linux[0], esp).exists()


def _grub_entry(host: HostState, item: MenuItem, esp: Path | None) -> BootEntry:
    image = item.linux[0]

    def real(path: str) -> Path:
        return _real(host, path, esp)

    kernel = image.rsplit("/vmlinuz-", 1)[-1]
    if not real(image).exists():
        raise BootError(f"error: file `{image}' not found. error: you need to load the kernel first.")
    cmdline = " ".join([f"BOOT_IMAGE={image}", *item.linux[1:]])
    initrd = real(item.initrd) if item.initrd else None
    return BootEntry(item.title, item.identifier, kernel, real(image), initrd, cmdline)


_ENTRY = re.compile(r"^(menuentry|submenu)\s+(.*)\{\s*$")


def parse_grub(text: str) -> GrubConfig:
    """A grub.cfg as GRUB reads it, as far as grub-mkconfig and hand-written entries go."""
    items: list[MenuItem] = []
    stack: list[list[MenuItem]] = [items]
    open_items: list[MenuItem] = []
    default = "0"
    for raw in text.splitlines():
        line = raw.strip()
        match = _ENTRY.match(line)
        if match:
            item = _menu_item(match[1], match[2])
            stack[-1].append(item)
            open_items.append(item)
            stack.append(item.children if item.children is not None else [])
        elif line == "}" and open_items:
            open_items.pop()
            stack.pop()
        elif open_items and open_items[-1].children is None:
            _entry_line(open_items[-1], line)
        elif not open_items and line.startswith("set default="):
            value = line.removeprefix("set default=").strip('"')
            if value != "${next_entry}":
                default = value
    return GrubConfig(items, default)


def _menu_item(kind: str, rest: str) -> MenuItem:
    words = shlex.split(rest)
    identifier = ""
    for option in ("$menuentry_id_option", "--id"):
        if option in words[:-1]:
            identifier = words[words.index(option) + 1]
    return MenuItem(words[0], identifier, children=[] if kind == "submenu" else None)


def _entry_line(item: MenuItem, line: str) -> None:
    words = shlex.split(line, comments=True) if line.startswith(("linux", "initrd")) else []
    if words and words[0] in ("linux", "linuxefi", "linux16"):
        item.linux = words[1:]
    elif words and words[0] in ("initrd", "initrdefi", "initrd16"):
        item.initrd = words[-1]


def find_entry(items: list[MenuItem], choice: str) -> MenuItem | None:
    """The entry that GRUB's `default` means: a number, a title, an id, or a path of these joined by `>`."""
    head, _, rest = choice.partition(">")
    for index, item in enumerate(items):
        if head not in (item.title, item.identifier, str(index)):
            continue
        if item.children is None:
            return item if not rest else None
        return find_entry(item.children, rest or "0")
    return None


def read_grubenv(path: Path) -> dict[str, str]:
    """The variables of a GRUB environment block; empty when there is none."""
    if not path.exists():
        return {}
    pairs = [
        line.partition("=")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "=" in line and not line.startswith("#")
    ]
    return {key: value for key, _, value in pairs}


def write_grubenv(path: Path, values: dict[str, str]) -> None:
    """Write an environment block: 1024 bytes, filled up with `#`."""
    text = _GRUBENV_HEADER + "".join(f"{key}={value}\n" for key, value in values.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "#" * (GRUBENV_SIZE - len(text)), encoding="utf-8")


# -- systemd-boot ----------------------------------------------------------------------------------------
def loader_entries(esp: Path) -> dict[str, dict[str, str]]:
    """The entries of an ESP by file name, newest version first, as systemd-boot sorts them."""
    entries: dict[str, dict[str, str]] = {}
    for path in (esp / "loader/entries").glob("*.conf"):
        fields: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.strip().partition(" ")
            if key and not key.startswith("#"):
                # `options` may be given several times; they are joined.
                fields[key] = f"{fields[key]} {value.strip()}" if key == "options" and key in fields else value.strip()
        if (esp / fields.get("linux", "?").lstrip("/")).is_file():
            entries[path.name] = fields
    order = sorted(entries, key=lambda n: (version_key(entries[n].get("version", "")), n), reverse=True)
    return {name: entries[name] for name in order}


def _systemd_boot(host: HostState, wanted: str | None) -> BootEntry:
    esp = boot_esp(host)
    if esp is None:
        raise BootError("firmware: no bootable device (no EFI system partition with systemd-boot)")
    entries = loader_entries(esp)
    if not entries:
        raise BootError("systemd-boot: no loader entry with a kernel that exists")
    one_shot = take_one_shot(host)
    name = one_shot if wanted is None and one_shot in entries else _pick(entries, wanted, esp)
    fields = entries[name]
    image = fields["linux"]
    initrd = fields.get("initrd")
    arguments = fields.get("options", "")
    words = ([f"initrd={initrd}".replace("/", "\\")] if initrd else []) + arguments.split()
    return BootEntry(
        title=fields.get("title", name),
        identifier=name,
        kernel=image.rsplit("/vmlinuz-", 1)[-1],
        image=esp / image.lstrip("/"),
        initrd=esp / initrd.lstrip("/") if initrd else None,
        cmdline=" ".join(words),
    )


def _pick(entries: dict[str, dict[str, str]], wanted: str | None, esp: Path) -> str:
    if wanted is not None:
        for name, fields in entries.items():
            if wanted in (name, name.removesuffix(".conf"), fields.get("title")):
                return name
        raise BootError(f"systemd-boot: no entry {wanted!r}; there are: {', '.join(entries)}")
    config = esp / "loader/loader.conf"
    pattern = "*"
    for line in config.read_text(encoding="utf-8").splitlines() if config.exists() else []:
        key, _, value = line.strip().partition(" ")
        if key == "default":
            pattern = value.strip()
    for name in entries:
        if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.removesuffix(".conf"), pattern):
            return name
    return next(iter(entries))
