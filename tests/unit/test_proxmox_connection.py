"""The connection to a host's API, without one: by whose clock its tasks are told from others, and what no answer means."""

from __future__ import annotations

import pytest

from homelab.errors import ApiError, UnansweredError, UnreachableError
from homelab.remote import ssh
from homelab.remote.proxmox.api import Api, _quoted
from tests.unit.hosts import settings

HOST = settings({})
TICKET = "PVE:root@pam:6A7B8C9D::abc+/="


class Session:
    """A host that mints these tickets and gives this answer. `asked`: the requests; `minted`: how many tickets."""

    def __init__(self, answer: bytes | None | Exception, ticket: str = TICKET) -> None:
        self.answer, self.ticket = answer, ticket
        self.asked, self.minted = list[str](), 0

    def connect(self) -> None:
        return None

    def run(self, _verb: str, _script: str) -> str:
        self.minted += 1
        return f"a warning of Perl's, without the end of a line {self.ticket}"

    def exchange(self, _port: int, request: str, *, changes: bool) -> bytes | None:
        assert changes is not request.startswith("GET ")
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def answered(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def api_of(monkeypatch: pytest.MonkeyPatch, session: Session) -> Api:
    monkeypatch.setattr(ssh, "Session", lambda _: session)
    return Api(HOST, "pve", patience=-1)


def test_a_request_has_its_ticket_and_its_parameters_where_pvedaemon_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = api_of(monkeypatch, session := Session(answered(b'{"data": 1}')))
    assert api.get("nodes/pve/tasks", "", limit=5) == 1
    assert api.put("nodes/pve/qemu/103/config", "", tags="a b;ü", onboot=False) == 1
    read, change = (request.split("\r\n") for request in session.asked)
    assert read[0] == "GET /api2/json/nodes/pve/tasks?limit=5 HTTP/1.1" and read[-1] == ""
    assert change[0] == "PUT /api2/json/nodes/pve/qemu/103/config HTTP/1.1"
    assert change[-1] == "tags=a+b%3B%C3%BC&onboot=0" and f"Content-Length: {len(change[-1])}" in change
    assert "Cookie: PVEAuthCookie=PVE%3Aroot%40pam%3A6A7B8C9D%3A%3Aabc%2B%2F%3D" in read and session.minted == 1


@pytest.mark.parametrize(
    ("answer", "verb", "sent", "why"),
    [
        (None, "post", False, "nothing was asked of the node"),
        (UnreachableError(wanted="", found="it was lost", why="", next=""), "post", True, "it isn't known whether a change"),
        (b"", "post", True, "it isn't known whether a change"),
        (b"", "get", True, "it could not be read; nothing was changed"),
    ],
)  # fmt: skip
def test_a_request_without_an_answer_may_have_been_carried_out_unless_nobody_listened(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None | Exception, verb: str, sent: bool, why: str
) -> None:
    api = api_of(monkeypatch, Session(answer))
    with pytest.raises(UnansweredError) as refused:
        getattr(api, verb)("version", "to see")
    assert why in refused.value.why and refused.value.sent is sent and refused.value.wanted == "to see"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (answered(b"<html>Log in</html>"), "isn't Proxmox VE's"),
        (answered(b'{"data":{"ticket":"PVE:a'), "isn't Proxmox VE's"),
        (answered(b"[]"), "isn't Proxmox VE's"),
        (answered(b"\xff"), "isn't Proxmox VE's"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer from Proxmox VE"),
        (answered(b"[]", "500 Sorry"), "500 Sorry"),
    ],
)
def test_an_answer_that_is_not_proxmox_ves_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, raw: bytes, found: str
) -> None:
    with pytest.raises(ApiError) as refused:
        api_of(monkeypatch, Session(raw)).get("nodes", "to see the nodes")
    assert found in refused.value.found and "ticket" not in refused.value.found


def test_what_a_login_prints_before_an_answer_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_of(monkeypatch, Session(b"Welcome!\n" + answered(b'{"data": 1}'))).get("version", "") == 1


def test_a_ticket_that_is_refused_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(monkeypatch, session := Session(answered(b"", "401 permission denied - invalid PVE ticket")))
    with pytest.raises(ApiError, match="401 permission denied"):
        api.get("version", "")
    assert len(session.asked) == session.minted == 2


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("user 'root@pam' is disabled", "a user that is disabled"),
        ("Connection refused", "status pve-cluster"),
    ],
)
def test_where_root_makes_no_ticket_the_cause_is_said(monkeypatch: pytest.MonkeyPatch, said: str, step: str) -> None:
    with pytest.raises(ApiError) as refused:
        api_of(monkeypatch, Session(b"", f"{said}\nexit status 2")).get("version", "")
    assert said.splitlines()[0] in refused.value.found and step in refused.value.next


def test_of_a_tasks_log_an_error_quotes_no_line_on_a_lock_that_it_got() -> None:
    log = ["trying to acquire lock...", " OK", "start failed: no such bridge"]
    log += ["trying to acquire lock... OK", "TASK ERROR: start failed"]
    assert _quoted(log) == "\n        its log: start failed: no such bridge\n        TASK ERROR: start failed"
