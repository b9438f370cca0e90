"""/etc/pve/ha/resources.cfg: which guests the HA manager has, and what it is to make of them (PVE::HA::Config, PVE::HA::Resources)."""

from __future__ import annotations

from pathlib import Path

from lab.host.cluster import Cluster
from lab.host.state import HostState

from .errors import Died
from .guest_config import Kind
from .guests import Guest, all_ids

FILE = "/etc/pve/ha/resources.cfg"
_COMMANDS = "crm_commands"
_KINDS: dict[str, Kind] = {"vm": "qemu", "ct": "lxc"}
_OF_KIND = {kind: name for name, kind in _KINDS.items()}
STATES = ("started", "stopped", "enabled", "disabled", "ignored")


def sid_of(guest: Guest) -> str:
    """A guest as a service: `vm:103`, `ct:200`."""
    return f"{_OF_KIND[guest.kind]}:{guest.vmid}"


def normal_sid(text: str, host: HostState) -> str:
    """A service's id as somebody wrote it; a guest's number alone will do.

    Raises:
        ApiError: 500, it is none.
    """
    kind, _, number = text.rpartition(":")
    if number.isdigit() and kind in _KINDS:
        return text
    if number.isdigit() and not kind:
        found = all_ids(host).get(int(number))
        if found is None:
            raise Died(f"unable to find VM '{number}'")
        return f"{_OF_KIND[found[1]]}:{number}"
    raise Died(f"unable to parse service id '{text}'")


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


def commands_of(host: HostState) -> Path:
    """The file with what was asked for, and no round has seen."""
    return folder_of(host) / _COMMANDS


def queue(host: HostState, command: str) -> None:
    """Ask the manager for something, which its next round does: `migrate vm:103 pve2`."""
    with commands_of(host).open("a", encoding="utf-8") as file:
        file.write(f"{command}\n")


def take_commands(host: HostState) -> list[str]:
    """What was asked for since the last time."""
    path = commands_of(host)
    if not path.exists():
        return []
    found = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    return found
