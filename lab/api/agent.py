"""The QEMU guest agent of a VM: who answers inside it. Commands run in the guest's own tree (`guest_system`)."""

from __future__ import annotations

from typing import Any, Protocol

from .call import Call
from .errors import Died
from .formats import parse_properties
from .guests import Guest
from .qemu import agent_enabled

_SYSTEMS = {
    "l26": {
        "id": "debian",
        "name": "Debian GNU/Linux",
        "pretty-name": "Debian GNU/Linux 13 (trixie)",
        "version-id": "13",
    },
    "win11": {"id": "mswindows", "name": "Microsoft Windows", "pretty-name": "Windows 11 Pro", "version-id": "11"},
}


class GuestCommands(Protocol):
    """Runs commands inside guests; the daemon has it."""

    def start(self, guest: Guest, command: list[str], stdin: str) -> int:
        """Start a command in a guest and return its process id there."""

    def status(self, guest: Guest, pid: int) -> dict[str, Any] | None:
        """Whether a command has ended, and with what; None when there was no such process."""


def _answering(call: Call) -> Guest:
    """The VM, if its agent answers.

    Raises:
        ApiError: 500: no agent configured, the VM off, the agent silent.
    """
    guest = call.guest("qemu")
    if not agent_enabled(guest.config().values):
        raise Died("No QEMU guest agent configured")
    if not guest.running:
        raise Died(f"VM {guest.vmid} is not running")
    silent = guest.host.fault("agent-silent")
    if not guest.booted or silent is True or str(silent) == str(guest.vmid):
        raise Died("QEMU guest agent is not running")
    return guest


def ping(call: Call) -> dict[str, Any]:
    """POST .../agent/ping."""
    _answering(call)
    return {"result": {}}


def system(call: Call) -> dict[str, Any]:
    """GET .../agent/get-osinfo."""
    values = _answering(call).config().values
    return {"result": _SYSTEMS.get(values.get("ostype", "l26"), _SYSTEMS["l26"]) | {"machine": "x86_64"}}


def interfaces(call: Call) -> dict[str, Any]:
    """GET .../agent/network-get-interfaces: addresses as cloud-init was told them, else by DHCP."""
    values = _answering(call).config().values
    found = [_interface("lo", "00:00:00:00:00:00", "127.0.0.1", 8)]
    for number in range(32):
        if f"net{number}" not in values:
            continue
        option = parse_properties("qemu-net", values[f"net{number}"])
        static = parse_properties("pve-qm-ipconfig", values.get(f"ipconfig{number}", "")).get("ip", "dhcp")
        address, slash, prefix = static.partition("/")
        if not slash:
            address, prefix = f"192.168.0.{100 + int(call.parameters['vmid']) % 100}", "24"
        mac = option.get("macaddr", "").lower()
        found.append(_interface(f"eth{number}", mac, address, int(prefix)))
    return {"result": found}


def _interface(name: str, mac: str, address: str, prefix: int) -> dict[str, Any]:
    addresses = [{"ip-address": address, "ip-address-type": "ipv4", "prefix": prefix}]
    return {"name": name, "hardware-address": mac, "ip-addresses": addresses}


def execute(call: Call, commands: GuestCommands | None) -> dict[str, int]:
    """POST .../agent/exec."""
    guest = _answering(call)
    if commands is None:
        raise Died("the lab's shell commands can't reach into a guest: use the API's agent/exec")
    return {"pid": commands.start(guest, call.parameters["command"], call.parameters.get("input-data", ""))}


def execution(call: Call, commands: GuestCommands | None) -> dict[str, Any]:
    """GET .../agent/exec-status."""
    guest = _answering(call)
    found = commands.status(guest, call.parameters["pid"]) if commands is not None else None
    if found is None:
        raise Died(f"Agent error: Invalid parameter 'pid': no process {call.parameters['pid']}")
    return found
