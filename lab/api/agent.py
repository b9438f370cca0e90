"""The QEMU guest agent of a VM: who answers inside it. Commands run in the guest's own tree (`guest_system`)."""

from __future__ import annotations

from typing import Any, Protocol

from homelab.guest_options import parse_properties
from lab.host.distributions import DISTRIBUTIONS
from lab.ports import guest_address

from .call import Call
from .direct_boot import boots_directly
from .errors import Died
from .guest_system import is_linux, system_of
from .guests import Guest
from .qemu import agent_enabled

_WINDOWS = {"id": "mswindows", "name": "Microsoft Windows", "pretty-name": "Windows 11 Pro", "version-id": "11"}


class GuestCommands(Protocol):
    """Runs commands inside guests; the daemon has it."""

    def start(self, guest: Guest, command: list[str], stdin: str) -> int:
        """Start a command in a guest and return its process id there."""

    def status(self, guest: Guest, pid: int) -> dict[str, Any] | None:
        """Whether a command has ended, and with what; None when there was no such process."""


def _answering(call: Call) -> Guest:
    """The VM, if its agent answers; a kernel of its `args` brings none.

    Raises:
        ApiError: 500: no agent configured, the VM off, the agent silent.
    """
    guest = call.guest("qemu")
    config = guest.config()
    if not agent_enabled(config.values):
        raise Died("No QEMU guest agent configured")
    if not guest.running:
        raise Died(f"VM {guest.vmid} is not running")
    if not answers(guest):
        raise Died("QEMU guest agent is not running")
    return guest


def answers(guest: Guest) -> bool:
    """Whether the agent in a running VM says something."""
    silent = guest.paused or guest.has_fault("agent-silent") or boots_directly(guest.config())
    return guest.booted and not silent


def ping(call: Call) -> dict[str, Any]:
    """POST .../agent/ping."""
    _answering(call)
    return {"result": {}}


def system(call: Call) -> dict[str, Any]:
    """GET .../agent/get-osinfo."""
    guest = _answering(call)
    if not is_linux(guest.config()):
        return {"result": _WINDOWS | {"machine": "x86_64"}}
    known = DISTRIBUTIONS[guest.system["distribution"]]
    found = {
        "id": known.id, "name": known.name, "pretty-name": known.pretty_name, "version": known.version,
        "version-id": known.version_id, "kernel-release": system_of(guest).running.get("kernel", guest.system["kernel"]),
        "kernel-version": known.build, "machine": "x86_64",
    }  # fmt: skip
    return {"result": found}


def interfaces(call: Call) -> dict[str, Any]:
    """GET .../agent/network-get-interfaces: addresses as cloud-init was told them, else the guest's own on loopback.

    That one the first interface has that nothing is said about, as if by DHCP; any other such one has none.
    """
    guest = _answering(call)
    values, own = guest.config().values, [f"{guest_address(guest.vmid)}/8"]
    found = [_interface("lo", "00:00:00:00:00:00", "127.0.0.1/8")]
    for number in range(32):
        if f"net{number}" not in values:
            continue
        option = parse_properties("qemu-net", values[f"net{number}"])
        static = parse_properties("pve-qm-ipconfig", values.get(f"ipconfig{number}", "")).get("ip", "dhcp")
        address = static if "/" in static else own.pop() if own and option.get("link_down", "0") != "1" else ""
        found.append(_interface(f"eth{number}", option.get("macaddr", "").lower(), address))
    return {"result": found}


def _interface(name: str, mac: str, text: str) -> dict[str, Any]:
    """One interface with its `address/prefix`, or without any."""
    address, _, prefix = text.partition("/")
    addresses = [{"ip-address": address, "ip-address-type": "ipv4", "prefix": int(prefix)}] if text else []
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
