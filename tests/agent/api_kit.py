"""pvedaemon of a host that is nothing but a folder (pve/api.py): a test says what it answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from lab.api.tasks import Tasks
from lab.host.guest_programs import modules
from lab.host.state import HostState
from remote_scripts.pve import pmxcfs
from remote_scripts.tools.done import Done
from tests.agent.kit import Host

#: By that word perl makes a ticket.
MINTS = "-MPVE::AccessControl"
_TICKET = "PVE:root@pam:6B099F0F::c2lnbmVk"
#: Method, path below the node's, and parameters -> the data.
Answers = Callable[[str, str, dict[str, str]], Any]


class RefusedError(Exception):
    """What Proxmox VE says instead."""


def noted_tasks(host: Host) -> list[dict[str, Any]]:
    """The tasks that run, and those that have ended, the last one first: as the lab reads their log."""
    tasks = Tasks(HostState(host.root.parent))
    return [*({**upid.described(), "status": "RUNNING"} for upid in tasks.running()), *tasks.finished()]


def runs(host: Host, vms: dict[int, str], containers: dict[int, str]) -> None:
    """It lists these guests, which run, and the tasks that are noted."""
    host.programs["qm"] = lambda _arguments, _stdin: 1

    def answers(_method: str, path: str, parameters: dict[str, str]) -> Any:
        if path == "/tasks":
            noted = [task for task in noted_tasks(host) if ("endtime" in task) is (parameters["source"] != "active")]
            return [task for task in noted if parameters.get("vmid") in (None, task["id"])]
        if path.endswith("/status/current"):
            return {"status": "running", "qmpstatus": "running"}
        guests = (vms if path == "/qemu" else containers).items()
        return [{"vmid": vmid, "name": name, "status": "running"} for vmid, name in guests]

    serve(host, answers, "")


def says_nothing(host: Host) -> None:
    """There is none."""
    host.programs |= dict.fromkeys(("perl", "qm"), lambda _arguments, _stdin: Done(2, b"", b"no quorum!\n"))


def perl(root: Path, arguments: Sequence[str], stdin: bytes = b"") -> Done:
    """Perl with the lab's calls of Proxmox VE's modules."""
    environment = os.environ | modules(root / "etc/pve", quorate=True)
    done = subprocess.run(["perl", *arguments], input=stdin, capture_output=True, env=environment)
    return Done(done.returncode, done.stdout, done.stderr)


def serve(host: Host, answers: Answers, node: str = "pve") -> None:
    """Has the host's programs ask it.

    :param node: empty: what it is by then.
    """

    def answered(_arguments: Sequence[str], request: bytes) -> Done:
        head, _, body = request.decode().partition("\r\n\r\n")
        first, *fields = head.split("\r\n")
        method, target, _ = first.split(" ")
        path, _, query = unquote(target).partition("?")
        assert f"Cookie: PVEAuthCookie={_TICKET}" in map(unquote, fields)
        status, data = "200 OK", None
        try:
            below = path.removeprefix(f"/api2/json/nodes/{node or pmxcfs.this_node(host.system()).name}/")
            if below == path:
                raise RefusedError("proxy not allowed")
            data = answers(method, f"/{below}", dict(parse_qsl(query or body)))
        except RefusedError as error:
            status = f"500 {error}"
        return Done(0, f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{json.dumps({'data': data})}".encode())

    others = host.programs.get("perl")

    def of_host(arguments: Sequence[str], stdin: bytes) -> Done | int | str | None:
        return others(arguments, stdin) if others and MINTS not in arguments else f"a warning\n{_TICKET}"

    host.programs |= {"perl": of_host, "pvedaemon": answered}
