"""The host's own network: its interface, address and gateway, and the fault that takes it away.

Whether a boot brought it up is in kernel.json (`network`); the interface's state in sysfs agrees with it.
"""

from __future__ import annotations

from .state import HostState

INTERFACE, ADDRESS, PREFIX, GATEWAY = "vmbr0", "192.168.0.202", 24, "192.168.0.1"
#: Who configures the host, in its eyes.
CLIENT = "192.168.0.10"
SSH_PORT = 22


def come_up(host: HostState, cmdline: str) -> bool:
    """Bring the network up, unless the fault is there; return whether it is, and SSH can be reached."""
    part = host.fault("no-network-when")
    is_up = not (part and str(part) in cmdline)
    with host.changing_running() as running:
        running["network"] = is_up
    bridge = host.root / "sys/devices/virtual/net" / INTERFACE / "operstate"
    if bridge.exists():
        bridge.write_text("up\n" if is_up else "down\n", encoding="utf-8")
    return is_up
