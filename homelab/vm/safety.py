"""What is decided about a guest's snapshot or backup before its first change, and how it is said: for VMs and containers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from homelab.errors import HomelabError
from homelab.host.facts import HostFacts, noted_in
from homelab.properties import FALSE, TRUE
from homelab.settings import Container, Vm
from homelab.vm.config import identity

# Options of a guest that are disks, by kind.
_DISKS = {
    "qemu": re.compile(r"(?:ide|sata|scsi|virtio)\d+|efidisk0|tpmstate0"),
    "lxc": re.compile(r"rootfs|mp\d+"),
}

_ADDRESS = re.compile(r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}")


def noted_as(vmid: int) -> str:
    """The name of the note that the host keeps of a guest's copy (homelab/remote/ledger.py)."""
    return f"safety/{vmid}"


def label(kind: str, vmid: int) -> str:
    """How a guest is called.

    :param kind: qemu or lxc.
    """
    return f"{'VM' if kind == 'qemu' else 'container'} {vmid}"


def disks(kind: str, config: Mapping[str, str]) -> dict[str, str]:
    """A guest's disks: option -> volume, or a folder of the host that a container has mounted."""
    found = {key: value.partition(",")[0] for key, value in config.items() if _DISKS[kind].fullmatch(key)}
    return {key: volume for key, volume in found.items() if "media=cdrom" not in config[key]}


def identity_of(kind: str, config: Mapping[str, str]) -> str:
    """What a guest keeps, and another one of the same id hasn't.

    A container has no UUID: its network cards' addresses, which Proxmox VE makes up, are as near as it gets; without any, its disk.

    :param kind: qemu or lxc.
    """
    if kind == "qemu":
        return identity(dict(config))
    cards = [value for key, value in config.items() if re.fullmatch(r"net\d+", key)]
    addresses = [found[1].upper() for card in cards if (found := re.search(r"\bhwaddr=([0-9A-Fa-f:]+)", card))]
    return " ".join(sorted(addresses)) or config.get("rootfs", "").partition(",")[0]


def is_another_container(before: str, now: str) -> bool:
    """By what `identity_of` said of two containers of one id: none of the one's network cards is the other's. A disk may have got another name as it moved."""
    known, found = (set(_ADDRESS.findall(one)) for one in (before, now))
    return bool(known and found) and not known & found


def left_out(kind: str, config: Mapping[str, str]) -> dict[str, str]:
    """Volumes of the guest that no backup of it has: option -> volume. Of a container, each mount point without backup=1; of a VM, disks with backup=0.

    As PVE::LXC::Config::mountpoint_backup_enabled and PVE::QemuServer have it.
    """
    found = {key: volume for key, volume in disks(kind, config).items() if not volume.startswith("/")}
    if kind == "lxc":
        return {key: one for key, one in found.items() if key != "rootfs" and not _has(config[key], "backup", TRUE)}
    return {key: one for key, one in found.items() if _has(config[key], "backup", FALSE)}


def _has(option: str, name: str, words: frozenset[str]) -> bool:
    return any(part.partition("=")[0] == name and part.partition("=")[2].lower() in words for part in option.split(","))


def mounted(kind: str, config: Mapping[str, str]) -> list[str]:
    """Folders of the host in a container: no snapshot and no backup has them."""
    return [volume for volume in disks(kind, config).values() if volume.startswith("/")]


def planned(guest: Vm | Container, facts: HostFacts) -> list[str]:
    """The plan's line for it; none where nothing is made any more."""
    vmid = guest.vmid if isinstance(guest, Vm) else guest.ctid
    if guest.safety == "none" or is_made(guest, facts):
        return []
    config = facts.guests.config(vmid)
    kind = "qemu" if isinstance(guest, Vm) else "lxc"
    away = [f"{volume} of the host" for volume in mounted(kind, config.values)] if config else []
    away += [f"{key} ({volume})" for key, volume in left_out(kind, config.values).items()] if config else []
    if guest.safety == "snapshot":
        return ["first a snapshot of it (without RAM); it stays when the stack is destroyed"]
    without = f", without {', '.join(away)}" if away else ""
    return [f"first a backup of it on {guest.backup_storage}{without}; it stays when the stack is destroyed"]


def is_made(guest: Vm | Container, facts: HostFacts) -> bool:
    """Is the copy made that the settings ask for, of the guest that has the id now? A note alone says that one was begun."""
    kind, vmid = ("qemu", guest.vmid) if isinstance(guest, Vm) else ("lxc", guest.ctid)
    noted, config = noted_in(facts.ledger, noted_as(vmid)), facts.guests.config(vmid)
    if noted is None or config is None or "copy" not in noted:
        return False
    asked = {
        "safety": guest.safety,
        "storage": guest.backup_storage or "",
        "identity": identity_of(kind, config.values),
    }
    return asked.items() <= noted.items()


