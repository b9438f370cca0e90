"""The QEMU guest agent of a VM: whether it answers, and what it says of the network."""

from __future__ import annotations

from typing import Any

from lab.ports import guest_address

from .call import Call
from .direct_boot import boots_directly
from .errors import Died
from .guests import Guest
from .options import parse_properties
from .qemu import agent_enabled


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
    silent = guest.paused or boots_directly(guest.config())
    return guest.booted and not silent


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
