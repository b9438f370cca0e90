"""VMs: /nodes/{node}/qemu. Messages and order of checks are PVE::API2::Qemu's."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable
from typing import Any

from lab.host.pve_packages import is_pve9
from lab.host.state import HostState

from . import ha_config, hooks
from .call import Call
from .errors import ApiError, Died, bad_parameters
from .formats import format_properties, format_size, size_of
from .guest_config import GuestConfig
from .guests import (
    Change,
    Guest,
    await_config_lock,
    disturbed,
    guests_of,
    locked_config,
    new_mac,
    option_values,
    require_unlocked,
    taken_by,
)
from .options import parse_properties
from .qemu_power import existing, start
from .quorum import require_cluster_ready
from .storage import Storages
from .tasks import TaskLog, Work

_QEMU = "10.0.13"
_DISK = re.compile(r"(?:ide[0-3]|sata[0-5]|scsi\d+|virtio\d+|efidisk0|tpmstate0)")
_NET = re.compile(r"net\d+")
# Fixed sizes of the disks that hold firmware state, as they come out on a directory.
_EFIDISK_BYTES, _TPMSTATE_BYTES = 528 << 10, 4 << 20
_GIB = 1 << 30
#: What waits until a VM has run for so long needn't wait as long.
_UPTIME_PER_SECOND = 20
#: How long what runs in a VM waited for want of something.
PRESSURES = tuple(f"pressure{what}" for what in ("cpufull", "cpusome", "iofull", "iosome", "memoryfull", "memorysome"))
_SUPPORT = ("pbs-dirty-bitmap", "query-bitmap-info")
# What a running VM takes at once; all else waits for its next start.
_AT_ONCE = frozenset(
    (
        "lock", "name", "onboot", "shares", "startup", "description", "protection", "vmstatestorage", "hookscript",
        "tags", "freeze", "migrate_downtime", "migrate_speed", "autostart",
    )
)  # fmt: skip


# -- what is asked ---------------------------------------------------------------------------------------------
def listing(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/qemu."""
    return [summary(guest) for guest in guests_of(call.host, "qemu")]


def summary(guest: Guest) -> dict[str, Any]:
    """What lists say of a VM."""
    config = guest.config()
    values = config.values
    sockets, cores = int(values.get("sockets", "1")), int(values.get("cores", "1"))
    running = guest.running
    memory = _memory(values)
    found: dict[str, Any] = {
        "vmid": guest.vmid, "name": values.get("name", f"VM {guest.vmid}"), "status": "running" if running else "stopped",
        "cpu": 0, "cpus": int(values.get("vcpus", str(sockets * cores))), "mem": memory // 4 if running else 0,
        "memhost": memory // 4 if running else 0, "maxmem": memory, "disk": 0, "maxdisk": _boot_disk_bytes(values),
        "netin": 0, "netout": 0, "uptime": int(guest.uptime * _UPTIME_PER_SECOND),
    }  # fmt: skip
    for key in ("tags", "lock"):
        if key in values:
            found[key] = values[key]
    if values.get("template") == "1":
        found["template"] = 1
    if running:
        found["pid"] = guest.pid
        if is_pve9(guest.host):
            found |= dict.fromkeys(PRESSURES, 0)
    if not is_pve9(guest.host):
        del found["memhost"]
    return found


def _running_details(guest: Guest) -> dict[str, Any]:
    """What QEMU itself says of a running VM, which takes longer to ask for."""
    if not guest.running:
        return {}
    kind = "q35" if "q35" in guest.config().values.get("machine", "") else "i440fx"
    return {
        "diskread": 0, "diskwrite": 0, "proxmox-support": dict.fromkeys(_SUPPORT, True), "running-qemu": _QEMU,
        "running-machine": f"pc-{kind}-{_QEMU.rpartition('.')[0]}+pve0",
    }  # fmt: skip


def _qmp_status(guest: Guest) -> str:
    return "paused" if guest.paused else "running" if guest.running else "stopped"


