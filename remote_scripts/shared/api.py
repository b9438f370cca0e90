"""Proxmox VE's API on the host itself: pvedaemon, which listens on 127.0.0.1 in plain HTTP, asked as root@pam, whose
ticket root makes. What a boot does before pvedaemon runs reads files instead.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import quote, urlencode

from remote_scripts.shared import pmxcfs
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: Of pvedaemon, whatever pveproxy's settings say (PVE/Service/pvedaemon.pm).
PORT = 85
USER = "root@pam"
#: Prints a ticket, perhaps behind a warning: that there is no key for tickets yet, or that it is renewed, as each day.
MINT = (
    "perl",
    "-MPVE::AccessControl",
    "-MPVE::Cluster=cfs_read_file",
    "-e",
    r'PVE::AccessControl::check_user_enabled(cfs_read_file("user.cfg"),"root\@pam"); '
    r'print PVE::AccessControl::assemble_ticket("root\@pam")',
)
#: A ticket, in what that prints.
TICKET = re.compile(rf"PVE:{USER}:[0-9A-F]{{8}}::\S+")
_SECONDS = 60.0
_PART_BYTES = 1 << 16


def request(method: str, path: str, form: str, ticket: str) -> str:
    """The text of a request.

    :param path: percent-encoded, from /api2/json on.
    :param form: the parameters, encoded.
    """
    body = form if method in ("PUT", "POST") else ""
    lines = [
        f"{method} {path}{'' if body or not form else f'?{form}'} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Cookie: PVEAuthCookie={quote(ticket, safe='')}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
        "",
        body,
    ]
    return "\r\n".join(lines)


class NodeApi:
    """What Proxmox VE says of this node, and does on it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._ticket = ""

    def get(self, path: str, **parameters: object) -> Any:
        """The data that it answers.

        :param path: below the node's, such as /qemu.
        :raises Failure: it refuses, or gives no answer; `found` says it in a few words.
        """
        return self._asked("GET", path, parameters)

    def post(self, path: str, **parameters: object) -> Any:
        """The data that it answers to what changes something; parameters and errors as of `get`. What got no answer may
        have been done.
        """
        return self._asked("POST", path, parameters)

    def _asked(self, method: str, path: str, parameters: dict[str, object]) -> Any:
        self._ticket = self._ticket or self._minted()
        whole = f"/api2/json/nodes/{pmxcfs.this_node(self._system).name}{quote(path, safe='/:@')}"
        text = request(method, whole, urlencode(parameters), self._ticket)
        try:
            answer = exchange(self._system, text.encode())
        except OSError as error:
            raise _no_answer(error.strerror or "it takes too long") from error
        head, _, content = answer.partition(b"\r\n\r\n")
        status, _, reason = head.partition(b"\r\n")[0].decode("utf-8", "replace").partition(" ")[2].partition(" ")
        if status == "401":  # it is good for two hours, and for none where the clock has jumped
            self._ticket = ""
        if status != "200":
            raise _no_answer(reason or status or "no answer")
        try:
            return json.loads(content)["data"]
        except (ValueError, LookupError, TypeError):
            raise _no_answer("what answers isn't Proxmox VE's") from None

    def _minted(self) -> str:
        done = self._system.run.ask(*MINT)
        match = TICKET.search(done.text)
        if match is None:
            raise _no_answer(f"no ticket of {USER} is made: {done.failure('perl')}")
        return match[0]


def exchange(system: System, text: bytes) -> bytes:
    """What pvedaemon answers to the bytes of a request.

    :raises OSError: it doesn't listen, or takes too long.
    """
    with socket.create_connection(("127.0.0.1", PORT), system.work.time_for(_SECONDS)) as connection:
        connection.sendall(text)
        return b"".join(iter(lambda: connection.recv(_PART_BYTES), b""))


def _no_answer(found: str) -> Failure:
    return Failure(
        "an answer of Proxmox VE's API on this host",
        found,
        "what it says of guests can't be known without it",
        "see whether pvedaemon runs (`systemctl status pvedaemon`), then run `pulumi up` again",
    )
