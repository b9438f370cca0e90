"""How this host is reached: a boot on trial is compared with it."""

from __future__ import annotations

import os

from remote_scripts.tools.system import System


def find(system: System) -> dict[str, str]:
    """For the trial's note: the address over which the host is being configured; the port there, if a program listens
    on it; the gateway of a default route, if one answers. Empty: it can't be told. Where the connection of SSH isn't
    known, as behind sudo, the address is the default route's.
    """
    words = os.environ.get("SSH_CONNECTION", "").split()  # CLIENT PORT SERVER PORT, fe80::1%vmbr0
    address, port = (words[2].partition("%")[0], words[3]) if len(words) > 3 else (_default_address(system), "22")
    gateway = answering_gateway(system, address)
    return {"address": address, "port": port if listens(system, port) else "", "gateway": gateway}


def _default_address(system: System) -> str:
    for _, interface in _default_routes(system, "4")[:1]:
        fields = system.run.ask("ip", "-o", "-4", "address", "show", "dev", interface).text.split("\n")[0].split()
        return fields[3].partition("/")[0] if len(fields) > 3 else ""
    return ""


def interface_of(system: System, address: str) -> str:
    """The interface that has it, if it is up. `unknown`: loopback, tunnels and the like, which have no carrier."""
    fields = system.run.ask("ip", "-o", "address", "show", "to", address).text.split("\n")[0].split()
    interface = fields[1].partition("@")[0] if len(fields) > 1 else ""
    state = system.files.line(f"/sys/class/net/{interface}/operstate") or "unknown"
    return interface if state in ("up", "unknown") else ""


def listens(system: System, port: str) -> bool:
    """From the kernel's tables: state 0A is LISTEN."""
    wanted = f":{int(port):04X}" if port.isdigit() else ":"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (system.files.read(table, 1 << 24) or b"").decode("ascii", "replace").splitlines():
            fields = line.split()
            if len(fields) > 3 and fields[3] == "0A" and fields[1].endswith(wanted):
                return True
    return False


def _default_routes(system: System, family: str) -> list[tuple[str, str]]:
    """Gateway and interface of each."""
    routes = []
    for line in system.run.ask("ip", f"-{family}", "route", "show", "default").text.splitlines():
        words = line.split()
        fields = dict(zip(words, words[1:], strict=False))
        if "via" in fields and "dev" in fields:
            routes.append((fields["via"], fields["dev"]))
    return routes


def answering_gateway(system: System, address: str) -> str:
    """The first gateway of a default route of the address's kind that answers: to an echo request; or, since some
    answer none, to the question for its hardware address that comes before.
    """
    for gateway, interface in _default_routes(system, "6" if ":" in address else "4"):
        target = f"{gateway}%{interface}" if gateway.startswith("fe80:") else gateway
        if system.run.ask("ping", "-n", "-c", "1", "-W", "1", target, seconds=5).status == 0:
            return gateway
        if " REACHABLE" in system.run.ask("ip", "neighbour", "show", "to", gateway, "dev", interface).text:
            return gateway
    return ""