def status(call: Call) -> dict[str, Any]:
    """GET .../status/current."""
    guest = call.guest("qemu")
    values = guest.config().values
    found = {**summary(guest), **_running_details(guest), "ha": ha_config.shown(guest), "qmpstatus": _qmp_status(guest)}
    if agent_enabled(values):
        found["agent"] = 1
    if "vga" in values:
        found["clipboard"] = parse_properties("qemu-vga", values["vga"]).get("clipboard")
    if any(key.startswith("serial") for key in values):
        found["serial"] = 1
    if guest.running:
        nets = sorted(key for key in values if _NET.fullmatch(key))
        if nets:
            found["nics"] = {f"tap{guest.vmid}i{key.removeprefix('net')}": {"netin": 0, "netout": 0} for key in nets}
    return found


def config(call: Call) -> dict[str, Any]:
    """GET .../config: with what waits for the next start, unless `current` or a snapshot is asked for."""
    return shown_config(call, call.guest("qemu"))


def shown_config(call: Call, guest: Guest) -> dict[str, Any]:
    """A guest's configuration as a request asks for it.

    Raises:
        ApiError: 500, no such guest or snapshot.
    """
    read = guest.config()
    if name := call.parameters.get("snapshot"):
        if name not in read.snapshots:
            raise Died(f"snapshot '{name}' does not exist")
        return read.shown(read.snapshots[name].values, read.snapshots[name].raw)
    return read.shown(read.values if call.parameters.get("current") else read.merged_as_shown(), read.current.raw)


def pending(call: Call) -> list[dict[str, Any]]:
    """GET .../pending."""
    return call.guest("qemu").config().shown_pending()


def agent_enabled(values: dict[str, str]) -> bool:
    """Whether the configuration has the guest agent on."""
    return parse_properties("qemu-agent", values.get("agent", "0")).get("enabled") == "1"


def _memory(values: dict[str, str]) -> int:
    return int(parse_properties("qemu-memory", values.get("memory", "512"))["current"]) << 20


def _boot_disk_bytes(values: dict[str, str]) -> int:
    order = re.search(r"order=([^,]+)", values.get("boot", ""))
    names = order[1].split(";") if order else sorted(key for key in values if _DISK.fullmatch(key))
    for name in names:
        size = re.search(r"(?:^|,)size=([^,]+)", values.get(name, "")) if _DISK.fullmatch(name) else None
        if size and "media=cdrom" not in values[name]:
            return size_of(size[1])
    return 0


# -- what is refused -------------------------------------------------------------------------------------------
def _require_hook_script(host: HostState, values: dict[str, str]) -> None:
    """Refuse a hook script that isn't an executable file among a storage's snippets.

    Raises:
        ApiError: 400.
    """
    if "hookscript" not in values:
        return
    try:
        hooks.require(host, values["hookscript"], content=True)
    except ApiError as error:
        raise bad_parameters({"hookscript": error.text}) from error


