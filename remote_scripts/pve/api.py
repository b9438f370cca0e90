"""Proxmox VE's API on the host itself: pvedaemon, which listens on 127.0.0.1 in plain HTTP, asked as root@pam, whose
ticket root makes. What a boot does before pvedaemon runs reads files instead.
"""

from __future__ import annotations

import functools
import json
import re
import socket
from typing import Any
from urllib.parse import quote, urlencode

from remote_scripts.pve import pmxcfs
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
# A slow host takes a minute for a ticket.
_MINT_SECONDS = 120.0
# What pvedaemon says while pmxcfs doesn't run, which restarts with each update of pve-cluster, and until a node of a
# cluster has its quorum again after that.
_WITHOUT_PMXCFS = re.compile("Unable to load access control list|cluster not ready - no quorum")
_PART_BYTES = 1 << 16
_SEE_PVEDAEMON = "see whether pvedaemon runs (`systemctl status pvedaemon`)"
_SEE_PMXCFS = "see `systemctl status pve-cluster` and `pvecm status` (if it is only slow, raise timeouts.step and .api)"


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


def answered(answer: bytes) -> tuple[str, str, bytes]:
    """Status, reason and body of an answer; a status of no digits: it is none of HTTP's."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status, _, reason = head.partition(b"\r\n")[0].decode("utf-8", "replace").partition(" ")[2].partition(" ")
    return status, reason, content


class Refused(Failure):
    """Proxmox VE's no, in its own words: `found`."""


class Unanswered(Failure):
    """No answer came: what was asked for may have been done all the same."""


class NodeApi:
    """What Proxmox VE says of this node, and does on it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._ticket = self._node = ""

    def get(self, path: str, **parameters: object) -> Any:
        """The data that it answers.

        :param path: below the node's, such as /qemu.
        :raises Refused: it refuses.
        :raises Unanswered: it gives no answer; of both `found` says it in a few words.
        """
        return self._asked("GET", path, parameters)

    def post(self, path: str, **parameters: object) -> Any:
        """The data that it answers to what changes something; parameters and errors as of `get`. What got no answer may
        have been done.
        """
        return self._asked("POST", path, parameters)

    def put(self, path: str, **parameters: object) -> Any:
        """The same of a change that may be sent twice."""
        return self._asked("PUT", path, parameters)

    def _asked(self, method: str, path: str, parameters: dict[str, object]) -> Any:
        self._node = self._node or pmxcfs.this_node(self._system).name
        whole = f"/api2/json/nodes/{self._node}{quote(path, safe='/:@')}"
        status, reason, content = self._answer(method, whole, parameters)
        if status == "401":  # it is good for two hours, and for none where the clock has jumped
            self._ticket = ""
            status, reason, content = self._answer(method, whole, parameters)
        try:
            answer = json.loads(content) if status == "200" or content[:1] == b"{" else {}
            if status == "200":
                return answer["data"]
            errors = (f"{key}: {text}".strip() for key, text in (answer.get("errors") or {}).items())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _no_answer("what answers isn't Proxmox VE's") from None
        is_refused = reason and not _WITHOUT_PMXCFS.search(reason)
        raise _no_answer("; ".join([reason or status or "no answer", *errors]), Refused if is_refused else Unanswered)

    def _answer(self, method: str, path: str, parameters: dict[str, object]) -> tuple[str, str, bytes]:
        """Status, reason and body."""
        self._ticket = self._ticket or self._minted()
        try:
            answer = exchange(self._system, request(method, path, urlencode(parameters), self._ticket).encode())
        except OSError as error:
            raise _no_answer(error.strerror or str(error) or "it takes too long") from error
        return answered(answer)

    def _minted(self) -> str:
        done = self._system.run.ask(*MINT, seconds=self._system.work.time_to_look(_MINT_SECONDS))
        match = TICKET.search(done.text)
        if match is None:
            raise _no_answer(f"no ticket of {USER} is made: {done.failure('perl')}", see=_SEE_PMXCFS)
        return match[0]


def exchange(system: System, text: bytes) -> bytes:
    """What pvedaemon answers to the bytes of a request.

    :raises OSError: it doesn't listen, or takes too long.
    """
    with socket.create_connection(("127.0.0.1", PORT), system.work.time_for(_SECONDS)) as connection:
        connection.sendall(text)
        return b"".join(iter(lambda: connection.recv(_PART_BYTES), b""))


def _no_answer(found: str, kind: type[Failure] = Unanswered, see: str = _SEE_PVEDAEMON) -> Failure:
    return kind(
        "an answer of Proxmox VE's API on this host",
        found,
        "what it says of guests can't be known without it",
        f"{see}, then run `pulumi up` again",
    )


#: The API as a run asks it, by one ticket.
of = functools.lru_cache(maxsize=1)(NodeApi)
