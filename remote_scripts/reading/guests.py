"""Guests, and what Proxmox VE knows of the host's surroundings."""

from __future__ import annotations

import re

from remote_scripts.pve import guests as running_guests
from remote_scripts.pve import pmxcfs, reservations
from remote_scripts.pve.container_conf import passed_on, sections_of
from remote_scripts.pve.guest_conf import MAPPINGS
from remote_scripts.pve.properties import address
from remote_scripts.reading.answer import Cluster, GuestConfig, Guests, HaFiles
from remote_scripts.reading.source import Source

_PVE = "/etc/pve"
_FOLDERS = {"vm": f"{_PVE}/qemu-server", "lxc": f"{_PVE}/lxc"}
# A user's copy, such as 103-old.conf, is no guest.
_CONF = re.compile(r"[1-9][0-9]*\.conf")
_OPTION = re.compile(
    r"(hostpci[0-9]+|hookscript|onboot|name|ostype|machine|bios|memory|balloon|vga|lock|template|parent|smbios1|meta|delete|args|"
    r"(ide|sata|scsi|virtio|usb)[0-9]+):|#.*Created by Pulumi"
)
_KEY = re.compile(r"[a-z][a-z_-]*[0-9]*:")
# Functions that a VM has by options of QEMU itself, past Proxmox VE; the rest of them may be a secret.
_OF_QEMU = re.compile(r"(?:\bhost\W+|/)((?:[0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?!/*[\w.])")
_QUORATE = re.compile(r"^Quorate: +Yes", re.MULTILINE)


def guests(source: Source, *, running: bool) -> Guests:
    """All of this host.

    :param running: also which run.
    """
    found, unlisted = running_guests.listed(source.system) if running else ([], "")
    configs = []
    for kind, folder in _FOLDERS.items():
        for name in filter(_CONF.fullmatch, source.names(folder)):
            text = source.needed(f"{folder}/{name}")
            if text is None:
                continue
            lines = passed_on(text) if kind == "lxc" else _lines_of_vm(sections_of(text))
            configs.append(GuestConfig(kind, int(name.removesuffix(".conf")), lines))
    return Guests(
        running=[guest.id for guest in found],
        unlisted=unlisted,
        configs=configs,
        mappings=source.passed_on(MAPPINGS),
        reservations=source.passed_on(reservations.FILE),
    )


def cluster(source: Source, *, asked: bool) -> Cluster:
    """Where each guest of the cluster is, and what the cluster is like.

    :param asked: otherwise nothing is read.
    """
    if not asked:
        return Cluster()
    places: list[tuple[str, str, str]] = source.noting(pmxcfs.NODES, lambda: pmxcfs.guests(source.system), [])
    name = re.search(r"^ *cluster_name: *(.*)$", source.files.text(f"{_PVE}/corosync.conf"), re.MULTILINE)
    return Cluster(
        # Where Proxmox VE's file system isn't mounted, it isn't there.
        node=source.linked(f"{_PVE}/local"),
        name=name[1] if name else "",
        places="\n".join(f"{'/'.join(place)}.conf" for place in places),
        quorate=_is_quorate(source),
        ha=_ha_files(source),
    )


def _lines_of_vm(by_section: dict[str, list[str]]) -> str:
    """Above the first section is the VM as it is; [PENDING] is what it gets at its next start, each other section a
    snapshot.
    """

    def read(section: str) -> list[str]:
        lines = (_of_qemu(line) if line.startswith("args:") else line for line in by_section.get(section, ()))
        return [line for line in lines if _OPTION.match(line)]

    lines, pending = read(""), read("pending")
    # Of all that waits the key counts; the value may be a secret.
    keys = [match[0] for line in by_section.get("pending", ()) if (match := _KEY.match(line))]
    pending += [f"{key} *" for key in keys if not any(line.startswith(key) for line in pending)]
    return "\n".join([*lines, "[PENDING]", *pending] if pending else lines)


def _of_qemu(line: str) -> str:
    """The functions in an option `args`; empty: there are none."""
    found = _OF_QEMU.findall(line.lower()) if "vfio-pci" in line else []
    return f"args: {' '.join(map(address, found))}" if found else ""


def _is_quorate(source: Source) -> bool:
    """Whether /etc/pve can be written. On a host that is alone it always can; on a node of a cluster if pvecm says so,
    which says nothing where corosync is off.
    """
    is_alone = source.needed(f"{_PVE}/corosync.conf") is None
    return is_alone or bool(_QUORATE.search(source.ask("pvecm", "status").text))


def _ha_files(source: Source) -> HaFiles:
    """What the HA manager goes by. Nothing where it has no service."""
    if not source.needed(f"{_PVE}/ha/resources.cfg"):
        return HaFiles()
    return HaFiles(source.passed_on(f"{_PVE}/ha/resources.cfg"), source.passed_on(f"{_PVE}/ha/manager_status"))