# -- values on their way into the configuration -----------------------------------------------------------------
class _Filler:
    """Makes of what a request says what the configuration gets: disks allocated, MAC addresses and ids made."""

    def __init__(self, host: HostState, vmid: int, log: Any, taken: set[str]) -> None:
        self._storages = Storages(host)
        self._host, self._vmid, self._log, self._taken = host, vmid, log, taken

    def fill(self, values: dict[str, str]) -> dict[str, str]:
        """All of a request's values."""
        return {key: self._value(key, value) for key, value in sorted(values.items())}

    def _value(self, key: str, value: str) -> str:
        if _NET.fullmatch(key):
            option = parse_properties("qemu-net", value)
            option.setdefault("macaddr", new_mac(f"{self._host.node}/{self._vmid}/{key}/{uuid.uuid4()}"))
            return format_properties("qemu-net", option)
        if _DISK.fullmatch(key):
            return self._disk(key, value)
        if key == "vmgenid" and value == "1":
            return str(uuid.uuid4())
        if key == "cipassword":
            return "$5$" + hashlib.sha256(value.encode()).hexdigest()
        return value

    def _disk(self, key: str, value: str) -> str:
        form = {"efidisk0": "qemu-efidisk", "tpmstate0": "qemu-tpmstate"}.get(key, "qemu-disk")
        option = parse_properties(form, value)
        file = option["file"]
        storage, _, rest = file.partition(":")
        if rest == "cloudinit":
            return self._cloudinit(storage)
        if not re.fullmatch(r"\d+(?:\.\d+)?", rest):
            if rest:
                self._storages.require_volume(file)
            return value
        size = {"efidisk0": _EFIDISK_BYTES, "tpmstate0": _TPMSTATE_BYTES}.get(key, int(float(rest) * _GIB))
        if source := option.pop("import-from", None):
            self._storages.require_volume(source)
            size = size or 2 * _GIB
        if key in ("efidisk0", "tpmstate0") and self._storages.get(storage).kind != "dir":
            size = 4 << 20  # the smallest extent of a thin pool
        option["file"] = self._storages.allocate(storage, self._vmid, size, self._taken, self._log)
        self._taken.add(option["file"])
        text = format_properties(form, {**option, "size": format_size(size)})
        self._log(f"{key}: successfully created disk '{text}'")
        return text

    def _cloudinit(self, storage: str) -> str:
        kind = self._storages.get(storage).kind
        name = f"vm-{self._vmid}-cloudinit"
        volume = f"{storage}:{self._vmid}/{name}.qcow2" if kind == "dir" else f"{storage}:{name}"
        return f"{volume},media=cdrom"


def _volumes(values: dict[str, str]) -> set[str]:
    return {value.partition(",")[0].removeprefix("file=") for key, value in values.items() if _is_volume(key)}


def _is_volume(key: str) -> bool:
    return bool(_DISK.fullmatch(key)) or key.startswith("unused")


# -- create and delete -----------------------------------------------------------------------------------------
def create(call: Call) -> str:
    """POST /nodes/{node}/qemu."""
    guest = call.guest("qemu")
    if "archive" in call.parameters:
        raise Died("the lab restores no backups: create the VM from its settings")
    wanted = option_values("qemu", call.parameters)
    _require_hook_script(call.host, wanted)
    require_cluster_ready(call.host)
    if taken := taken_by(call.host, guest.vmid):
        raise Died(f"unable to create VM {guest.vmid} - {taken}")
    reserved = GuestConfig("qemu")
    reserved.values["lock"] = "create"
    guest.save(reserved)

    def work(log: TaskLog) -> Work:
        yield 0.05
        try:
            values = _Filler(call.host, guest.vmid, log, set()).fill(wanted)
        except ApiError as error:
            guest.remove()
            raise Died(f"unable to create VM {guest.vmid} - {error.text}") from error
        made = GuestConfig("qemu")
        made.values.update(_defaults(call.host, values) | values)
        guest.save(made)
        if call.parameters.get("start"):
            start(call)

    return call.start("qmcreate", str(guest.vmid), work)


def _defaults(host: HostState, values: dict[str, str]) -> dict[str, str]:
    """What a node adds to a new VM."""
    made = {
        "meta": f"creation-qemu={_QEMU},ctime={host.clock()}",
        "smbios1": f"uuid={uuid.uuid4()}",
        "vmgenid": str(uuid.uuid4()),
    }
    disks = sorted(k for k in values if re.fullmatch(r"(?:ide|sata|scsi|virtio)\d+", k))
    devices = [k for k in disks if "media=cdrom" not in values[k]][:1]
    devices += [k for k in disks if "media=cdrom" in values[k] and "cloudinit" not in values[k]]
    devices += sorted(k for k in values if _NET.fullmatch(k))
    # Nothing to boot from is written down as well: `boot:` and a blank.
    return {**made, "boot": f"order={';'.join(devices)}" if devices else ""}


