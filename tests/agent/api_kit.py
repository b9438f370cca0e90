"""pvedaemon of a host that is nothing but a folder (shared/api.py): a test says what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote

from remote_scripts.shared import api, pmxcfs
from remote_scripts.tools.run import Done
from tests.agent.kit import Host

_TICKET = "PVE:root@pam:6B099F0F::c2lnbmVk"
#: Method, path below the node's, and parameters -> the data.
Answers = Callable[[str, str, dict[str, str]], Any]


class RefusedError(Exception):
    """What Proxmox VE says instead."""


def runs(host: Host, vms: dict[int, str], containers: dict[int, str], *others: int) -> None:
    """It lists these guests, which run, and these others, VMs that are off."""
    listed = {
        "/qemu": [{"vmid": vmid, "name": name, "status": "running"} for vmid, name in vms.items()]
        + [{"vmid": vmid, "name": f"VM {vmid}", "status": "stopped"} for vmid in others],
        "/lxc": [{"vmid": str(ctid), "name": name, "status": "running"} for ctid, name in containers.items()],
    }
    host.programs["qm"] = lambda _arguments, _stdin: 1
    serve(host, lambda _method, path, _parameters: listed[path], pmxcfs.this_node(host.system()).name)


def says_nothing(host: Host) -> None:
    """There is none."""
    host.programs |= dict.fromkeys(("perl", "qm"), lambda _arguments, _stdin: Done(2, b"", b"no quorum!\n"))


def serve(host: Host, answers: Answers, node: str = "pve") -> None:
    """Has the host's programs ask it."""

    def answered(_arguments: Sequence[str], request: bytes) -> Done:
        head, _, body = request.decode().partition("\r\n\r\n")
        first, *fields = head.split("\r\n")
        method, target, _ = first.split(" ")
        path, _, query = unquote(target).partition("?")
        assert f"Cookie: PVEAuthCookie={_TICKET}" in map(unquote, fields)
        status, data = "200 OK", None
        try:
            below = path.removeprefix(f"/api2/json/nodes/{node}/")
            if below == path:
                raise RefusedError("proxy not allowed")
            data = answers(method, f"/{below}", dict(parse_qsl(query or body)))
        except RefusedError as error:
            status = f"500 {error}"
        return Done(0, f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{json.dumps({'data': data})}".encode())

    others = host.programs.get("perl")

    def perl(arguments: Sequence[str], stdin: bytes) -> Done | int | str | None:
        return others(arguments, stdin) if others and not is_mint(arguments) else f"a warning\n{_TICKET}"

    host.programs |= {"perl": perl, "pvedaemon": answered}


def is_mint(arguments: Sequence[str]) -> bool:
    """Whether perl is to make a ticket."""
    return [*arguments] == [*api.MINT[1:]]
