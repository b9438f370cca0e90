"""VMs: /nodes/{node}/qemu. Messages and order of checks are PVE::API2::Qemu's."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from lab.host.state import HostState

from . import passthrough
from .call import Call
from .direct_boot import DirectBoot, power_off, power_on, require_files
from .errors import ApiError, Died, bad_parameters, not_allowed
from .formats import format_properties, format_size, parse_properties, size_of
from .guest_config import GuestConfig
from .guests import (
    Change,
    Guest,
    bridge_of,
    disturbed,
    guests_of,
    new_mac,
    option_values,
    require_free_id,
    require_unlocked,
)
from .storage import Storages
from .tasks import TaskLog, Work

_QEMU = "10.0.13"
_DISK = re.compile(r"(?:ide[0-3]|sata[0-5]|scsi\d+|virtio\d+|efidisk0|tpmstate0)")
_NET = re.compile(r"net\d+")
_HOSTPCI = re.compile(r"hostpci\d+")
# Fixed sizes of the disks that hold firmware state, as they come out on a directory.
_EFIDISK_BYTES, _TPMSTATE_BYTES = 528 << 10, 4 << 20
_GIB = 1 << 30
#: Options by the privilege that setting them takes; what is in none of these only root@pam may set.
_PRIVILEGES = {
    "VM.Config.CPU": "cores cpu cpulimit cpuunits numa smp sockets vcpus",
    "VM.Config.Memory": "memory balloon shares",
    "VM.Config.HWType": "acpi hotplug kvm machine scsihw smbios1 tablet vga watchdog audio0 vmgenid rng0",
    "VM.Config.Options": "agent autostart bios description keyboard localtime migrate_downtime migrate_speed name "
    "onboot ostype protection reboot startdate startup tdf template tags allow-ksm spice_enhancements",
    "VM.PowerMgmt": "freeze",
    "VM.Config.Disk": "boot bootdisk vmstatestorage",
    "VM.Config.Cloudinit": "cicustom cipassword citype ciupgrade ciuser nameserver searchdomain sshkeys",
}
_PRIVILEGE_OF = {option: privilege for privilege, options in _PRIVILEGES.items() for option in options.split()}
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
    found = [guest for guest in guests_of(call.host, "qemu") if call.may(f"/vms/{guest.vmid}", "VM.Audit")]
    return [summary(guest) for guest in found]


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
        "netin": 0, "netout": 0, "uptime": int(guest.uptime),
    }  # fmt: skip
    for key in ("tags", "lock"):
        if key in values:
            found[key] = values[key]
    if values.get("template") == "1":
        found["template"] = 1
    if running:
        found["pid"] = guest.pid
    return found


def status(call: Call) -> dict[str, Any]:
    """GET .../status/current."""
    guest = call.guest("qemu")
    values = guest.config().values
    found = {**summary(guest), "ha": {"managed": 0}}
    found["qmpstatus"] = found["status"]
    if agent_enabled(values):
        found["agent"] = 1
    if "vga" in values:
        found["clipboard"] = parse_properties("qemu-vga", values["vga"]).get("clipboard")
    if any(key.startswith("serial") for key in values):
        found["serial"] = 1
    if guest.running:
        pressures = ("cpufull", "cpusome", "iofull", "iosome", "memoryfull", "memorysome")
        found |= {f"pressure{what}": 0 for what in pressures}
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
    return read.shown(read.values if call.parameters.get("current") else read.merged(), read.current.raw)


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


# -- who may what ----------------------------------------------------------------------------------------------
def require_option(call: Call, vmid: int, key: str, value: str | None) -> None:
    """Refuse a caller that may not set, or with None delete, an option. Devices are looked at with their values.

    Raises:
        ApiError: 403 with the privilege, or 500 for what only root@pam may.
    """
    if call.caller.is_root_ticket or _HOSTPCI.fullmatch(key) or key in ("digest", "force"):
        return
    path = f"/vms/{vmid}"
    if key in _PRIVILEGE_OF:
        call.require(path, _PRIVILEGE_OF[key])
    elif _NET.fullmatch(key):
        call.require(path, "VM.Config.Network")
    elif key.startswith("ipconfig"):
        call.require(path, "VM.Config.Cloudinit")
    elif key.startswith("numa"):
        call.require(path, "VM.Config.CPU")
    elif _DISK.fullmatch(key) or key.startswith("unused"):
        call.require(path, "VM.Config.CDROM" if value and "media=cdrom" in value else "VM.Config.Disk")
    elif key.startswith("serial") and value in (None, "socket"):
        call.require(path, "VM.Config.HWType")
    elif key.startswith("usb"):
        _require_usb(call, path, key, value)
    else:
        raise Died(f"only root can set '{key}' config")


def _require_usb(call: Call, path: str, key: str, value: str | None) -> None:
    option = parse_properties("qemu-usb", value or "spice")
    if option.get("host", "spice") != "spice":
        raise Died(f"only root can set '{key}' config for real devices")
    call.require(path, "VM.Config.HWType")
    if "mapping" in option:
        call.require(f"/mapping/usb/{option['mapping']}", "Mapping.Use")


def require_hostpci(call: Call, vmid: int, key: str, value: str) -> None:
    """Refuse a caller that may not set a hostpci option, or take away the one that is there.

    Raises:
        ApiError: 500 for a device by its address, 403 without the right to the mapping.
    """
    if call.caller.is_root_ticket:
        return
    option = parse_properties("pve-qm-hostpci", value)
    if "host" in option or "mapping" not in option:
        raise Died(f"only root can set '{key}' config for non-mapped devices")
    if "romfile" in option:
        raise Died("only root@pam can set 'romfile' option")
    call.require(f"/vms/{vmid}", "VM.Config.HWType")
    call.require(f"/mapping/pci/{option['mapping']}", "Mapping.Use")


def _require_values(call: Call, values: dict[str, str]) -> None:
    """The rights to what new values name: bridges, storages."""
    if call.caller.is_root_ticket:
        return
    for key, value in values.items():
        if _NET.fullmatch(key) and (bridge := bridge_of(value)):
            call.require(f"/sdn/zones/localnetwork/{bridge}", "SDN.Use")
        if _DISK.fullmatch(key) and ":" in value and not value.startswith("none"):
            call.require(f"/storage/{value.partition(':')[0]}", "Datastore.AllocateSpace")


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
    if not call.may(f"/vms/{guest.vmid}", "VM.Allocate"):
        raise not_allowed()
    if "archive" in call.parameters:
        raise Died("the lab restores no backups: create the VM from its settings")
    wanted = option_values("qemu", call.parameters)
    for key, value in wanted.items():
        require_option(call, guest.vmid, key, value)
        if _HOSTPCI.fullmatch(key):
            require_hostpci(call, guest.vmid, key, value)
    _require_values(call, wanted)
    require_free_id(call.host, "qemu", guest.vmid)
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
        made.values.update(_defaults(values) | values)
        guest.save(made)
        if call.parameters.get("start"):
            yield from start_work(guest, log)

    return call.start("qmcreate", str(guest.vmid), work)


def _defaults(values: dict[str, str]) -> dict[str, str]:
    """What a node adds to a new VM."""
    made = {
        "meta": f"creation-qemu={_QEMU},ctime={int(time.time())}",
        "smbios1": f"uuid={uuid.uuid4()}",
        "vmgenid": str(uuid.uuid4()),
    }
    disks = sorted(k for k in values if re.fullmatch(r"(?:ide|sata|scsi|virtio)\d+", k))
    devices = [k for k in disks if "media=cdrom" not in values[k]][:1]
    devices += [k for k in disks if "media=cdrom" in values[k] and "cloudinit" not in values[k]]
    devices += sorted(k for k in values if _NET.fullmatch(k))
    return {**made, "boot": f"order={';'.join(devices)}"} if devices else made


def destroy(call: Call) -> str:
    """DELETE .../{vmid}."""
    guest = call.guest("qemu")
    _require_root_for(call, "skiplock")
    config = guest.config()
    if config.values.get("protection") == "1":
        raise Died(f"can't remove VM {guest.vmid} - protection mode enabled")
    if guest.running:
        raise Died(f"VM {guest.vmid} is running - destroy failed")
    if not call.parameters.get("skiplock"):
        require_unlocked(guest, config)

    def work(log: TaskLog) -> Work:
        yield 0.05
        for volume in sorted(_volumes(guest.config().values)):
            Storages(call.host).free(volume)
        guest.remove()

    return call.start("qmdestroy", str(guest.vmid), work)


def clone(call: Call) -> str:
    """POST .../clone."""
    source, new = call.guest("qemu"), Guest(call.host, "qemu", int(call.parameters["newid"]))
    call.require(f"/vms/{source.vmid}", "VM.Clone")
    if not call.may(f"/vms/{new.vmid}", "VM.Allocate"):
        raise not_allowed(f"/vms/{new.vmid}, VM.Allocate")
    config = source.config()
    require_unlocked(source, config)
    require_free_id(call.host, "qemu", new.vmid)
    full = call.parameters.get("full", 0 if config.values.get("template") == "1" else 1)
    if not full and config.values.get("template") != "1":
        raise Died("Linked clone feature is not available for a VM that is no template")
    reserved = GuestConfig("qemu")
    reserved.values["lock"] = "clone"
    new.save(reserved)

    def work(log: TaskLog) -> Work:
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
    made = kept | {k: v for k, v in _defaults({}).items() if k in kept}
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
    _require_root_for(call, "skiplock")
    config = guest.config()
    require_digest(config, call.parameters.get("digest"), "checksum mismatch (file change by other user?)")
    require_unlocked(guest, config)
    if disk not in config.values:
        raise Died(f"disk '{disk}' does not exist")
    old = re.search(r"size=([^,]+)", config.values[disk])
    before = size_of(old[1]) if old else 0
    size = size_of(wanted.removeprefix("+")) + (before if wanted.startswith("+") else 0)
    if size < before:
        raise Died("shrinking disks is not supported")

    def work(log: TaskLog) -> Work:
        yield 0.02
        read = guest.config()
        read.values[disk] = re.sub(r",size=[^,]+", "", read.values[disk]) + f",size={format_size(size)}"
        guest.save(read)

    return call.start("resize", str(guest.vmid), work)


# -- change ----------------------------------------------------------------------------------------------------
def require_digest(config: GuestConfig, digest: str | None, message: str) -> None:
    """Refuse a change of what somebody else has changed.

    Raises:
        ApiError: 500 with the message.
    """
    if digest is not None and digest != config.digest:
        raise Died(message)


def _require_root_for(call: Call, name: str) -> None:
    if call.parameters.get(name) and not call.caller.is_root_ticket:
        raise bad_parameters({name: "Only root may use this option."})


def update(call: Call) -> None:
    """PUT .../config: done when it is answered."""
    change = _checked_change(call)
    _change(call, change, lambda _: None)


def update_in_background(call: Call) -> str:
    """POST .../config: the same as a task."""
    change = _checked_change(call)
    words = [f"-{key} {value}" for key, value in sorted(change.values.items())]
    words += [f"-delete {','.join(change.delete)}"] if change.delete else []

    def work(log: TaskLog) -> Work:
        log(f"update VM {call.parameters['vmid']}: {' '.join(words)}")
        _change(call, change, log)
        yield 0.0

    return call.start("qmconfig", str(call.parameters["vmid"]), work)


def _checked_change(call: Call) -> Change:
    vmid = int(call.parameters["vmid"])
    _require_root_for(call, "skiplock")
    change = Change.of("qemu", call.parameters)
    for key in change.keys:
        require_option(call, vmid, key, change.values.get(key))
    _require_values(call, change.values)
    return change


def _change(call: Call, change: Change, log: Any) -> None:
    guest = call.guest("qemu")
    config = disturbed(guest)
    require_digest(config, change.digest, "checksum mismatch (file change by other user?)")
    if not call.parameters.get("skiplock"):
        require_unlocked(guest, config)
    before = config.merged()
    for key in (k for k in change.keys if _HOSTPCI.fullmatch(k)):
        if key in before:
            require_hostpci(call, guest.vmid, key, before[key])
        if key in change.values:
            require_hostpci(call, guest.vmid, key, change.values[key])
    config.revert(change.revert)
    values = _Filler(call.host, guest.vmid, log, _volumes(before)).fill(change.values)
    _detach_disks(call, config, change, values)
    running = guest.running
    for at_once in (True, False):
        chosen = {k: v for k, v in values.items() if (not running or _fits_running(k)) is at_once}
        gone = [k for k in change.delete if (not running or _fits_running(k)) is at_once]
        config.change(chosen, gone, at_once=at_once)
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


# -- power -----------------------------------------------------------------------------------------------------
def _existing(guest: Guest) -> GuestConfig:
    """The configuration inside a task, whose message for a missing one is another."""
    if not guest.exists:
        raise Died(f"unable to find configuration file for VM {guest.vmid} on node '{guest.host.node}'")
    return guest.config()


def start_work(guest: Guest, log: TaskLog, *, skip_lock: bool = False) -> Work:
    """Start a VM: pending changes come into force, devices are given to it.

    Raises:
        ApiError: what the task ends with.
    """
    config = _existing(guest)
    if not skip_lock:
        require_unlocked(guest, config)
    if guest.running:
        raise Died(f"VM {guest.vmid} already running")
    if config.values.get("template") == "1":
        raise Died("you can't start a vm if it's a template")
    if config.pending or config.pending_delete:
        config.apply_pending()
        guest.save(config)
    _prepare(guest, config, log)
    yield 0.05
    if guest.exists:
        guest.set_running(True)
        power_on(guest)


def _prepare(guest: Guest, config: GuestConfig, log: Callable[[str], None]) -> None:
    """Give a VM that is to start its devices, and look whether QEMU would find its files; a refusal leaves nothing reserved.

    Raises:
        ApiError: what the start fails with.
    """
    try:
        passthrough.attach(guest.host, guest.vmid, guest.pid, config.values)
        if direct := DirectBoot.of(config.values):
            require_files(guest.host, direct, log)
    except ApiError:
        passthrough.cleanup(guest.host, guest.vmid, config.values, log)
        raise


def _unheard(_: str) -> None:
    """What is done to a VM without a task has no log."""


def went_off(guest: Guest, log: Callable[[str], None] = _unheard) -> None:
    """Note that a VM has gone off, whoever ended it, and take its devices back."""
    guest.set_running(False)
    passthrough.cleanup(guest.host, guest.vmid, guest.config().values, log)


def stop_work(guest: Guest, log: TaskLog) -> Work:
    """Stop a VM at once; nothing happens to one that doesn't run."""
    _existing(guest)
    if not guest.running:
        return
    yield 0.05
    power_off(guest)
    went_off(guest, log)