def destroy(call: Call) -> str:
    """DELETE .../{vmid}."""
    guest = call.guest("qemu")
    config = guest.config()
    if config.values.get("protection") == "1":
        raise Died(f"can't remove VM {guest.vmid} - protection mode enabled")
    if guest.running:
        raise Died(f"VM {guest.vmid} is running - destroy failed")

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        read = guest.config()
        if not call.parameters.get("skiplock") and read.values.get("lock") != "suspended":
            require_unlocked(guest, read)
        guest.save(read)
        yield 0.05
        for volume in sorted(_volumes(guest.config().values)):  # gone by now, if another task was faster
            Storages(call.host).free(volume)
        if call.parameters.get("purge"):
            guest.purge(log)
        guest.remove()

    return call.start("qmdestroy", str(guest.vmid), work)


def clone(call: Call) -> str:
    """POST .../clone."""
    source, new = call.guest("qemu"), Guest(call.host, "qemu", int(call.parameters["newid"]))
    require_cluster_ready(call.host)
    config = existing(source)
    require_unlocked(source, config)
    if taken_by(call.host, new.vmid):
        raise Died(f"unable to create VM {new.vmid}: config file already exists")
    full = call.parameters.get("full", 0 if config.values.get("template") == "1" else 1)
    if not full and config.values.get("template") != "1" and _volumes(config.values):
        raise Died("Linked clone feature is not available for a VM that is no template")
    reserved = GuestConfig("qemu")
    reserved.values["lock"] = "clone"
    new.save(reserved)

    def work(log: TaskLog) -> Work:
        if is_pve9(call.host):
            log(f"creating a clone of VM {source.vmid} with ID {new.vmid}")
        yield 0.1
        made = GuestConfig("qemu")
        try:
            made.values.update(_cloned(call, config.values, new.vmid, log))
        except ApiError as error:
            new.remove()
            raise Died(f"clone failed: {error.text}") from error
        new.save(made)
        new.set_system(source.system)

    return call.start("qmclone", str(source.vmid), work)


def _cloned(call: Call, values: dict[str, str], vmid: int, log: TaskLog) -> dict[str, str]:
    kept = {k: v for k, v in values.items() if k not in ("template", "lock", "parent") and not k.startswith("unused")}
    made = kept | {k: v for k, v in _defaults(call.host, {}).items() if k in kept and k != "boot"}
    made["name"] = call.parameters.get("name", f"Copy-of-{values.get('name', 'VM')}")
    if "description" in call.parameters:
        made["description"] = call.parameters["description"]
    storages, taken = Storages(call.host), set[str]()
    for key in sorted(k for k in kept if _DISK.fullmatch(k) and "media=cdrom" not in kept[k]):
        file, comma, rest = kept[key].partition(",")
        size = re.search(r"size=([^,]+)", rest)
        name = call.parameters.get("storage", file.partition(":")[0])
        volume = storages.allocate(name, vmid, size_of(size[1]) if size else _GIB, taken, log)
        taken.add(volume)
        made[key] = f"{volume}{comma}{rest}"
    for key in (k for k in kept if _NET.fullmatch(k)):
        option = parse_properties("qemu-net", kept[key])
        made[key] = format_properties("qemu-net", option | {"macaddr": new_mac(f"{vmid}/{key}/{uuid.uuid4()}")})
    return made


def resize(call: Call) -> str:
    """PUT .../resize: a disk grows; with `+`, by that much."""
    guest, disk, wanted = call.guest("qemu"), call.parameters["disk"], call.parameters["size"]

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        config = guest.config()
        require_digest(config, call.parameters.get("digest"), "checksum mismatch (file change by other user?)")
        if not call.parameters.get("skiplock"):
            require_unlocked(guest, config)
        if disk not in config.values:
            raise Died(f"disk '{disk}' does not exist")
        old = re.search(r"size=([^,]+)", config.values[disk])
        before = size_of(old[1]) if old else 0
        size = size_of(wanted.removeprefix("+")) + (before if wanted.startswith("+") else 0)
        if size < before:
            raise Died("shrinking disks is not supported")
        if Storages(call.host).get(config.values[disk].partition(":")[0]).kind == "dir" and not guest.running:
            log("Image resized.")
        config.values[disk] = re.sub(r",size=[^,]+", "", config.values[disk]) + f",size={format_size(size)}"
        guest.save(config)
        yield 0.02

    return call.start("resize", str(guest.vmid), work)


