"""The node itself: version, state, hardware, network, storages, tasks."""

from __future__ import annotations

import re
from typing import Any

from homelab.guest_options import split_list
from lab.host.catalogue import SUBSYSTEM_VENDORS, VENDORS
from lab.host.devices import load_devices
from lab.host.kernel import RunningKernel
from lab.host.pve_packages import is_pve9, pve_packages
from lab.host.state import HostState

from .call import Answer, Call
from .errors import Died, bad_parameters
from .quorum import require_cluster_lock
from .storage import Storages
from .tasks import Tasks, Upid

_GIB = 1 << 30
_REPOSITORY_ID = "9d436f37a0ac4172"
# pci.ids' names of cards (device, then subsystem), as far as a recording has one.
_SUBSYSTEM_NAMES = {("8086:1533", "8086:0001"): "Ethernet Server Adapter I210-T1"}
# Numbers that nothing in the lab depends on, in the order of magnitude of a small host.
_CORES, _MHZ = 8, "3600.000"
_MEMORY, _DISK = 64 * _GIB, 96 * _GIB


def version(host: HostState) -> dict[str, str]:
    """GET /version and /nodes/{node}/version."""
    manager = pve_packages(host)["pve-manager"]
    return {"version": manager, "release": host.machine["pve"], "repoid": _REPOSITORY_ID}


def usage(host: HostState) -> dict[str, Any]:
    """What lists of nodes say of this one's load."""
    return {
        "cpu": 0.01, "maxcpu": _CORES, "mem": _MEMORY // 8, "maxmem": _MEMORY, "disk": _DISK // 10, "maxdisk": _DISK,
        "uptime": int(host.uptime()),
    }  # fmt: skip


def status(call: Call) -> dict[str, Any]:
    """GET /nodes/{node}/status."""
    host = call.host
    hardware = host.machine["hardware"]
    intel = hardware["cpu"]["vendor"] == "GenuineIntel"
    release = host.read("/proc/sys/kernel/osrelease", "").strip()
    build = "#1 SMP PREEMPT_DYNAMIC"
    firmware = hardware["firmware"]
    newer = is_pve9(host)
    boot = {"mode": "efi", "secureboot": int(firmware["secure_boot"])} if firmware["mode"] == "uefi" else {}
    return {
        "boot-info": boot or {"mode": "legacy-bios"},
        "cpu": 0.01, "wait": 0, "idle": 0, "loadavg": ["0.10", "0.08", "0.05"], "uptime": int(host.uptime()),
        "cpuinfo": {
            "cores": _CORES, "cpus": _CORES, "sockets": 1, "model": hardware["cpu"]["model"], "mhz": _MHZ,
            "user_hz": 100, "hvm": "1", "flags": "vmx" if intel else "svm",
            **({"vendor": hardware["cpu"]["vendor"], "family": "6" if intel else "25"} if newer else {}),
        },
        "current-kernel": {"sysname": "Linux", "release": release, "version": build, "machine": "x86_64"},
        "kversion": f"Linux {release} {build}",
        "ksm": {"shared": 0},
        "memory": {
            "total": _MEMORY, "used": _MEMORY // 8, "free": _MEMORY // 2,
            **({"available": _MEMORY // 8 * 7} if newer else {}),
        },
        "swap": {"total": 0, "used": 0, "free": 0},
        "rootfs": {"total": _DISK, "used": _DISK // 10, "free": _DISK // 10 * 9, "avail": _DISK // 10 * 9},
        "pveversion": f"pve-manager/{pve_packages(host)['pve-manager']}/{_REPOSITORY_ID}",
    }  # fmt: skip


# -- hardware --------------------------------------------------------------------------------------------------
def hardware(call: Call) -> list[dict[str, str]]:
    """GET /nodes/{node}/hardware."""
    return [{"type": "pci"}, {"type": "usb"}]


def pci(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/hardware/pci: without memory, bridges and processors unless asked otherwise."""
    hidden = tuple(split_list(call.parameters.get("pci-class-blacklist", "05;06;0b")))
    if not call.parameters.get("verbose", 1):
        return [{"id": entry["id"]} for entry in _devices(call.host, hidden)]
    return _devices(call.host, hidden)


def pci_device(call: Call) -> list[dict[str, str]]:
    """GET /nodes/{node}/hardware/pci/{pci-id-or-mapping}: what there is to ask about it."""
    # The same of every name, also of one that nothing has.
    return [{"method": "mdev"}]


def _devices(host: HostState, hidden: tuple[str, ...]) -> list[dict[str, Any]]:
    kernel = RunningKernel.attach(host)
    found = []
    for device in load_devices(host.machine):
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


def network(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/network: the interfaces of /etc/network/interfaces."""
    found: list[dict[str, Any]] = []
    text = call.host.read("/etc/network/interfaces", "")
    for block in re.split(r"(?m)^(?=iface )", text)[1:]:
        _, name, _, method, *_ = block.split()
        settings = dict(line.split(None, 1) for line in block.splitlines()[1:] if len(line.split(None, 1)) == 2)
        if name == "lo":
            continue
        entry: dict[str, Any] = {
            "iface": name, "type": "bridge" if "bridge-ports" in settings else "eth", "method": method,
            "method6": "manual", "families": ["inet"], "active": 1, "priority": 3 + len(found),
        }  # fmt: skip
        if re.search(rf"(?m)^auto {re.escape(name)}$", text):
            entry["autostart"] = 1
        if "address" in settings:
            address, _, prefix = settings["address"].partition("/")
            entry |= {"address": address, "netmask": prefix, "cidr": settings["address"].strip()}
        if entry["type"] == "bridge":
            ports = settings["bridge-ports"].strip()
            entry |= {"bridge_ports": "" if ports == "none" else ports}
            entry |= {"bridge_stp": settings["bridge-stp"].strip(), "bridge_fd": settings["bridge-fd"].strip()}
        found.append(entry)
    return found


# -- storages --------------------------------------------------------------------------------------------------
def storage_configuration(call: Call) -> list[dict[str, Any]]:
    """GET /storage."""
    storages = Storages(call.host)
    return [storages.shown(s) for s in storages.all.values() if call.parameters.get("type") in (None, s.kind)]


def one_storage(call: Call) -> dict[str, Any]:
    """GET /storage/{storage}."""
    storages = Storages(call.host)
    return storages.shown(storages.get(call.parameters["storage"]))


def status_of_storage(call: Call) -> dict[str, Any]:
    """GET /nodes/{node}/storage/{storage}/status."""
    storages = Storages(call.host)
    if call.parameters["storage"] not in storages.all:
        raise bad_parameters({"storage": "No such storage."})
    found = storages.status(storages.get(call.parameters["storage"]))
    return {key: value for key, value in found.items() if key not in ("storage", "used_fraction")}


def content_of_storage(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/storage/{storage}/content: the files of a directory. Disks of guests stand in their configurations alone here."""
    storages = Storages(call.host)
    storage = storages.get(call.parameters["storage"])
    wanted, vmid = call.parameters.get("content"), call.parameters.get("vmid")
    found = [one for one in storages.files(storage) if wanted in (None, one["content"])]
    return found if vmid is None else []


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
    for key in ("content", "disable"):
        if key in call.parameters:
            storage.settings[key] = str(call.parameters[key])
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
        and ("typefilter" not in asked or asked["typefilter"] in task["type"])
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
