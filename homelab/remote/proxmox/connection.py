"""The Proxmox VE API of a host through this process's SSH connection to it: pvedaemon, which listens on the host itself
and needs no certificate, as root@pam, whose ticket root makes.

It is imported on first use (homelab/later.py): a run that changes nothing doesn't pay for proxmoxer.
"""

from __future__ import annotations

import http
import json
import re
import shlex
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from proxmoxer.core import ProxmoxResource

from homelab.errors import ApiError, AwayError, UnansweredError, UnreachableError
from homelab.remote import logins, ssh
from homelab.remote.proxmox.errors import plain
from homelab.settings import Host
from remote_scripts.pve.api import MINT, PORT, TICKET, USER, answered, request

_MINT = f'{shlex.join(MINT)} 2>&1 || echo "exit status $?"\n'


@dataclass
class Answer:
    """An answer of HTTP, with what proxmoxer reads of one."""

    status_code: int
    reason: str
    content: bytes


class Connection:
    """A host's API. `resource`: proxmoxer's, which asks and reads answers by this."""

    def __init__(self, host: Host) -> None:
        self._host, self._session = host, ssh.Session(host)
        self.resource = ProxmoxResource(base_url="/api2/json", session=self, serializer=self)

    def request(
        self, method: str, url: str, data: dict[str, Any] | None = None, params: dict[str, Any] | None = None
    ) -> Answer:
        """What proxmoxer asks for; `data` is a body's parameters, `params` the address's.

        :raises UnansweredError: there is no answer.
        :raises HomelabError: as `_minted`.
        """
        form, ticket = urlencode(data or params or {}, doseq=True), self._minted("")
        answer = self._asked(method, url, form, ticket)
        if answer.status_code == http.HTTPStatus.UNAUTHORIZED:
            # A ticket is good for two hours, and for none where the host's clock has jumped.
            answer = self._asked(method, url, form, self._minted(ticket))
        return answer

    def _asked(self, method: str, url: str, form: str, ticket: str) -> Answer:
        text = request(method, quote(urlsplit(url).path, safe="/:@,=+"), form, ticket)
        try:
            raw = self._session.exchange(PORT, text, changes=method != "GET")
        except UnreachableError as error:
            raise unanswered(self._host, error.found) from error
        if raw is None:
            raise unanswered(self._host, f"nobody listens on its 127.0.0.1:{PORT}", sent=False)
        # A login that prints something of its own does so before a command's output.
        status, reason, content = answered(raw[max(raw.find(b"HTTP/1."), 0) :])
        if not status.isdecimal():
            raise unanswered(self._host, "the connection ended without one")
        return Answer(int(status), reason, content)

    def loads(self, answer: Answer) -> Any:
        """An answer's data.

        :raises UnansweredError: it has none.
        """
        try:
            return json.loads(answer.content)["data"]
        except (ValueError, LookupError, TypeError):
            raise unanswered(self._host, "what answers isn't Proxmox VE's") from None

    def loads_errors(self, answer: Answer) -> Any:
        """A refusal's words for each parameter; None: it has none."""
        try:
            return json.loads(answer.content).get("errors")
        except (ValueError, AttributeError):
            return None

    def _minted(self, spent: str) -> str:
        """A ticket.

        :param spent: one that isn't good any more; empty: any is.
        :raises AwayError: the host can't be reached.
        :raises HomelabError: as `ssh.Session.connect`, or none is made.
        """
        try:
            self._session.connect()
            login = logins.login_of(self._host)
            with login.minting:
                if login.ticket == spent:
                    output = self._session.run("make_ticket", _MINT)
                    match = TICKET.search(output)
                    if match is None:
                        raise _no_ticket(self._host, plain(re.sub(r"PVE:\S+", "PVE:…", output)))
                    login.ticket = match[0]
                return login.ticket
        except UnreachableError as away:
            raise AwayError(**away.parts(), status=0, reason=away.found) from away


# -- errors --------------------------------------------------------------------------------------------------------
def _no_ticket(host: Host, text: str) -> ApiError:
    """The error where root's Perl makes no ticket.

    :param text: what it says.
    """
    return ApiError(
        wanted=f"a ticket of {USER} for the Proxmox VE API of {host.address}",
        found=text.strip()[-500:] or "Perl says nothing",
        why="without a ticket nothing can be asked of Proxmox VE",
        next="see `systemctl status pve-cluster` on the host, and correct what it says there, such as a user that is "
        "disabled; then run the same command again",
        status=0,
        reason=text,
    )


def unanswered(host: Host, found: str, *, sent: bool = True) -> UnansweredError:
    """The error of a request that got no answer; whoever asked says what was wanted.

    :param sent: it may have been carried out.
    """
    error = UnansweredError(
        wanted="",
        found=f"no answer from Proxmox VE on {host.address}: {found}",
        why="it isn't known whether a change was carried out" if sent else "nothing was asked of the node",
        next="see whether pvedaemon runs on the host (`systemctl status pvedaemon`), then run the same command again: "
        "it continues from what is there",
        status=0,
        reason=found,
    )
    error.sent = sent
    return error