# -- change ----------------------------------------------------------------------------------------------------
def require_digest(config: GuestConfig, digest: str | None, message: str) -> None:
    """Refuse a change of what somebody else has changed.

    Raises:
        ApiError: 500 with the message.
    """
    if digest is not None and digest != config.digest:
        raise Died(message)


def update(call: Call) -> None:
    """PUT .../config: done when it is answered."""
    guest, change = call.guest("qemu"), _checked_change(call)
    with locked_config(guest):
        _require_applicable(call, guest, change, disturbed(guest))
        call.say(_described(guest, change))
        _change(call, change, call.say)


def _described(guest: Guest, change: Change) -> str:
    """What `qm set` and a task's log say of a change."""
    words = [f"-{key} {value}" for key, value in sorted(change.values.items())]
    words += [f"-delete {','.join(change.delete)}"] if change.delete else []
    words += [f"-revert {','.join(change.revert)}"] if change.revert else []
    return f"update VM {guest.vmid}: {' '.join(words)}"


def _checked_change(call: Call) -> Change:
    """What a request wants changed.

    Raises:
        ApiError: 400, there is no such hook script.
    """
    change = Change.of("qemu", call.parameters)
    _require_hook_script(call.host, change.values)
    return change


def _require_applicable(call: Call, guest: Guest, change: Change, config: GuestConfig) -> None:
    """Refuse a change of what is locked or was changed meanwhile, or one to a boot order without its device.

    Raises:
        ApiError: 500.
    """
    require_digest(config, change.digest, "checksum mismatch (file change by other user?)")
    if not call.parameters.get("skiplock"):
        require_unlocked(guest, config)
    _require_bootable(change, config.merged())


def _require_bootable(change: Change, before: dict[str, str]) -> None:
    order = re.search(r"order=([^,]+)", change.values.get("boot", ""))
    for device in order[1].split(";") if order else []:
        if device not in before and device not in change.values:
            raise Died(f"invalid bootorder: device '{device}' does not exist'")


def _change(call: Call, change: Change, log: Callable[[str], None]) -> None:
    guest = call.guest("qemu")
    config = guest.config()
    before = config.merged()
    for key in change.delete:
        if key not in before:
            log(f"cannot delete '{key}' - not set in current configuration!")
    config.revert(change.revert)
    values = _Filler(call.host, guest.vmid, log, _volumes(before)).fill(change.values)
    _detach_disks(call, config, change, values)
    running = guest.running
    for at_once in (True, False):
        chosen = {k: v for k, v in values.items() if (not running or _fits_running(k)) is at_once}
        gone = [k for k in change.delete if (not running or _fits_running(k)) is at_once]
        config.change(chosen, gone, at_once=at_once)
    if not running:  # also what had waited
        config.apply_pending()
    guest.save(config)


def _fits_running(key: str) -> bool:
    """Whether a running VM takes the change at once: the fixed few, and what the default `hotplug` has."""
    hotplugged = _NET.fullmatch(key) or re.fullmatch(r"(?:scsi|virtio)\d+|unused\d+", key)
    return key in _AT_ONCE or bool(hotplugged)


def _detach_disks(call: Call, config: GuestConfig, change: Change, values: dict[str, str]) -> None:
    """A disk that is taken away, or replaced, stays as unusedN; an unusedN that is deleted is freed."""
    for key in [k for k in [*change.delete, *values] if _is_volume(k) and k in config.values]:
        volume = config.values[key].partition(",")[0]
        if key.startswith("unused"):
            Storages(call.host).free(volume)
        elif ":" in volume and "media=cdrom" not in config.values[key] and volume not in _volumes(values):
            number = next(n for n in range(256) if f"unused{n}" not in config.values)
            config.values[f"unused{number}"] = volume
