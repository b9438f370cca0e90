"""How this host is reached: a boot on trial is compared with it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from remote_scripts.tools.system import System

#: For so long a gateway that doesn't answer is asked again.
GATEWAY_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_PARENT = re.compile(rb"^PPid:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Route:
    """Address, interface and port over which the host is being configured; `listens`: whether a program does on the
    port; `gateway`: that of the default route, if it answers. Empty: it can't be told.
    """

    address: str
    interface: str
    port: str
    listens: bool
    gateway: str

    @property
    def note(self) -> dict[str, str]:
        """By which the next boot is compared with it."""
        return {**asdict(self), "listens": "yes" if self.listens else "no"}


def noted(pairs: Mapping[str, str]) -> Route:
    """The route of such a note."""
    address, interface, port, listens, gateway = (
        pairs.get(key, "") for key in ("address", "interface", "port", "listens", "gateway")
    )
    return Route(address, interface, port, listens == "yes", gateway)


def find(system: System) -> Route:
    """By the connection of SSH; where there is none, by the default route."""
    words = connection(system)
    address = words[2].partition("%")[0] if len(words) > 2 else ""  # fe80::1%vmbr0
    port = words[3] if len(words) > 3 else ""
    if not address:
        routes = _default_routes(system, "4")
        if routes:
            output = system.run.ask("ip", "-o", "-4", "address", "show", "dev", routes[0][1]).text
            fields = output.split("\n")[0].split()
            address = fields[3].partition("/")[0] if len(fields) > 3 else ""
    port = port or "22"
    interface = interface_of(system, address)
    return Route(address, interface, port, listens(system, port), answering_gateway(system, address, interface))


def connection(system: System) -> list[str]:
    """What sshd says of the connection, CLIENT PORT SERVER PORT; nothing: there is none. sudo takes it from a command's
    environment; then it is found in that of sudo itself, or of its parents.
    """
    if own := os.environ.get("SSH_CONNECTION"):
        return own.split()
    process = os.getppid()
    while process > 1:
        environment = system.files.read(f"/proc/{process}/environ", 1 << 20)
        if environment is None:
            break
        for variable in environment.split(b"\0"):
            if variable.startswith(b"SSH_CONNECTION=") and variable.partition(b"=")[2]:
                return variable.partition(b"=")[2].decode("utf-8", "replace").split()
        parent = _PARENT.search(system.files.read(f"/proc/{process}/status") or b"")
        process = int(parent[1]) if parent else 0
    return []


def interface_of(system: System, address: str) -> str:
    """The interface that has it, if it is up. `unknown`: loopback, tunnels and the like, which have no carrier."""
    if not address:
        return ""
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


def answering_gateway(system: System, address: str, interface: str) -> str:
    """The gateway of the address's default route (that over the interface, if there is one) that answers within a few
    seconds.
    """
    routes = _default_routes(system, "6" if ":" in address else "4")
    routes = [route for route in routes if route[1] == interface] or routes
    deadline = time.monotonic() + GATEWAY_SECONDS
    while routes:
        if gateway := _first_that_answers(system, routes):
            return gateway
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_SECONDS)
    return ""


def _first_that_answers(system: System, routes: Iterable[tuple[str, str]]) -> str:
    """To an echo request; or, since some answer none, to the question for its hardware address that comes before."""
    for gateway, interface in routes:
        target = f"{gateway}%{interface}" if gateway.startswith("fe80:") else gateway
        if system.run.ask("ping", "-n", "-c", "1", "-W", "1", target, seconds=5).status == 0:
            return gateway
        if " REACHABLE" in system.run.ask("ip", "neighbour", "show", "to", gateway, "dev", interface).text:
            return gateway
    return ""