def no_snapshot(place: str, kind: str, vmid: int, config: Mapping[str, str]) -> HomelabError:
    """Why Proxmox VE can't take one.

    :param place: the guest in the settings, `vms.sandbox`.
    """
    bound = mounted(kind, config)
    named = ", ".join(f"{key} ({volume})" for key, volume in sorted(disks(kind, config).items()))
    return HomelabError(
        wanted=f"a snapshot of {label(kind, vmid)} before its first change ({place}.safety: snapshot)",
        found=f"Proxmox VE can't take one; its disks: {named or 'none'}",
        why=f"a folder of the host that is mounted inside ({', '.join(bound)}) has no snapshots; nothing was changed"
        if bound
        else "the storage of at least one disk has no snapshots (a raw file in a directory, LVM that isn't thin); nothing was changed",
        next=f"set {place}.safety to backup, with a backupStorage, or to none",
    )


def no_backup(place: str, kind: str, vmid: int, config: Mapping[str, str]) -> HomelabError | None:
    """Why a backup would be no way back; None: it is one. Of a VM, disks that aren't in it stay, as unused ones.

    Of a container, `pct restore --force` removes every volume before it makes those anew that are in the backup.
    """
    away = left_out(kind, config) if kind == "lxc" else {}
    if not away:
        return None
    named = ", ".join(
        f"{key} ({config[key].partition('mp=')[2].partition(',')[0]}, {away[key]})" for key in sorted(away)
    )
    return HomelabError(
        wanted=f"a backup of {label(kind, vmid)} before its first change ({place}.safety: backup)",
        found=f"a backup leaves out {named}: without backup=1 Proxmox VE backs up no mount point's volume",
        why="to restore the container from it would remove these volumes for good, with what is on them; nothing was changed",
        next=f"set backup=1 on each (Resources, Edit, Backup, in the container's web page); or set {place}.safety to snapshot, which has them, or to none",
    )


def no_storage(place: str, storage: str, rows: list[Mapping[str, object]]) -> HomelabError | None:
    """Why a backup can't lie there; None: it can.

    :param rows: the node's storages.
    """
    row = next((row for row in rows if row.get("storage") == storage), None)
    usable = sorted(str(row["storage"]) for row in rows if "backup" in str(row.get("content", "")).split(","))
    if row is not None and storage in usable and row.get("active", 1):
        return None
    found = "the node has no such storage, or the API's user may not see it"
    if row is not None:
        found = "it takes no backups" if storage not in usable else "it isn't active"
    return HomelabError(
        wanted=f"a backup on the storage {storage} before the first change ({place}.backupStorage)",
        found=f"{found}; storages for backups: {', '.join(usable) or 'none'}",
        why="without it the guest would be changed with no way back to what is on its disks; nothing was changed",
        next=f"name one that has the content `backup` in {place}.backupStorage, or set {place}.safety to none",
    )


def advice(kind: str, vmid: int, node: str, safety: str, copy: str) -> str:
    """How to go back to it, and how to be rid of it."""
    program = "qm" if kind == "qemu" else "pct"
    # Its configuration is that of then: a mapping, a node's number may mean another card by now.
    after = "Where a stack still has it, run `pulumi up --refresh` after that. "
    if safety == "snapshot":
        return (
            f"the snapshot {copy} of {label(kind, vmid)} stays. To go back to it, and lose what came after it: "
            f"`{program} rollback {vmid} {copy}`. {after}To remove it: `{program} delsnapshot {vmid} {copy}`"
        )
    back = f"`qmrestore {copy} {vmid} --force`" if kind == "qemu" else f"`pct restore {vmid} {copy} --force`"
    path = f"/nodes/{node}/storage/{copy.partition(':')[0]}/content/{copy}"
    beware = "disks that aren't in it (backup=0) stay, as unused ones"
    if kind == "lxc":
        beware = (
            f"it removes every volume of the container first, those too that the backup doesn't have: see `pct config {vmid}` for "
            "mount points without backup=1, or added since, and back those up before"
        )
    return (
        f"the backup {copy} of {label(kind, vmid)} stays. To go back to it, and lose what came after it: {back}; {beware}. {after}To remove it: "
        f"`pvesh set {path} --protected 0`, then `pvesm free {copy}`"
    )
