"""How this host is reached: a boot on trial is compared with it."""

from __future__ import annotations

import json
import os
from typing import Any

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


def _ip(system: System, *words: str) -> list[dict[str, Any]]:
    """What `ip` shows; nothing where it fails. What a filter leaves out may be in it as an empty entry."""
    done = system.run.ask("ip", "-j", *words)
    return json.loads(done.text or "[]") if done.status == 0 else []


def _default_routes(system: System, family: str) -> list[dict[str, Any]]:
    """Those with a gateway; one with several ways is each of them."""
    routes = _ip(system, family, "route", "show", "default")
    ways = [way for route in routes for way in route.get("nexthops", [route])]
    return [way for way in ways if "gateway" in way]


def _default_address(system: System) -> str:
    for route in _default_routes(system, "-4")[:1]:
        for interface in filter(None, _ip(system, "-4", "address", "show", "dev", route["dev"])):
            return str(interface["addr_info"][0]["local"])
    return ""


def interface_of(system: System, address: str) -> str:
    """The interface that has it, if it is up. UNKNOWN: loopback, tunnels and the like, which have no carrier."""
    interfaces = _ip(system, "address", "show", "to", address)
    return next((str(one["ifname"]) for one in interfaces if one.get("operstate") in ("UP", "UNKNOWN")), "")


def listens(system: System, port: str) -> bool:
    """Whether a program does, by TCP."""
    return bool(port and system.run.ask("ss", "-Hltn", f"sport = :{port}").text)


def answering_gateway(system: System, address: str) -> str:
    """The first gateway of a default route of the address's kind that answers: to an echo request; or, since some
    answer none, to the question for its hardware address that comes before.
    """
    for route in _default_routes(system, "-6" if ":" in address else "-4"):
        gateway, interface = str(route["gateway"]), str(route["dev"])
        target = f"{gateway}%{interface}" if gateway.startswith("fe80:") else gateway
        if system.run.ask("ping", "-n", "-c", "1", "-W", "1", target, seconds=5).status == 0:
            return gateway
        if " REACHABLE" in system.run.ask("ip", "neighbour", "show", "to", gateway, "dev", interface).text:
            return gateway
    return ""
