"""The node itself: version, hardware, storages, tasks."""

from __future__ import annotations

import hashlib
from typing import Any

from lab.host import network
from lab.host.addresses import ADDRESS, INTERFACE, PREFIX
from lab.host.catalogue import SUBSYSTEM_VENDORS, VENDORS
from lab.host.devices import load_devices
from lab.host.kernel import RunningKernel
from lab.host.pve_packages import is_pve9, pve_packages

from .call import Answer, Call
from .errors import Died
from .options import split_list
from .quorum import require_cluster_lock
from .storage import Storages
from .tasks import Tasks, Upid

_REPOSITORY_ID = "9d436f37a0ac4172"
# pci.ids' names of cards (device, then subsystem), as far as a recording has one.
_SUBSYSTEM_NAMES = {("8086:1533", "8086:0001"): "Ethernet Server Adapter I210-T1"}


def version(call: Call) -> dict[str, str]:
    """GET /version."""
    manager = pve_packages(call.host)["pve-manager"]
    return {"version": manager, "release": call.host.machine["pve"], "repoid": _REPOSITORY_ID}


# -- hardware --------------------------------------------------------------------------------------------------
def pci(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/hardware/pci: without memory, bridges and processors unless asked otherwise."""
    hidden = tuple(split_list(call.parameters.get("pci-class-blacklist", "05;06;0b")))
    kernel = RunningKernel.attach(call.host)
    found = []
    for device in load_devices(call.host.machine):
        if hidden and device.pci_class.startswith(hidden):
            continue
        group = kernel.group_of(device.address)
        entry: dict[str, Any] = {
            "id": device.address, "class": f"0x{device.pci_class}{device.prog_if}", "vendor": f"0x{device.vendor}",
            "device": f"0x{device.device}", "vendor_name": device.vendor_name,
            "iommugroup": -1 if group is None else group,
        }  # fmt: skip
        if device.name:
            entry["device_name"] = device.name
        if device.subsystem:
            vendor, _, number = device.subsystem.partition(":")
            entry |= {"subsystem_vendor": f"0x{vendor}", "subsystem_device": f"0x{number}"}
            if name := SUBSYSTEM_VENDORS.get(vendor) or VENDORS.get(vendor):
                entry["subsystem_vendor_name"] = name
            if name := _SUBSYSTEM_NAMES.get((device.ids, device.subsystem)):
                entry["subsystem_device_name"] = name
        found.append(entry)
    return found


# -- what new guests are made of -------------------------------------------------------------------------------
def interfaces(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/network: the bridge alone."""
    of_bridge = {"type": "bridge", "bridge_ports": "", "bridge_fd": "0", "bridge_stp": "off", "priority": 3}
    inet = {"method": "static", "address": ADDRESS, "cidr": f"{ADDRESS}/{PREFIX}", "netmask": f"{PREFIX}"}
    state = {"iface": INTERFACE, "families": ["inet"], "method6": "manual", "active": 1, "autostart": 1}
    return [{**state, **of_bridge, **inet}]


def templates(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/aplinfo: the templates of containers that `pveam available` lists."""
    files = [one for one in network.data(call.host)["files"] if "/images/system/" in one["url"]]
    sums = {one["url"]: hashlib.sha512(one["text"].encode()).hexdigest() for one in files}
    return [{"template": url.rpartition("/")[2], "location": url, "sha512sum": sums[url]} for url in sums]


# -- storages --------------------------------------------------------------------------------------------------
def content_of_storage(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/storage/{storage}/content: the files of a directory. Disks of guests stand in their configurations alone here."""
    storages = Storages(call.host)
    files = storages.files(storages.get(call.parameters["storage"]))
    wanted, vmid = call.parameters.get("content"), call.parameters.get("vmid")
    return [one for one in files if wanted in (None, one["content"]) and vmid is None]


def storage_status(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/storage."""
    storages = Storages(call.host)
    wanted = set(split_list(call.parameters.get("content", "")))
    found = [s for s in storages.all.values() if not wanted or wanted & s.content]
    return [storages.status(s) for s in found if call.parameters.get("storage") in (None, s.name)]


def change_storage(call: Call) -> dict[str, str]:
    """PUT /storage/{storage}."""
    storages = Storages(call.host)
    storage = storages.get(call.parameters["storage"])
    require_cluster_lock(call.host, "file-storage_cfg", "update storage failed")
    if call.parameters.get("digest") not in (None, storages.digest):
        raise Died("detected modified configuration - file changed by other user? Try again.")
    for key in split_list(call.parameters.get("delete", "")):
        storage.settings.pop(key, None)
    storage.settings |= {key: str(call.parameters[key]) for key in ("content", "disable") if key in call.parameters}
    storages.save()
    return {"storage": storage.name, "type": storage.kind}


# -- tasks -----------------------------------------------------------------------------------------------------
def tasks(call: Call) -> Answer:
    """GET /nodes/{node}/tasks: those that are asked for."""
    asked = call.parameters
    source = asked.get("source", "archive")
    every = Tasks(call.host)
    found: list[dict[str, Any]] = [] if source == "active" else every.finished()
    if source != "archive":
        found = [{**upid.described(), "status": "RUNNING"} for upid in every.running()] + found
    kept = [task for task in found if _is_wanted(task, asked)]
    start, limit = asked.get("start", 0), asked.get("limit", 50)
    return Answer(kept[start : start + limit], {"total": len(kept)})


def _is_wanted(task: dict[str, Any], asked: dict[str, Any]) -> bool:
    return (
        ("vmid" not in asked or task["id"] == str(asked["vmid"]))
        and ("typefilter" not in asked or asked["typefilter"] == task["type"])
        and ("userfilter" not in asked or asked["userfilter"] in task["user"])
        and (not asked.get("errors") or task.get("status", "OK") != "OK")
        and asked.get("since", 0) <= task["starttime"] <= asked.get("until", task["starttime"])
    )


def task_status(call: Call) -> dict[str, Any]:
    """GET /nodes/{node}/tasks/{upid}/status."""
    every = Tasks(call.host)
    return every.status(every.find(call.parameters["upid"]))


def stop_task(call: Call) -> None:
    """DELETE /nodes/{node}/tasks/{upid}: a task is told to end."""
    every = Tasks(call.host)
    every.interrupt(every.find(call.parameters["upid"]))


def task_log(call: Call) -> Answer:
    """GET /nodes/{node}/tasks/{upid}/log."""
    every = Tasks(call.host)
    upid = Upid.parse(call.parameters["upid"])
    if not every.has_log(upid):
        line = {"n": 1, "t": "unable to open file - No such file or directory"}
        return Answer([line] if is_pve9(call.host) else line, {"total": 1})
    lines = every.log(upid)
    start = call.parameters.get("start", 0)
    limit = call.parameters.get("limit", 50) or len(lines)
    shown = [{"n": n, "t": line} for n, line in enumerate(lines, 1)][start : start + limit]
    return Answer(shown or [{"n": 1, "t": "no content"}], {"total": len(lines) or 1})
