"""pveversion, pvesh, qm and pct of a lab host: what can be asked, start and stop; the rest is the API's."""

from __future__ import annotations

import json
import re
from typing import Any

from .boot import mark_running
from .devices import load_devices
from .kernel import RunningKernel
from .program import Failure, Options, UsageError, logged
from .state import HostState
from .system_programs import packages


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of Proxmox VE's commands."""
    work = {"pveversion": _pveversion, "pvesh": _pvesh, "qm": _guest, "pct": _guest}[name]
    return work(host, name, arguments)


def _pveversion(host: HostState, name: str, arguments: list[str]) -> int:
    options = Options(arguments, "v", ("verbose",))
    versions = packages(host)
    kernel = host.read("/proc/sys/kernel/osrelease", "").strip()
    short = f"pve-manager/{versions['pve-manager']}/{'3c2a1b0d9e8f7a65' if host.machine['pve'] < '9' else '9d436f37a0ac4172'}"
    if not options.has("v", "verbose"):
        print(f"{short} (running kernel: {kernel})")
        return 0
    print(f"proxmox-ve: {versions['proxmox-ve']} (running kernel: {kernel})")
    print(f"pve-manager: {versions['pve-manager']} (running version: {short.removeprefix('pve-manager/')})")
    for package, version in versions.items():
        if package not in ("proxmox-ve", "pve-manager"):
            print(f"{package}: {version}")
    return 0


def _pvesh(host: HostState, name: str, arguments: list[str]) -> int:
    options = Options(
        arguments, "", ("output-format=", "noborder", "noheader", "human-readable=", "pci-class-blacklist=")
    )
    if len(options.rest) != 2 or options.rest[0] != "get":
        raise UsageError("the lab's pvesh has `get PATH`")
    path = options.rest[1].rstrip("/")
    answers: dict[str, Any] = {
        "/version": lambda: {
            "version": packages(host)["pve-manager"],
            "release": host.machine["pve"],
            "repoid": "lab",
        },
        "/nodes": lambda: [{"node": host.node, "status": "online", "type": "node", "id": f"node/{host.node}"}],
        f"/nodes/{host.node}/qemu": lambda: _list(host, "vm"),
        f"/nodes/{host.node}/lxc": lambda: _list(host, "container"),
        f"/nodes/{host.node}/status": lambda: _status(host),
        f"/nodes/{host.node}/hardware/pci": lambda: _pci(host, options.value("pci-class-blacklist")),
    }
    if path not in answers:
        raise Failure(f"No 'get' handler defined for '{path}'", 2)
    data = answers[path]()
    if options.value("output-format") not in ("json", "json-pretty"):
        raise UsageError("the lab's pvesh needs --output-format json or json-pretty")
    print(json.dumps(data, indent=3 if options.value("output-format") == "json-pretty" else None, sort_keys=True))
    return 0


def _status(host: HostState) -> dict[str, Any]:
    firmware = host.machine["hardware"]["firmware"]
    return {
        "pveversion": f"pve-manager/{packages(host)['pve-manager']}",
        "uptime": int(host.uptime()),
        "boot-info": {"mode": "efi", "secureboot": int(firmware["secure_boot"])}
        if firmware["mode"] == "uefi"
        else {"mode": "legacy-bios"},
        "current-kernel": {
            "sysname": "Linux",
            "release": host.running.get("kernel", ""),
            "machine": "x86_64",
        },
        "cpuinfo": {"model": host.machine["hardware"]["cpu"]["model"]},
    }


def _pci(host: HostState, hidden: str | None) -> list[dict[str, Any]]:
    classes = ("05", "06", "0b") if hidden is None else tuple(c for c in hidden.split(";") if c)
    kernel = RunningKernel.attach(host)
    found = []
    for device in load_devices(host.machine):
        if device.pci_class.startswith(classes) and classes:
            continue
        group = kernel.group_of(device.address)
        entry = {
            "id": device.address,
            "class": f"0x{device.pci_class}{device.prog_if}",
            "vendor": f"0x{device.vendor}",
            "device": f"0x{device.device}",
            "vendor_name": device.vendor_name,
            "iommugroup": -1 if group is None else group,
        }
        if device.name:
            entry["device_name"] = device.name
        found.append(entry)
    return found


def _conf(host: HostState, identifier: str) -> str:
    folder = "qemu-server" if host.machine["guests"][identifier]["kind"] == "vm" else "lxc"
    return host.read(f"/etc/pve/nodes/{host.node}/{folder}/{identifier}.conf")


def _value(conf: str, key: str) -> str | None:
    match = re.search(rf"^{key}: *(.*)$", conf.split("\n[", 1)[0], re.M)
    return match[1] if match else None


def _ids(host: HostState, kind: str) -> list[str]:
    return sorted((i for i, g in host.machine["guests"].items() if g["kind"] == kind), key=int)


def _list(host: HostState, kind: str) -> list[dict[str, Any]]:
    return [
        {
            "vmid": int(i),
            "name": host.machine["guests"][i]["name"],
            "status": "running" if host.machine["guests"][i]["running"] else "stopped",
        }
        for i in _ids(host, kind)
    ]


def _guest(host: HostState, name: str, arguments: list[str]) -> int:
    kind = "vm" if name == "qm" else "container"
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "list":
        return _print_list(host, kind)
    if verb not in ("config", "status", "start", "stop", "shutdown") or not rest:
        raise UsageError(
            f"the lab's {name} has list, config, status, start, stop and shutdown, not {' '.join(arguments)!r}"
        )
    identifier = rest[0]
    if identifier not in host.machine["guests"] or host.machine["guests"][identifier]["kind"] != kind:
        folder = "qemu-server" if kind == "vm" else "lxc"
        raise Failure(f"Configuration file 'nodes/{host.node}/{folder}/{identifier}.conf' does not exist", 2)
    guest = host.machine["guests"][identifier]
    if verb == "config":
        text = _conf(host, identifier).split("\n[", 1)[0]
        print("".join(f"{line}\n" for line in sorted(filter(None, text.splitlines()))), end="")
        return 0
    if verb == "status":
        print(f"status: {'running' if guest['running'] else 'stopped'}")
        return 0

    def work() -> int:
        wanted = verb == "start"
        if wanted and guest["running"]:
            raise Failure(
                f"VM {identifier} already running" if kind == "vm" else f"CT {identifier} already running",
                255,
            )
        with host.changing() as machine:
            machine["guests"][identifier]["running"] = wanted
        mark_running(host, identifier, wanted)
        return 0

    return logged(host, name, arguments, work)


def _print_list(host: HostState, kind: str) -> int:
    identifiers = _ids(host, kind)
    if kind == "container":
        if identifiers:
            print("VMID       Status     Lock         Name                ")
        for i in identifiers:
            guest = host.machine["guests"][i]
            print(f"{i:<10} {'running' if guest['running'] else 'stopped':<10} {'':<12} {guest['name']:<20}")
        return 0
    if identifiers:
        print("      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID       ")
    for i in identifiers:
        guest, conf = host.machine["guests"][i], _conf(host, i)
        size = re.search(r"size=(\d+)G", _value(conf, "scsi0") or _value(conf, "virtio0") or "")
        state = "running" if guest["running"] else "stopped"
        pid = 20000 + int(i) if guest["running"] else 0
        print(
            f"{i:>10} {guest['name']:<20} {state:<10} {_value(conf, 'memory') or '512':<10} {float(size[1]) if size else 0.0:>12.2f} {pid:<10}"
        )
    return 0
