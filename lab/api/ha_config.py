"""/etc/pve/ha/resources.cfg: which guests the HA manager has, and what it is to make of them (PVE::HA::Config, PVE::HA::Resources)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.host.cluster import Cluster
from lab.host.state import HostState

from .guest_config import Kind
from .guests import Guest

FILE = "/etc/pve/ha/resources.cfg"
_KINDS: dict[str, Kind] = {"vm": "qemu", "ct": "lxc"}
_OF_KIND = {kind: name for name, kind in _KINDS.items()}
STATES = ("started", "stopped", "enabled", "disabled", "ignored")


def sid_of(guest: Guest) -> str:
    """A guest as a service: `vm:103`, `ct:200`."""
    return f"{_OF_KIND[guest.kind]}:{guest.vmid}"


def kind_of(sid: str) -> tuple[Kind, int]:
    """What sort of guest a service is, and its number."""
    kind, _, number = sid.partition(":")
    return _KINDS[kind], int(number)


def read(host: HostState) -> dict[str, dict[str, str]]:
    """Each service with its settings."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in host.read(FILE, "").splitlines():
        if line[:1].isalpha():
            kind, _, number = line.partition(":")
            current = found.setdefault(f"{kind.strip()}:{number.strip()}", {})
        elif line.strip():
            key, _, value = line.strip().partition(" ")
            current[key] = value.strip()
    return found


def write(host: HostState, services: dict[str, dict[str, str]]) -> None:
    """Write the file as Proxmox VE does."""
    sections = []
    for sid, settings in services.items():
        kind, _, number = sid.partition(":")
        lines = "".join(f"\t{key} {value}\n" for key, value in sorted(settings.items()))
        sections.append(f"{kind}: {number}\n{lines}\n")
    host.write(FILE, "".join(sections), 0o640)


def wanted(settings: dict[str, str]) -> str:
    """What the manager is to bring a service into: started, stopped, disabled or ignored."""
    state = settings.get("state", "started")
    return "started" if state == "enabled" else state


def folder_of(host: HostState) -> Path:
    """Where a host's cluster, or a host that is alone, keeps what manager and agents know."""
    cluster = Cluster.of(host)
    return cluster.folder if cluster else host.state


def shown(guest: Guest) -> dict[str, Any]:
    """`ha` of a guest's status. A start or a stop doesn't ask the manager here: homelab touches no guest that it has."""
    settings = read(guest.host).get(sid_of(guest))
    state = "ignored" if settings is None else wanted(settings)
    return {"managed": 0} if state == "ignored" else {"managed": 1, "state": state}