def shutdown_work(guest: Guest, log: TaskLog, timeout: float, *, force: bool) -> Work:
    """Shut a VM down, through its agent or ACPI, within a time limit in seconds.

    Raises:
        ApiError: it didn't go off, and isn't to be forced.
    """
    _existing(guest)
    waited = 0.0
    while guest.running and (guest.ignores_shutdown() or not guest.booted):
        if waited >= timeout:
            if not force:
                raise Died("VM quit/powerdown failed - got timeout")
            log("VM quit/powerdown failed - terminating now with SIGTERM")
            break
        step = min(0.1, timeout - waited)
        yield step
        waited += step
    yield from stop_work(guest, log)


def start(call: Call) -> str:
    """POST .../status/start."""
    guest = call.guest("qemu")
    _require_root_for(call, "skiplock")
    skip = bool(call.parameters.get("skiplock"))
    return call.start("qmstart", str(guest.vmid), lambda log: start_work(guest, log, skip_lock=skip))


def stop(call: Call) -> str:
    """POST .../status/stop."""
    guest = call.guest("qemu")
    _require_root_for(call, "skiplock")
    return call.start("qmstop", str(guest.vmid), lambda log: stop_work(guest, log))


def shutdown(call: Call) -> str:
    """POST .../status/shutdown."""
    guest = call.guest("qemu")
    _require_root_for(call, "skiplock")
    timeout, force = float(call.parameters.get("timeout", 180)), bool(call.parameters.get("forceStop"))
    return call.start("qmshutdown", str(guest.vmid), lambda log: shutdown_work(guest, log, timeout, force=force))


def reboot(call: Call) -> str:
    """POST .../status/reboot: down and up again, with what was pending in force."""
    guest = call.guest("qemu")
    timeout = float(call.parameters.get("timeout", 180))
    if not guest.running:
        raise Died(f"VM {guest.vmid} is not running")

    def work(log: TaskLog) -> Work:
        yield from shutdown_work(guest, log, timeout, force=False)
        yield from start_work(guest, log)

    return call.start("qmreboot", str(guest.vmid), work)


def settle_after_boot(host: HostState, log: Any) -> None:
    """Give the VMs that start with the host their devices; one that can't have them doesn't run.

    Args:
        log: a function that makes a task's log for a VM id, and takes the error.
    """
    for guest in guests_of(host, "qemu"):
        if not guest.running:
            continue
        config = guest.config()
        if config.pending or config.pending_delete:
            config.apply_pending()
            guest.save(config)
        try:
            _prepare(guest, config, _unheard)
            power_on(guest)
        except ApiError as error:
            guest.set_running(False)
            log(guest.vmid, error)
