"""Backups of guests (vzdump): an archive beside the files of a directory, with its notes and its protection; contents aren't simulated.

Lines and refusals up to the archive's creation are recorded ones; those that follow are PVE::VZDump's own words, without figures. An archive is
written under another name first, as there, so that one that was broken off is never listed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from lab.host import network
from lab.host.state import HostState

from . import passthrough
from .call import Call
from .errors import ApiError, Died, bad_parameters
from .guests import Guest, require_unlocked
from .storage import Storages
from .tasks import TaskLog, Work

_ENDS = {"qemu": "vma", "lxc": "tar"}
_COMPRESSED = {"0": "", "1": ".lzo", "lzo": ".lzo", "gzip": ".gz", "zstd": ".zst"}


def create(call: Call) -> str:
    """POST /nodes/{node}/vzdump, of one guest.

    Raises:
        ApiError: 400 no guest, or a parameter that the lab doesn't have; 403 without Datastore.AllocateSpace.
    """
    asked = call.parameters
    if not re.fullmatch(r"\d+", asked.get("vmid", "")):
        raise bad_parameters({"vmid": "the lab backs up one guest at a time"})
    if "storage" in asked:
        call.require(f"/storage/{asked['storage']}", "Datastore.AllocateSpace")
    return call.start("vzdump", asked["vmid"], lambda log: _job(call, log))


def _job(call: Call, log: TaskLog) -> Work:
    asked, vmid, host = call.parameters, int(call.parameters["vmid"]), call.host
    storage = asked.get("storage", "local")
    folder = _folder(host, storage)
    options = " ".join(f"--{key} {asked[key]}" for key in ("mode", "storage", "compress") if key in asked)
    log(f"INFO: starting new backup job: vzdump {vmid} --node {host.node} {options}")
    guest = next((one for one in (Guest(host, "qemu", vmid), Guest(host, "lxc", vmid)) if one.exists), None)
    try:
        if guest is None:
            raise Died(f"unable to find VM '{vmid}'")
        call.require(f"/vms/{vmid}", "VM.Backup")
        yield from _backed_up(guest, asked, folder, log)
    except ApiError as error:
        log(f"ERROR: Backup of VM {vmid} failed - {error.text.strip()}")
        log(f"INFO: Failed at {time.strftime('%Y-%m-%d %H:%M:%S')}")
        log("INFO: Backup job finished with errors")
        raise Died("job errors") from None
    log("INFO: Backup job finished successfully")


def _folder(host: HostState, name: str) -> str:
    storages = Storages(host)
    problem = ""
    if name not in storages.all:
        problem = f"storage '{name}' does not exist"
    elif "backup" not in storages.get(name).content or "path" not in storages.get(name).settings:
        problem = f"can't use storage '{name}' for backups - wrong content type"
    if problem:
        raise Died(f"could not get storage information for '{name}': {problem}")
    return f"{storages.get(name).settings['path']}/dump"


def _backed_up(guest: Guest, asked: dict[str, Any], folder: str, log: Callable[[str], None]) -> Work:
    host, config = guest.host, guest.config()
    log(f"INFO: Starting Backup of VM {guest.vmid} ({guest.kind})")
    log(f"INFO: Backup started at {time.strftime('%Y-%m-%d %H:%M:%S')}")
    log(f"INFO: status = {'running' if guest.running else 'stopped'}")
    require_unlocked(guest, config)
    config.values["lock"] = "backup"
    guest.save(config)
    try:
        stamp = time.strftime("%Y_%m_%d-%H_%M_%S")
        end = f"{_ENDS[guest.kind]}{_COMPRESSED[asked.get('compress', '0')]}"
        archive = f"vzdump-{guest.kind}-{guest.vmid}-{stamp}.{end}"
        log(f"INFO: backup mode: {asked.get('mode', 'snapshot')}")
        log("INFO: ionice priority: 7")
        log(f"INFO: {'VM' if guest.kind == 'qemu' else 'CT'} Name: {guest.name(config)}")
        disks = False
        for key, value in config.values.items():
            if guest.kind == "lxc" and (key == "rootfs" or re.fullmatch(r"mp\d+", key)):
                point = "/" if key == "rootfs" else value.partition(",mp=")[2].partition(",")[0]
                log(f"INFO: {_mount_point(key, value)} mount point {key} ('{point}') {_where(key, value)}")
            elif guest.kind == "qemu" and re.fullmatch(r"(?:ide|sata|scsi|virtio)\d+", key) and "cdrom" not in value:
                if re.search(r",backup=(?:0|no|off)(?:,|$)", value):
                    log(f"INFO: exclude disk '{key}' '{value.partition(',')[0]}' (backup=no)")
                    continue
                size = re.search(r",size=(\w+)", value)
                log(f"INFO: include disk '{key}' '{value.partition(',')[0]}'{f' {size[1]}' if size else ''}")
                disks = True
        log(f"INFO: creating vzdump archive '{folder}/{archive}'")
        if guest.kind == "qemu" and not disks:
            log("INFO: backup contains no disks")
            log("INFO: starting diskless backup")
        elif guest.kind == "qemu" and not guest.running:
            _start_kvm(guest, config.merged(), log)
        partly = host.rooted(f"{folder}/{archive.partition('.')[0]}.dat")
        partly.parent.mkdir(parents=True, exist_ok=True)
        partly.write_text(config.text(), encoding="utf-8")
        try:
            yield 0.05 + float(host.fault("backup-seconds") or 0)
            if network.fault(host, "disk-full") is not None:
                raise Died("vma_queue_write: write error - Broken pipe")
            place = partly.with_name(archive)
            if notes := asked.get("notes-template"):
                text = notes.replace("{{guestname}}", guest.name(config)).replace("{{vmid}}", str(guest.vmid))
                place.with_name(f"{archive}.notes").write_text(text, encoding="utf-8")
            if asked.get("protected"):
                place.with_name(f"{archive}.protected").touch()
            partly.rename(place)
        finally:
            partly.unlink(missing_ok=True)
        log(f"INFO: Finished Backup of VM {guest.vmid} (00:00:01)")
    finally:
        after = guest.config()
        after.values.pop("lock", None)
        guest.save(after)


def _mount_point(key: str, value: str) -> str:
    """What becomes of it, as PVE::VZDump::LXC begins its line: a volume is in the backup with backup=1 alone."""
    if value.startswith("/"):
        return "excluding device" if value.startswith("/dev/") else "excluding bind"
    return "including" if _included(key, value) else "excluding volume"


def _where(key: str, value: str) -> str:
    if _included(key, value):
        return "in backup"
    return f"from backup ({'not a volume' if value.startswith('/') else 'disabled'})"


def _included(key: str, value: str) -> bool:
    return key == "rootfs" or (not value.startswith("/") and bool(re.search(r",backup=(?:1|yes|on)(?:,|$)", value)))


def _start_kvm(guest: Guest, values: dict[str, str], log: Callable[[str], None]) -> None:
    """QEMU is started to read the disks of a VM that is off; it gets the VM's devices, too."""
    log("INFO: starting kvm to execute backup task")
    try:
        passthrough.require_free(guest.host, guest.vmid, values)
    except ApiError as error:
        log(f"ERROR: {error.text.strip()}")
        log("INFO: aborting backup job")
        log(f"ERROR: VM {guest.vmid} not running")
        log(f"VM {guest.vmid} not running")
        raise


def change(call: Call) -> None:
    """PUT /nodes/{node}/storage/{storage}/content/{volume}: notes and protection of a backup.

    Raises:
        ApiError: 403 without Datastore.Allocate; 500, no such volume.
    """
    name, volume = call.parameters["storage"], call.parameters["volume"]
    call.require(f"/storage/{name}", "Datastore.Allocate")
    storages = Storages(call.host)
    volume = volume if ":" in volume else f"{name}:{volume}"
    if not storages.has_file(volume):
        raise Died(f"volume '{volume}' does not exist")
    folder = storages.get(name).settings["path"]
    beside = call.host.rooted(f"{folder}/dump/{volume.rpartition('/')[2]}")
    if "notes" in call.parameters:
        beside.with_name(f"{beside.name}.notes").write_text(call.parameters["notes"], encoding="utf-8")
    if "protected" in call.parameters:
        mark = beside.with_name(f"{beside.name}.protected")
        mark.touch() if call.parameters["protected"] else mark.unlink(missing_ok=True)
