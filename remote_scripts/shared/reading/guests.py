"""Guests, and what Proxmox VE knows of the host's surroundings."""

from __future__ import annotations

import re
from collections.abc import Callable

from remote_scripts.shared import guests as running_guests
from remote_scripts.shared import pmxcfs, reservations
from remote_scripts.shared.conf_files import links_of
from remote_scripts.shared.container_conf import parse, passed_on, sections_of, whole
from remote_scripts.shared.guest_conf import MAPPINGS
from remote_scripts.shared.guests import Guest
from remote_scripts.shared.reading.answer import Cluster, GuestConfig, Guests, HaFiles
from remote_scripts.shared.reading.source import Source
from remote_scripts.tools.errors import Failure

_PVE = "/etc/pve"
_FOLDERS = {"vm": f"{_PVE}/qemu-server", "lxc": f"{_PVE}/lxc"}
# A user's copy, such as 103-old.conf, is no guest.
_CONF = re.compile(r"[1-9][0-9]*\.conf")
_OPTION = re.compile(
    r"(hostpci[0-9]+|hookscript|onboot|name|ostype|machine|bios|memory|balloon|vga|lock|template|parent|smbios1|meta|delete|args|"
    r"(ide|sata|scsi|virtio)[0-9]+):"
)
_KEY = re.compile(r"[a-z][a-z_-]*[0-9]*:")
# Functions that a VM has by options of QEMU itself, past Proxmox VE; the rest of them may be a secret. QEMU takes the
# numbers with any number of digits (set_pci_host_devaddr), and any path that leads to the device in sysfs.
_OF_QEMU = re.compile(r"(?:\bhost\W+|/)((?:(?:0x)?[0-9a-f]+:){1,2}(?:0x)?[0-9a-f]{1,2}\.[0-7])(?!/*[\w.])")
_READ_BY_QEMU = re.compile(r"-readconfig\W+?(/[^\s'\",]+)")
# To Proxmox VE these are blanks; an answer doesn't hold them (tools/text.py).
_BLANKS = str.maketrans("\r\f\v", "   ")
_QUORATE = re.compile(r"^Quorate:( +No)?", re.MULTILINE)


def guests(source: Source, *, running: bool) -> Guests:
    """All of this host.

    :param running: also which run.
    """
    running_here, unlisted = list[Guest](), ""
    try:
        running_here = running_guests.running(source.system) if running else []
    except Failure as failure:
        unlisted = failure.found
    paths = [
        f"{folder}/{name}" for folder in _FOLDERS.values() for name in source.names(folder) if _CONF.fullmatch(name)
    ]
    texts = {path: source.needed(path) for path in paths}
    _need_those_that_run(source, running_here, asked=running)

    def link_target(place: str, look: Callable[[], str]) -> str:
        return source.chosen(place, look, place)

    configs = []
    for path, content in texts.items():
        if content is None:
            continue
        text = content.translate(_BLANKS)
        kind = "lxc" if path.startswith(_FOLDERS["lxc"]) else "vm"
        lines = passed_on(whole(text, source.texts_of)) if kind == "lxc" else _lines_of_vm(source, text)
        source.need_room(path, lines)
        links = links_of(source.system, parse(lines), link_target) if kind == "lxc" else {}
        configs.append(GuestConfig(kind, int(path.rpartition("/")[2].removesuffix(".conf")), lines, links))
    return Guests(
        running=[guest.id for guest in running_here],
        unlisted=unlisted,
        configs=configs,
        mappings=source.passed_on(MAPPINGS).translate(_BLANKS),
        reservations=source.passed_on(reservations.FILE),
    )


def cluster(source: Source, *, asked: bool) -> Cluster:
    """Where each guest of the cluster is, and what the cluster is like.

    :param asked: otherwise nothing is read.
    """
    if not asked:
        return Cluster()
    nothing: list[tuple[str, str, str]] = []
    places = source.noting(pmxcfs.NODES, lambda: pmxcfs.guests(source.system), nothing)
    name = re.search(r"^ *cluster_name: *(.*)$", source.text(f"{_PVE}/corosync.conf"), re.MULTILINE)
    return Cluster(
        # Where Proxmox VE's file system isn't mounted, it isn't there.
        node=source.linked(f"{_PVE}/local"),
        name=name[1] if name else "",
        places="\n".join(f"{'/'.join(place)}.conf" for place in places),
        quorate=_is_quorate(source),
        ha=_ha_files(source),
    )


def _lines_of_vm(source: Source, text: str) -> str:
    """Above the first section is the VM as it is; [PENDING] is what it gets at its next start, each other section a
    snapshot.
    """
    by_section = sections_of(text)
    lines, pending = (
        [
            shown
            for line in by_section.get(section, ())
            if _OPTION.match(shown := _of_qemu(source, line) if line.startswith("args:") else line)
        ]
        for section in ("", "pending")
    )
    # Of all that waits the key counts; the value may be a secret.
    keys = [match[0] for line in by_section.get("pending", ()) if (match := _KEY.match(line))]
    pending += [f"{key} *" for key in keys if not any(line.startswith(key) for line in pending)]
    return "\n".join([*lines, "[PENDING]", *pending] if pending else lines)


def _of_qemu(source: Source, line: str) -> str:
    """The functions in an option `args`, and in files of options that it names; empty: there are none."""
    texts = [text for path in _READ_BY_QEMU.findall(line) for text in source.texts_of(path)]
    matches = [
        match for text in (line, *texts) if "vfio-pci" in text.lower() for match in _OF_QEMU.findall(text.lower())
    ]
    return f"args: {' '.join(map(_address, matches))}" if matches else ""


def _address(text: str) -> str:
    """An address as sysfs has it."""
    slot, _, function = text.rpartition(".")
    domain, bus, device = [0, *(int(part, 16) for part in slot.split(":"))][-3:]
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


def _need_those_that_run(source: Source, running: list[Guest], *, asked: bool) -> None:
    """Each guest that runs has its configuration. Where Proxmox VE's file system isn't mounted, none has, and nothing
    else would tell of it.
    """
    for guest in running:
        path = f"{_FOLDERS['lxc' if guest.program == 'pct' else 'vm']}/{guest.id}.conf"
        if not source.exists(path):
            source.note(path, "it isn't there, and that guest runs")
    has_folders = any(source.is_folder(folder) for folder in _FOLDERS.values())
    if asked and not has_folders and source.is_folder(_PVE) and source.run.has("pveversion"):
        source.note(_PVE, "it has no guests' folders, as where Proxmox VE's file system isn't mounted")


def _is_quorate(source: Source) -> bool:
    """Whether /etc/pve can be written. A host that is alone always may; of a node whose pvecm doesn't answer it isn't
    known.
    """
    if not source.exists(f"{_PVE}/corosync.conf"):
        return True
    match = _QUORATE.search(source.ask("pvecm", "status").text)  # it ends with 2 where there is none
    if not match:
        source.note(_PVE, "`pvecm status` doesn't say whether this node has a quorum")
    return not (match and match[1])


def _ha_files(source: Source) -> HaFiles:
    """What the HA manager goes by. Nothing where it has no service."""
    if not source.needed(f"{_PVE}/ha/resources.cfg"):
        return HaFiles()
    names = ("resources.cfg", "groups.cfg", "rules.cfg", "manager_status")
    return HaFiles(*(source.passed_on(f"{_PVE}/ha/{name}") for name in names))
