"""The connection to a host's API, without one: by whose clock its tasks are told from others, and what no answer means."""

from __future__ import annotations

import http.server
import json
import re
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from requests.exceptions import ConnectionError, ConnectTimeout, ReadTimeout, RequestException, SSLError

from homelab.remote.proxmox import api, connection
from homelab.remote.proxmox.errors import ApiError, UnansweredError
from tests.unit.hosts import settings

NOW = 1_800_000_000.0
FINGERPRINT = ":".join(["AB"] * 32)


def test_the_nodes_clock_is_that_of_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By it a task whose answer was lost is told from earlier ones."""
    monkeypatch.setattr(connection, "time", SimpleNamespace(time=lambda: NOW))
    session: Any = SimpleNamespace(hooks={"response": []})
    seen = connection.Connection(None, session)
    (note,) = session.hooks["response"]
    times = []
    for date in (format_datetime(datetime.fromtimestamp(NOW - 3600, UTC)), "garbage", None):
        note(SimpleNamespace(headers={"Date": date} if date else {}))
        times.append(seen.node_time - NOW)
    assert times == [-3600.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("error", "reads", "sent", "why"),
    [
        (ConnectTimeout("late"), False, False, "nothing was asked of the node"),
        (ConnectionError("NewConnectionError: refused"), False, False, "nothing was asked of the node"),
        (ReadTimeout("late"), False, True, "it isn't known whether a change was carried out"),
        (ConnectionError("Connection aborted"), False, True, "it isn't known whether a change was carried out"),
        (ReadTimeout("late"), True, True, "it could not be read; nothing was changed"),
        (SSLError("EOF occurred in violation of protocol"), False, True, "it isn't known whether"),
        (SSLError('Fingerprints did not match. Expected "ab", got "cd01"'), False, None, "send the credentials to whatever"),
    ],
)  # fmt: skip
def test_a_request_without_an_answer_may_have_been_carried_out_unless_nothing_was_connected(
    error: RequestException, reads: bool, sent: bool | None, why: str
) -> None:
    """What certainly wasn't is sent again; of another certificate nothing is."""
    host = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", "fingerprint": FINGERPRINT})
    refusal = connection.no_answer(host, "to see", error, reads=reads)
    assert why in refusal.why and (refusal.sent if isinstance(refusal, UnansweredError) else None) is sent
    assert sent is not None or ("CD:01" in refusal.found and "api.fingerprint" in refusal.wanted)


@pytest.mark.parametrize("known_by", [{"fingerprint": FINGERPRINT}, {"publicCa": True}])
def test_the_connection_itself_sends_nothing_again(known_by: dict[str, Any]) -> None:
    access = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", **known_by}).api
    assert access and connection._adapter(access).max_retries.total == 0


def test_of_a_certificate_that_no_authority_vouches_for_the_settings_own_key_is_named() -> None:
    host = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", "publicCa": True})
    refusal = connection.no_answer(host, "to see", SSLError("certificate verify failed: certificate has expired"))
    assert "api.publicCa" in refusal.wanted and "caFile" not in str(refusal) and "has expired" in refusal.found


class Answering:
    """A session whose node answers a login so."""

    def __init__(self, status: int, data: dict[str, object]) -> None:
        self.status, self.data, self.sent = status, data, list[dict[str, Any]]()

    def request(self, verb: str, url: str, **options: Any) -> SimpleNamespace:
        assert (verb, url) == ("POST", "https://pve/access/ticket")
        self.sent.append(options)
        return SimpleNamespace(status_code=self.status, reason="said", content=json.dumps({"data": self.data}).encode())


TICKET: dict[str, object] = {"ticket": "the ticket", "CSRFPreventionToken": "the token"}
OPTIONS: dict[str, Any] = {"verify_ssl": "ca.pem", "timeout": (1, 2)}


def test_a_ticket_is_asked_for_with_the_password_once_and_renewed_with_itself() -> None:
    session = Answering(200, TICKET)
    ticket = connection._ticket(session, "https://pve", "root@pam", "secret", OPTIONS)
    assert ticket.get_tokens() == ("the ticket", "the token")
    ticket._get_new_tokens()
    assert [sent["data"]["password"] for sent in session.sent] == ["secret", "the ticket"]
    assert all((sent["verify"], sent["timeout"]) == ("ca.pem", (1, 2)) for sent in session.sent)


@pytest.mark.parametrize(
    ("status", "data", "found", "step"),
    [
        (401, {}, "401 said", "correct api.user"),
        (200, {**TICKET, "NeedTFA": 1}, "401 a second factor is asked for", "needs a token instead"),
        (503, {}, "503 said", "correct what it names"),
    ],
)
def test_a_login_that_is_refused_says_why_and_not_the_password(
    status: int, data: dict[str, object], found: str, step: str
) -> None:
    with pytest.raises(ApiError) as raised:
        connection._ticket(Answering(status, data), "https://pve", "root@pam", "secret", OPTIONS)
    assert raised.value.found == found and step in raised.value.next and "secret" not in str(raised.value)


class Page(http.server.BaseHTTPRequestHandler):
    """Something that isn't Proxmox VE, at its address. `status`, `content`: of each of its answers."""

    status, content = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("status", "content", "found"),
    [
        (200, b"<html>Log in</html>", "it begins: '<html>Log in</html>'"),
        (200, b'{"data":{"ticket":"PVE:a', "it isn't Proxmox VE's"),
        (200, b"[]", "it isn't Proxmox VE's"),
        (200, b"{}", "it isn't Proxmox VE's"),
        (200, b"\xff", "it isn't Proxmox VE's"),
        (302, b"", "https://192.168.0.202:8006 redirects to /elsewhere"),
        (500, b"<html>Sorry</html>", "500 Internal Server Error"),
        (500, b"[]", "500 Internal Server Error"),
    ],
)
def test_an_answer_that_is_not_proxmox_ves_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, status: int, content: bytes, found: str
) -> None:
    host = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", "fingerprint": FINGERPRINT})
    assert host.api is not None
    monkeypatch.setattr(Page, "status", status)
    monkeypatch.setattr(Page, "content", content)
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        made = connection._connection(host, host.api, "b")
        made.resource._store["base_url"] = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(api, "connected", lambda _: made)
        with pytest.raises(ApiError) as refused:
            api.Api(host, "pve", patience=-1).get("nodes", "to see the nodes")
    assert found in refused.value.found and not re.search("b'|ticket", refused.value.found)
    assert ("not to a proxy's" in refused.value.next) == (status < 500)


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("192.0.2.1", "https://192.0.2.1:8006/api2/json"),
        ("2001:db8::1", "https://[2001:db8::1]:8006/api2/json"),
    ],
)
def test_a_host_is_asked_at_its_address_without_the_environments_proxy(address: str, base: str) -> None:
    host = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", "fingerprint": FINGERPRINT})
    host = host.model_copy(update={"address": address})
    assert host.api is not None
    about = connection._connection(host, host.api, "b").resource._store
    assert about["base_url"] == base and about["session"].trust_env is False
    assert about["session"].auth.username == "homelab@pve" and about["session"].auth.token_name == "up"
