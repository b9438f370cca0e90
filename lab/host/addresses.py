"""The host's own network: its interface, address and gateway, who listens, and the faults that take each of them away.

What a boot brought is in kernel.json (`network`); the interfaces' state in sysfs agrees with it.
"""

from __future__ import annotations

from .state import HostState

INTERFACE, ADDRESS, PREFIX, GATEWAY = "vmbr0", "192.168.0.202", 24, "192.168.0.1"
#: Who configures the host, in its eyes.
CLIENT = "192.168.0.10"
SSH_PORT = 22


def come_up(host: HostState, cmdline: str) -> bool:
    """Bring the network up as far as the faults let it; return whether SSH can be reached."""

    def holds(fault: str) -> bool:
        part = host.fault(fault)
        return not (part and str(part) in cmdline)

    network = {
        "link": holds("no-network-when"),
        "address": holds("no-address-when"),
        "gateway": holds("gateway-silent-when"),
        "sshd": holds("no-sshd-when"),
    }
    with host.changing_running() as running:
        running["network"] = network
    bridge = host.root / "sys/devices/virtual/net" / INTERFACE / "operstate"
    if bridge.exists():
        bridge.write_text("up\n" if network["link"] else "down\n", encoding="utf-8")
    return network["link"] and network["address"] and network["sshd"]


def has(host: HostState, what: str) -> bool:
    """Whether the running system has its `link`, `address`, `gateway` or `sshd`; guests have them all."""
    return bool(host.running.get("network", {}).get(what, True))
