"""The lab's pvedaemon: the API on 127.0.0.1:85 of the host itself, through the SSH connection, by root@pam's ticket."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import asyncssh
import pytest

from lab import Lab
from lab.host.guest_programs import TICKET
from tests.lab.test_way_in import let_ops_log_in
from tests.simulator.ssh_kit import connect
from tests.simulator.test_server_ssh import execute
from tests.waiting import PATIENCE, wait_until

CONFIG = "/nodes/pve/qemu/103/config"
ITS = f"/api2/json{CONFIG}"
MINT = shlex.join(["perl", *TICKET])
BY_BASH = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/85 && cat >&3 && cat <&3'"
CLUSTER_OFF = "RPCEnvironment init request failed: Unable to load access control list: Connection refused"


class Answer:
    """What a client of HTTP reads of an answer."""

    def __init__(self, raw: bytes) -> None:
        socket: Any = type("Socket", (), {"makefile": lambda self, mode: io.BytesIO(raw)})()
        answer = http.client.HTTPResponse(socket)
        answer.begin()
        self.status_code, self.reason, self.content = answer.status, answer.reason, answer.read()


class OverSsh:
    """One SSH connection, in a loop of its own, and a channel for each request."""

    def __init__(self, lab: Lab) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.connection = self.wait(connect(lab.connection))
        self.ticket = self.run(MINT)

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def close(self) -> None:
        self.connection.abort()
        self.wait(self.connection.wait_closed())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def run(self, command: str) -> str:
        return str(self.wait(self.connection.run(command, check=True)).stdout)

    def ask(self, method: str, path: str, head: str = "", body: bytes = b"") -> Answer:
        return Answer(self.wait(self.exchange(self.raw(method, path, head, body))))

    def raw(self, method: str, path: str, head: str = "", body: bytes = b"") -> bytes:
        cookie = f"Cookie: PVEAuthCookie={quote(self.ticket, safe='')}\r\n"
        length = "" if "Transfer-Encoding" in head else f"Content-Length: {len(body)}\r\n"
        text = f"{method} {path} HTTP/1.1\r\nHost: pve\r\nConnection: close\r\n{cookie}{length}{head}\r\n"
        return text.encode() + body

    async def exchange(self, raw: bytes) -> bytes:
        reader, writer = await self.connection.open_connection("127.0.0.1", 85, encoding=None)
        writer.write(raw)
        return bytes(await reader.read())


@contextmanager
def session(lab: Lab) -> Iterator[OverSsh]:
    made = OverSsh(lab)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def lab(labs: Callable[[str], Lab]) -> Lab:
    return labs("rtx5090")


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[OverSsh]:
    with session(lab) as made:
        yield made


@pytest.fixture
def ssh(lab: Lab, shared: OverSsh) -> Iterator[OverSsh]:
    """One connection for all tests; each leaves the host as it was."""
    yield shared
    for name in ("clock-ahead", "api-loses", "api-holds", "no-quorum"):
        lab.fault(name, None)
    shared.run("systemctl start pve-cluster pvedaemon; rm -rf $HOMELAB_ROOT/etc/ssh")
    shared.ticket = shared.run(MINT)


def refusal(ssh: OverSsh, path: str = "/version") -> tuple[int, str]:
    answer = ssh.ask("GET", f"/api2/json{path}")
    return answer.status_code, answer.reason


def minted(lab: Lab, command: str = MINT) -> tuple[int | None, str]:
    done = execute(lab, command)
    return done.exit_status, cast(bytes, done.stderr).decode()


def not_opened(ssh: OverSsh) -> tuple[int, str]:
    with pytest.raises(asyncssh.ChannelOpenError) as refused:
        ssh.ask("GET", "/api2/json/version")
    return refused.value.code, refused.value.reason


# -- what it is for ------------------------------------------------------------------------------------------------
def test_whoever_has_the_ticket_is_root_itself_through_the_one_connection(lab: Lab, ssh: OverSsh) -> None:
    assert ssh.ticket.startswith("PVE:root@pam:")
    mark, given = lab.mark(), {"args": "-no-hpet", "description": "what a/b=c&d means, in %"}
    assert ssh.ask("PUT", ITS, body=urlencode(given).encode()).reason == "OK"
    assert json.loads(ssh.ask("GET", ITS).content)["data"]["description"] == given["description"]
    assert ssh.ask("PUT", ITS, body=b"delete=args,description").reason == "OK"
    assert b"unknown option" in ssh.ask("PUT", ITS, body=b"delete=nonsense").content
    assert {call["who"] for call in lab.api_calls(mark)} == {"root@pam"}
    assert len(lab.connections(mark)) == 0


def test_many_requests_at_once_take_no_session_each(ssh: OverSsh) -> None:
    async def at_once() -> list[bytes]:
        return list(await asyncio.gather(*(ssh.exchange(ssh.raw("GET", "/api2/json/version")) for _ in range(20))))

    assert {answer.split(b"\r\n")[0] for answer in ssh.wait(at_once())} == {b"HTTP/1.1 200 OK"}


def test_the_same_bytes_go_through_bash(lab: Lab, ssh: OverSsh) -> None:
    done = execute(lab, BY_BASH, ssh.raw("PUT", ITS, body=b"tags=de"))
    assert Answer(cast(bytes, done.stdout)).status_code == 200
    assert lab.ask_api("GET", CONFIG)["tags"] == "de"
    ssh.run("systemctl stop pvedaemon")
    done = execute(lab, BY_BASH, ssh.raw("GET", "/api2/json/version"))
    assert done.exit_status == 1 and b"Connection refused" in cast(bytes, done.stderr)


# -- what it refuses -----------------------------------------------------------------------------------------------
def test_an_error_ends_a_connection_and_another_answer_keeps_it(lab: Lab, ssh: OverSsh) -> None:
    parts = urlsplit(lab.api["url"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    cookie = {"Cookie": f"PVEAuthCookie={quote(ssh.ticket, safe='')}"}
    kept = []
    for path in ("/version", "/nope"):
        connection.request("GET", f"/api2/json{path}", headers=cookie)
        connection.getresponse().read()
        kept.append(connection.sock is not None)
    assert kept == [True, False]


def test_a_ticket_that_is_wrong_or_missing_lets_nobody_in(ssh: OverSsh) -> None:
    ssh.ticket = ssh.ticket[:-4] + "AAA="
    assert refusal(ssh) == (401, "permission denied - invalid PVE ticket")
    ssh.ticket = ""
    assert refusal(ssh)[0] == 401


def test_a_ticket_is_good_for_two_hours_of_the_hosts_clock(lab: Lab, ssh: OverSsh) -> None:
    lab.fault("clock-ahead", 115 * 60)
    assert refusal(ssh) == (200, "OK")
    lab.fault("clock-ahead", 121 * 60)
    assert refusal(ssh) == (401, "permission denied - invalid PVE ticket")
    ssh.ticket = ssh.run(MINT)
    assert refusal(ssh) == (200, "OK")
    lab.fault("clock-ahead", None)
    assert refusal(ssh)[0] == 401


# -- sshd ----------------------------------------------------------------------------------------------------------
def test_where_sshd_forbids_forwarding_bash_is_the_way(lab: Lab, ssh: OverSsh) -> None:
    ssh.run("mkdir -p $HOMELAB_ROOT/etc/ssh && echo AllowTcpForwarding no >$HOMELAB_ROOT/etc/ssh/sshd_config")
    assert not_opened(ssh) == (1, "open failed")
    done = execute(lab, BY_BASH, ssh.raw("GET", "/api2/json/version"))
    assert Answer(cast(bytes, done.stdout)).status_code == 200


def test_while_pvedaemon_is_stopped_connections_are_refused(ssh: OverSsh) -> None:
    ssh.run("systemctl stop pvedaemon")
    assert not_opened(ssh) == (2, "Connection refused")
    ssh.run("systemctl restart pvedaemon")
    assert refusal(ssh) == (200, "OK")


def test_one_request_that_is_held_up_holds_up_no_other(lab: Lab, ssh: OverSsh) -> None:
    lab.fault("api-holds", "PUT /nodes/pve/qemu/103/config")
    held = asyncio.run_coroutine_threadsafe(ssh.exchange(ssh.raw("PUT", ITS, body=b"tags=fr")), ssh.loop)
    wait_until(lambda: any(call["parameters"].get("tags") == "fr" for call in lab.api_calls()))
    assert lab.ask_api("GET", CONFIG)["tags"] == "fr"
    lab.fault("api-holds", None)
    assert Answer(held.result(PATIENCE)).status_code == 200


def test_of_a_pvedaemon_that_is_killed_no_answer_comes(lab: Lab, ssh: OverSsh) -> None:
    lab.fault("api-loses", "GET /version=1")
    with pytest.raises(http.client.RemoteDisconnected):
        ssh.ask("GET", "/api2/json/version")
    assert refusal(ssh) == (200, "OK")


# -- the ticket, by states of the host -----------------------------------------------------------------------------


def test_without_pve_cluster_neither_a_ticket_nor_an_answer_is_there(lab: Lab, ssh: OverSsh) -> None:
    ssh.run("systemctl stop pve-cluster")
    status, said = minted(lab)
    assert (status, said) == (111, "Connection refused\n")
    assert refusal(ssh) == (500, CLUSTER_OFF)


def test_a_disabled_root_gets_no_ticket(lab: Lab, ssh: OverSsh) -> None:
    ssh.run(
        "cp $HOMELAB_ROOT/etc/pve/user.cfg $HOMELAB_ROOT/root/; sed -i s/root@pam:1/root@pam:0/ $HOMELAB_ROOT/etc/pve/user.cfg"
    )
    assert minted(lab) == (255, "user 'root@pam' is disabled\n")
    ssh.run("mv $HOMELAB_ROOT/root/user.cfg $HOMELAB_ROOT/etc/pve/")


def test_another_program_of_proxmox_ves_modules_isnt_known(lab: Lab, ssh: OverSsh) -> None:
    status, said = minted(lab, "perl -MPVE::Tools -e 'print 1'")
    assert (status, "the lab has what makes a ticket" in said) == (2, True)


def test_another_user_makes_a_ticket_by_sudo_alone(lab: Lab, ssh: OverSsh) -> None:
    let_ops_log_in(lab, by_sudo=False)

    async def as_ops(command: str) -> tuple[int | None, str, str]:
        async with await connect(lab.connection, username="ops") as connection:
            done = await connection.run(command)
        return done.exit_status, str(done.stdout), str(done.stderr)

    assert asyncio.run(as_ops(MINT))[:2] == (13, "")
    assert asyncio.run(as_ops(f"sudo -n {MINT}")) == (1, "", "sudo: a password is required\n")
    (lab.root / "etc/sudoers.d/ops").write_text("ops ALL=(ALL) NOPASSWD: ALL\n")
    status, ticket, _ = asyncio.run(as_ops(f"sudo -n {MINT}"))
    assert (status, ticket[:13]) == (0, "PVE:root@pam:")
    ssh.ticket = ticket
    assert refusal(ssh) == (200, "OK")
