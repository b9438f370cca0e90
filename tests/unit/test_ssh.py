"""homelab/remote/ssh.py over a real SSH connection, to a server that answers whatever a host could."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest.mock import AsyncMock

import asyncssh
import pulumi
import pytest
from asyncssh import SSHServerProcess
from pulumi.runtime.proto.resource_pb2_grpc import ResourceMonitorStub

from homelab import text
from homelab.cli import access
from homelab.errors import HomelabError, LoginRefusedError, NotConfirmedError, NotStartedError, UnreachableError
from homelab.reading import systems
from homelab.remote import agent as asking
from homelab.remote import boots, logins, loop, ssh
from homelab.resources import command, kept_agent
from homelab.settings import Host
from homelab.stack import Refusal
from remote_scripts.both import nothing, start_guests
from remote_scripts.both.needed import Wanted as Needed
from remote_scripts.both.run_guard import Wanted as Guard
from remote_scripts.both.stack_folder import Wanted as StackFolder
from remote_scripts.tools.log import Log
from remote_scripts.tools.state import Work
from tests import agent_kit, connections
from tests.unit.hosts import KEY, conf, desktop, settings
from tests.waiting import PATIENCE, wait_until

Serve = Callable[["SSHServerProcess[bytes]"], Awaitable[None]]
Use = Callable[[ssh.Session], str]

# pulumi-command imports its deprecated resources too.
pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")


class Server(asyncssh.SSHServer):
    """An sshd as one connection has it, with its MaxSessions."""

    def __init__(self, serve: Serve | None, most: int) -> None:
        self.serve, self.left = serve, most

    def session_requested(self) -> SSHServerProcess[bytes] | bool:
        if not (self.serve and self.left):
            return False
        self.left -= 1
        return SSHServerProcess(self.served, None, 3, False)

    async def served(self, process: SSHServerProcess[bytes]) -> None:
        assert self.serve
        await self.serve(process)
        self.left += 1


def meet(
    folder: Path,
    serve: Serve | None,
    use: Use,
    user: str = "root",
    agent: Callable[[str], None] | None = None,
    seconds: float | None = None,
    most: int = 10,
) -> str:
    """What ``use`` makes of a server; without ``serve`` it opens no session. ``agent``: is given the key, and an SSH agent logs in."""

    async def main() -> str:
        key = asyncssh.generate_private_key("ssh-ed25519")
        (folder / "key").write_bytes(key.export_private_key())
        (folder / "authorized").write_bytes(key.export_public_key())
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[key],
            authorized_client_keys=str(folder / "authorized"),
            server_factory=lambda: Server(serve, most),
            encoding=None,
        )
        login = {"user": user, "port": server.get_port(), "hostKey": key.export_public_key().decode().strip()}
        if agent is not None:
            agent(key.export_private_key().decode())
        login |= {"privateKeyFile": str(folder / "key")} if agent is None else {"agent": True}
        host = Host.model_validate({"address": "127.0.0.1", "ssh": login})
        try:
            return await asyncio.to_thread(use, ssh.Session(host, seconds))
        finally:
            connections.end_all()
            server.close()

    return asyncio.run(main())


def talk(folder: Path, serve: Serve, seconds: float = 20) -> str:
    """What `Session.run` makes of it."""
    return meet(folder, serve, lambda session: session.run("read_system", "script\n", seconds))


def keep(folder: Path, serve: Serve | None) -> list[str]:
    """What `Session.keep` makes of it."""
    said: list[str] = []

    def held(session: ssh.Session) -> str:
        loop.run(session.keep("run_guard", Guard(who="anna"), lambda: said.append("held"), 0.01))
        return ""

    meet(folder, serve, held)
    return said


def saying(out: bytes = b"", log: bytes = b"", status: int = 0) -> Serve:
    """A host that says this and ends."""

    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stdout.write(out)
        process.stderr.write(log)
        process.exit(status)

    return serve


@pytest.mark.parametrize("printed", [b"Welcome to\n{the} server\n", b"\x1b]0;root@pve\x07"])
def test_what_a_login_prints_before_a_script_that_holds_is_passed_over(printed: bytes, tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stdout.write(printed)
        process.stdout.write(b'{"held":"yes"}\n')
        assert await process.stdin.readline() == b"script\n"
        assert await process.stdin.readline() == b"\n"
        process.exit(0)

    assert keep(tmp_path, serve) == ["held"]


def test_what_a_script_that_holds_is_told_comes_between_two_signs_of_life(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stdout.write(b'{"held":"yes"}\n')
        heard.extend([await process.stdin.readline() for _ in range(2)])
        process.exit(0)

    def held(session: ssh.Session) -> str:
        words: asyncio.Queue[str] = asyncio.Queue()
        loop.run(session.keep("run_guard", Guard(who="anna"), lambda: words.put_nowait("cancelled"), 300, words))
        return ""

    meet(tmp_path, serve, held)
    asked = json.loads(heard[0])
    assert (asked["verb"], asked["requests"][0]["input"]["who"], heard[1]) == ("hold", "anna", b"cancelled\n")


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("verb", ["read", "hold"])
def test_the_agent_is_sent_to_a_host_that_asks_for_it_and_to_no_other(
    tmp_path: Path, verb: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(asking, "itself", lambda: "the agent\n")

    async def serve(process: SSHServerProcess[bytes]) -> None:
        sent.append(await process.stdin.readline())
        process.stdout.write(b"welcome" if is_kept else b"welcomeagent?\n")
        if not is_kept:
            sent.append(await process.stdin.readline())
        process.stdout.write(b'\n{"held":"yes"}\n')
        process.exit(0)

    def ask(session: ssh.Session) -> str:
        return json.dumps(session.ask("read", "cluster_turn", nothing.Wanted()))

    assert (meet(tmp_path, serve, ask) if verb == "read" else keep(tmp_path, serve)) in ('{"held": "yes"}', ["held"])
    asked = json.loads(sent[0])
    assert asked["verb"] == verb and asked["version"] == asking.version()
    assert sent[1:] == ([] if is_kept else [b"the agent\n"])


def test_what_a_logins_own_job_prints_behind_the_question_for_the_agent_hides_it_not(tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stdout.write(b"agent?\nno updates\n")
        await process.stdin.readline()
        assert len(await process.stdin.readline()) > 1
        process.stdout.write(b'{"turn":"yes"}\n')
        process.exit(0)

    def ask(session: ssh.Session) -> str:
        return json.dumps(session.ask("read", "cluster_turn", nothing.Wanted(), seconds=5))

    assert meet(tmp_path, serve, ask) == '{"turn": "yes"}'


def test_a_run_that_waits_for_another_one_which_restarts_the_host_names_it(tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stderr.write(b"another run is at work: anna on desk\n")
        await asyncio.sleep(0.5)
        process.channel.get_connection().abort()

    with pytest.raises(HomelabError) as refused:
        keep(tmp_path, serve)
    assert not isinstance(refused.value, UnreachableError)
    assert refused.value.found.startswith("another run is at work: anna on desk; it was lost in the middle")


def test_a_connection_that_is_lost_in_the_middle_says_what_that_may_be(tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        await process.stdin.read()
        process.channel.get_connection().abort()

    with pytest.raises(UnreachableError, match="it was lost in the middle: the host restarts"):
        talk(tmp_path, serve)


@pytest.mark.parametrize("use", ["a script", "a script that holds the host"])
def test_a_network_that_is_cut_in_the_middle_is_noticed_long_before_the_scripts_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """Nothing comes any more and no end does: the other side's cable was pulled, or its sshd has stopped."""
    monkeypatch.setattr(logins, "KEEPALIVE_SECONDS", 0.1)
    is_cut = threading.Event()

    async def serve(process: SSHServerProcess[bytes]) -> None:
        if use == "a script":
            await process.stdin.read()
        else:
            process.stdout.write(b'{"held":"yes"}\n')
            await process.stdin.readline()
        await asyncio.sleep(0.1)  # the answer is on its way
        is_cut.set()
        await asyncio.sleep(3600)

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if not is_cut.is_set():
                target.write(data)

    def through_the_network(session: ssh.Session) -> str:
        flows, ends = list[asyncio.Task[None]](), list[asyncio.StreamWriter]()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends.append(writer)  # at once: the network may be cut meanwhile
            there = await asyncio.open_connection("127.0.0.1", session._host.ssh.port)
            flows.extend(asyncio.create_task(pass_on(*ways)) for ways in ((reader, there[1]), (there[0], writer)))
            ends.append(there[1])

        async def cut(network: asyncio.Server) -> None:
            network.close()
            for flow in flows:
                flow.cancel()
            for end in ends:
                end.close()

        network = loop.run(asyncio.start_server(accepted, "127.0.0.1", 0))
        here = session._host.ssh.model_copy(update={"port": network.sockets[0].getsockname()[1]})
        through = ssh.Session(session._host.model_copy(update={"ssh": here}))
        try:
            if use == "a script":
                return through.run("read_system", "script\n", 60)
            loop.run(through.keep("run_guard", Guard(who="anna"), lambda: None, 60))
            return ""
        finally:
            loop.run(cut(network))

    began = time.monotonic()
    if use == "a script":
        with pytest.raises(UnreachableError, match="lost in the middle: the host restarts, its sshd was stopped, or"):
            meet(tmp_path, serve, through_the_network)
    else:  # who asks for the host next takes it anew
        meet(tmp_path, serve, through_the_network)
    assert is_cut.is_set() and time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("serve", "kind", "said"),
    [
        (
            saying(b"Welcome\nwanted: to be alone\nfound:  a\nwhy:    b\nnext:   c\n", status=1),
            HomelabError,
            "to be alone",
        ),
        (saying(log=b"sudo: a password is required\n", status=1), HomelabError, "a password is required"),
        (None, UnreachableError, "Session refused"),
    ],
    ids=["it refuses", "sudo asks for a password", "it opens no session"],
)
def test_why_a_host_can_not_be_held_is_said(
    tmp_path: Path, serve: Serve | None, kind: type[HomelabError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        keep(tmp_path, serve)


def test_bytes_that_are_no_text_are_an_answer_all_the_same(tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        assert await process.stdin.read() == b"script\n"
        process.stdout.write(b'{"name": "f\xfcr"}\n')
        process.stderr.write(b"\xff\xfe")
        process.exit(0)

    assert talk(tmp_path, serve) == '{"name": "f�r"}\n'


def test_a_failure_whose_log_is_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(HomelabError, match=r"exit status 3: \ufffd cannot go on"):
        talk(tmp_path, saying(log=b"\xff cannot \x1b[31mgo on\x1b[0m\n", status=3))


def test_the_lines_of_a_log_are_heard_while_the_script_goes_on(tmp_path: Path) -> None:
    heard: list[str] = []
    both = threading.Event()

    def hear(line: str) -> None:
        heard.append(line)
        if len(heard) == 2:
            both.set()

    async def serve(process: SSHServerProcess[bytes]) -> None:
        process.stderr.write(b"waiting for HA: 5 s\nno")
        await process.stderr.drain()
        process.stderr.write(b"te: caf\xe9\n")
        await asyncio.to_thread(both.wait, PATIENCE)
        process.stdout.write(b"{}\n")
        process.exit(0)

    def ask(session: ssh.Session) -> str:
        return str(session.ask("apply", "start_guests", start_guests.Wanted(), 20, hear))

    assert meet(tmp_path, serve, ask) == "{}"
    assert heard == ["waiting for HA: 5 s", "note: caf\ufffd"]


@pytest.mark.parametrize(("status", "kind"), [(1, HomelabError), (3, NotConfirmedError), (4, NotStartedError)])
def test_a_script_that_is_not_read_but_answers_is_heard(tmp_path: Path, status: int, kind: type[HomelabError]) -> None:
    with pytest.raises(HomelabError, match="wanted: a\nfound:  b") as told:
        talk(tmp_path, saying(b"wanted: a\nfound:  b\nwhy:    c\nnext:   d\n", status=status))
    assert told.type is kind


def test_a_command_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async def serve(process: SSHServerProcess[bytes]) -> None:
        await process.stdin.read()
        await asyncio.sleep(3600)

    with pytest.raises(
        UnreachableError, match=r"within 0.5 s \(read_system\)\nfound:  the SSH connection works"
    ) as slow:
        talk(tmp_path, serve, seconds=0.5)
    assert "timeouts.api" in slow.value.next


# -- one connection for all -------------------------------------------------------------------------------------
class Sshd:
    """Answers each command with the number of the connection that it comes by: `wait` once it is let go."""

    def __init__(self, most: int = 10) -> None:
        """:param most: its MaxSessions."""
        self.most = most
        self.connections: list[Any] = []
        self.let_go = threading.Event()
        self.at_work = 0

    async def serve(self, process: SSHServerProcess[bytes]) -> None:
        self.loop, connection = asyncio.get_running_loop(), process.channel.get_connection()
        if connection not in self.connections:
            self.connections.append(connection)
        self.at_work += 1
        script = await process.stdin.read()
        while script == b"wait\n" and not self.let_go.is_set():
            await asyncio.sleep(0.01)
        with suppress(BrokenPipeError):
            process.stdout.write(str(self.connections.index(connection)).encode())
            process.exit(0)
        self.at_work -= 1

    def ends_the_last(self) -> None:
        """Of its connections."""
        self.loop.call_soon_threadsafe(self.connections[-1].abort)

    def meet(self, folder: Path, use: Use) -> str:
        return meet(folder, self.serve, use, most=self.most)

    def meet_many(self, folder: Path, commands: int, at_work: int, then: Callable[[], None]) -> list[str]:
        """What so many commands answer that are begun at a time, or what kind of error; `then` comes once so many are at work."""

        def use(session: ssh.Session) -> str:
            with ThreadPoolExecutor(commands) as threads:
                asked = [threads.submit(session.run, "read", "wait\n", 20) for _ in range(commands)]
                wait_until(lambda: self.at_work >= at_work)
                time.sleep(0.2)  # all of which it is the turn have come by now
                then()
                answers = [type(one.exception()).__name__ if one.exception() else one.result() for one in asked]
                self.let_go.set()
            return " ".join(answers)

        return self.meet(folder, use).split()


def test_more_than_sshd_takes_at_a_time_goes_over_one_connection(tmp_path: Path) -> None:
    sshd = Sshd()
    assert sshd.meet_many(tmp_path, 12, 2, sshd.let_go.set) == ["0"] * 12


def test_a_command_that_waits_for_its_turn_is_lost_with_its_connection(tmp_path: Path) -> None:
    """By then another run may hold the host."""
    sshd = Sshd()

    assert sshd.meet_many(tmp_path, 12, 2, sshd.ends_the_last) == ["UnreachableError"] * 12
    assert len(sshd.connections) == 1


@pytest.mark.parametrize(("most", "by"), [(1, "0123"), (2, "0011")])
def test_a_host_whose_sshd_allows_few_sessions_gets_more_connections(most: int, by: str, tmp_path: Path) -> None:
    """The guard has one of them."""
    sshd = Sshd(most)
    assert sorted(sshd.meet_many(tmp_path, 4, 4, sshd.let_go.set)) == [*by]


def test_a_connection_that_has_ended_between_two_commands_is_opened_again(tmp_path: Path) -> None:
    sshd = Sshd()

    def use(session: ssh.Session) -> str:
        answers = session.run("read", "a\n")
        for _ in range(3):
            sshd.ends_the_last()
            answers += session.run("read", "a\n")
        return answers

    assert sshd.meet(tmp_path, use)[-1] == str(len(sshd.connections) - 1) != "0"


@pytest.mark.skipif(sys.platform == "win32", reason="a fork")
def test_a_fork_waits_for_no_thread_of_the_process_that_it_comes_from() -> None:
    loop.run(asyncio.sleep(0))
    if (pid := os.fork()) == 0:
        signal.alarm(60)
        try:
            loop.run(asyncio.sleep(0))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_command_that_is_given_up_ends_no_other_one(tmp_path: Path) -> None:
    """Where the host didn't answer in time it may be going down, and who asks next asks by a new connection."""
    sshd = Sshd()

    def use(session: ssh.Session) -> str:
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(session.run, "read", "wait\n", PATIENCE)
            wait_until(lambda: sshd.at_work == 1)
            with pytest.raises(HomelabError):
                session.run("read", "wait\n", 0.5)
            after = session.run("read", "a\n")
            sshd.let_go.set()
            return other.result() + after

    assert sshd.meet(tmp_path, use) == "01"


def test_a_slow_host_has_the_time_for_its_answer_that_the_settings_give() -> None:
    session = _Sending()
    session._host = settings(timeouts={"api": 300})
    session.ask("read", "cluster_turn", nothing.Wanted())
    assert session.waits == 300


# -- a host that restarts ---------------------------------------------------------------------------------------
def restarted(
    monkeypatch: pytest.MonkeyPatch, *readings: str | HomelabError, patience: float = 30
) -> tuple[str, list[str]]:
    """What is waited for on a host that is read so, one time after the other and the last one for ever; and what is said meanwhile."""
    left = list(readings)

    def connect(_host: Host) -> Restarting:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, HomelabError):
            raise found
        return Restarting(*found.split("|"))

    monkeypatch.setattr(boots, "Session", connect)
    monkeypatch.setattr(boots, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(boots, "REFUSED_SECONDS", 0.001)
    said: list[str] = []
    timeouts = SimpleNamespace(api=60, reboot=patience, rollback=30, boot=patience * 3)
    host = SimpleNamespace(address="192.168.0.202", timeouts=timeouts)
    return boots.wait_for_boot(host, "old", said.append).boot_id, said  # type: ignore[arg-type]


@dataclass
class Restarting:
    """A connection to a host with that boot; ``confirmed_as``, ``read_as``: which it runs a moment later, and then, if that is another one."""

    boot: str
    confirmed_as: str | None = None
    read_as: str | None = None
    readings: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.confirmed_as = self.boot if self.confirmed_as is None else self.confirmed_as
        self.read_as = self.confirmed_as if self.read_as is None else self.read_as

    def connect(self, *, anew: bool) -> None:
        assert anew

    def boot_id(self, _seconds: float) -> str:
        return self.boot

    def ask(self, verb: str, layer: str, _wanted: object, _seconds: float) -> dict[str, object]:
        assert (verb, layer) == ("apply", "confirm_boot")
        if self.confirmed_as in FAILING:
            raise FAILING[self.confirmed_as]
        confirmed = "" if self.confirmed_as == "old" else self.confirmed_as
        return {"boot": self.confirmed_as, "confirmed": confirmed, "judged": ""}

    def read(self, **_: object) -> SimpleNamespace:
        assert self.read_as is not None
        self.readings.append(self.read_as)
        if self.read_as == "hangs":
            raise HANGS
        return SimpleNamespace(boot_id=self.read_as, rolled_back="", rolling_back=False)

    def ended(self, seconds: float) -> None:
        assert 0 < seconds <= 10


OFF = UnreachableError(wanted="a connection", found="nothing answers", why="", next="")
NO_KEYS = HomelabError(wanted="to log in", found="refused: Permission denied", why="", next="")
HANGS = UnreachableError(wanted="a connection", found="the script has not ended", why="", next="")
FAILING = {
    "broken": NotConfirmedError(wanted="armed removed", found="a read-only file system", why="", next=""),
    "cut": HomelabError(wanted="the command to apply to succeed", found="exit status 137", why="", next=""),
}


def test_a_host_that_refuses_the_login_while_it_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxmox VE keeps root's keys in /etc/pve, which may come after sshd."""
    boot, said = restarted(monkeypatch, "old", NO_KEYS, OFF, NO_KEYS, NO_KEYS, "new")
    assert boot == "new"
    assert said == ["192.168.0.202 answers, but can't be read yet: refused: Permission denied"] * 2


@pytest.mark.parametrize(
    ("readings", "read"),
    [
        (("old", "old", OFF, "new"), ["new"]),  # one that goes down isn't read
        (("new",), ["new"]),  # faster than we
        (("old|new", OFF, "new"), ["new"]),
        (("new|old", OFF, "new"), ["new"]),
        (("|old", OFF, "|new"), ["new"]),  # its boot id can't be had by itself
        (("new|new|newer", OFF, "newer"), ["newer", "newer"]),  # what is read wasn't confirmed
    ],
)
def test_a_host_is_read_when_it_runs_another_boot_and_not_before(
    monkeypatch: pytest.MonkeyPatch, readings: tuple[str | HomelabError, ...], read: list[str]
) -> None:
    monkeypatch.setattr(Restarting, "readings", [])
    assert restarted(monkeypatch, *readings)[0] == read[-1]
    assert Restarting.readings == read


def test_a_boot_that_cannot_be_confirmed_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restarting, "readings", [])
    with pytest.raises(HomelabError, match="read-only"):
        restarted(monkeypatch, "old", "new|broken", "new")
    assert Restarting.readings == []


def test_a_confirmation_that_is_cut_off_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    boot, said = restarted(monkeypatch, "old", "new|cut", OFF, "newer")
    assert boot == "newer"
    assert said == ["192.168.0.202 answers, but can't be read yet: exit status 137"]


def test_a_confirmed_boot_that_cannot_be_read_is_said_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restarted(monkeypatch, "new|new|hangs", OFF, "new|new|hangs", "new")[0] == "new"
    with pytest.raises(UnreachableError, match="boot new is confirmed, and the host doesn't take it back") as error:
        restarted(monkeypatch, "new|new|hangs", patience=0.02)
    assert "has not ended" in error.value.found and error.value.next.startswith("log in, and see what hangs (`lspci`")


def test_another_host_key_while_it_starts_may_be_that_of_its_initramfs(monkeypatch: pytest.MonkeyPatch) -> None:
    other_key = HomelabError(wanted="the host key", found="SHA256:of the initramfs", why="", next="")
    boot, said = restarted(monkeypatch, OFF, other_key, other_key, OFF, "new")
    assert boot == "new" and "SHA256:of the initramfs" in said[0]


def test_a_host_that_never_goes_down_is_told_of_and_who_is_refused_to_the_end_hears_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UnreachableError, match="it answers, but has not rebooted"):
        restarted(monkeypatch, "old", patience=0.02)
    with pytest.raises(HomelabError, match="Permission denied"):
        restarted(monkeypatch, OFF, NO_KEYS, patience=0.02)


def test_a_reading_knows_the_functions_that_the_settings_name_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh.Session, "ask", lambda *_: asdict(desktop()))
    host = settings({"gpu": {"match": "10de:2b85", "functions": ["0000:01:00.0"]}})
    found = ssh.Session(host).read()
    assert [one.address for one in found.functions("0000:01:00")] == ["0000:01:00.0"]


def with_the_agent(folder: Path, give: Callable[[str], None], seconds: float | None = None) -> str:
    """Logs in with the agent to a server that takes one key; ``give``: is given this key before."""

    return meet(folder, saying(b"in"), lambda session: session.run("read_system", ""), agent=give, seconds=seconds)


def test_an_agent_that_is_not_there_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "none"))
    with pytest.raises(LoginRefusedError, match="no agent that answers"):
        with_the_agent(tmp_path, lambda _: None)
    pipe = r"\\.\pipe\openssh-ssh-agent"

    def none(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", pipe)

    monkeypatch.setattr("asyncssh.connect_agent", none)
    with pytest.raises(LoginRefusedError) as refused:
        with_the_agent(tmp_path, lambda _: None)
    assert refused.value.found == f"no agent that answers (No such file or directory: {pipe})"


@pytest.mark.skipif(sys.platform == "win32", reason="the agent of a test listens on a Unix socket")
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("", ""),
        ("silent", "an agent that has said nothing within 0.5 s"),
        ("silent-signing", "no answer within 2 s; the SSH agent may wait for you to confirm"),
        ("refuses", "Permission denied"),
        ("gone", "Permission denied"),
        ("empty", "an agent without a key"),
    ],
)
def test_an_agent_that_misbehaves_is_one_error_that_names_it_and_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    monkeypatch.setattr(logins, "AGENT_SECONDS", 0.5)
    with ExitStack() as ends:

        def give(key: str) -> None:
            held = None if fault == "empty" else asyncssh.import_private_key(key)
            ends.enter_context(agent_kit.agent(tmp_path / "agent", held, fault))

        if not fault:
            assert with_the_agent(tmp_path, give) == "in"
            return
        with pytest.raises(UnreachableError if fault == "silent-signing" else LoginRefusedError) as caught:
            with_the_agent(tmp_path, give, seconds=2)
    assert found in caught.value.found and (fault == "silent-signing" or "ssh-add" in caught.value.next)


@pytest.mark.skipif(sys.platform == "win32", reason="the agent of a test listens on a Unix socket")
@pytest.mark.parametrize(("dry_run", "fault"), [(False, "silent"), (False, "empty"), (False, ""), (True, "silent")])
def test_an_up_asks_the_agent_once_before_pulumi_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool, fault: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    monkeypatch.setattr(logins, "AGENT_SECONDS", 0.5)
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: dry_run)
    command._ask_the_agent.cache_clear()
    key = None if fault == "empty" else asyncssh.generate_private_key("ssh-ed25519")
    with agent_kit.agent(tmp_path / "agent", key, fault):
        if fault and not dry_run:
            with pytest.raises(Refusal) as caught:
                command.connection(settings())
            assert "ssh-add" in str(caught.value)
            return
        command.connection(settings())
    command.connection(settings())  # it is not asked again: there is none any more
    command._ask_the_agent.cache_clear()


@pytest.mark.parametrize("agent", ["gone", "there", "not named", "a pipe"])
def test_an_agent_that_is_gone_is_said_before_pulumi_command_fails_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
    paths = {"not named": "", "a pipe": r"\\.\pipe\openssh-ssh-agent"}
    monkeypatch.setenv("SSH_AUTH_SOCK", paths.get(agent, str(tmp_path / "agent")))
    host = settings().model_copy(update={"ssh": settings().ssh.model_copy(update={"agent": False})})
    with agent_kit.agent(tmp_path / ("agent" if agent == "there" else "other"), None):
        if agent in ("there", "not named"):
            command.connection(host)
            return
        with pytest.raises(Refusal, match="SSH_AUTH_SOCK") as caught:
            command.connection(host)
    assert "unset SSH_AUTH_SOCK" in str(caught.value) and (agent != "a pipe" or "no Unix socket" in str(caught.value))


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_rsa_host_key_is_refused_as_pulumi_command_cant_use_it(
    monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: dry_run)
    monkeypatch.setattr(command, "_ask_the_agent", lambda: None)
    key = asyncssh.generate_private_key("ssh-rsa").export_public_key("openssh").decode().strip()
    host = settings().model_copy(update={"ssh": settings().ssh.model_copy(update={"host_key": key})})
    with pytest.raises(Refusal, match="ssh-keyscan -t ed25519"):
        command.connection(host)


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_agent_on_windows_is_refused_as_pulumi_command_cant_use_it(
    monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: dry_run)
    monkeypatch.setattr(command, "_ask_the_agent", lambda: None)
    host = settings(ssh={"hostKey": KEY, "agent": True})
    monkeypatch.setattr(command, "os", SimpleNamespace(name="posix"))
    command.connection(host)
    monkeypatch.setattr(command, "os", SimpleNamespace(name="nt"))
    with pytest.raises(Refusal, match="set ssh.privateKeyFile"):
        command.connection(host)
    for system in ("posix", "nt"):
        monkeypatch.setattr(access, "os", SimpleNamespace(name=system, environ={"SSH_AUTH_SOCK": "there"}))
        assert ({"agent": True} in access.ways([], None)) == (system == "posix")


async def around(host: Host) -> pulumi.ResourceHookBinding | None:
    return command._around_each(host)


def test_the_program_reaches_where_a_step_runs_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    async def connect(address: str, *_: object, **__: object) -> object:
        reached.append(address)
        if address == "192.0.2.8":
            raise asyncssh.PermissionDenied("no")
        return SimpleNamespace(abort=lambda: None)

    monkeypatch.setattr(asyncssh, "connect", connect)
    host = settings(ssh={"hostKey": KEY, "password": "x"})
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
    monkeypatch.setattr(command, "get_monitor", lambda: object.__new__(ResourceMonitorStub))
    monkeypatch.setattr(pulumi, "ResourceHook", lambda name, callback: SimpleNamespace(callback=callback))
    monkeypatch.setattr(pulumi, "ErrorHook", lambda name, callback: name)
    kept_agent._of_way.cache_clear()

    hooks = asyncio.run(around(host))
    assert hooks is not None and hooks.before_create == hooks.before_update and hooks.before_delete is None
    (hook,) = cast(list[pulumi.ResourceHook], hooks.before_create)

    async def step(address: str, **more: str) -> None:
        inputs = {"connection": {"host": address}, **more}
        told = hook.callback(cast(pulumi.ResourceHookArgs, SimpleNamespace(new_inputs=inputs)))
        await cast(Awaitable[None], told)

    for _ in range(2):
        asyncio.run(step("192.0.2.7"))  # it has answered a moment ago
    for _ in range(2):
        with pytest.raises(HomelabError):
            asyncio.run(step("192.0.2.8"))
    assert reached == ["192.0.2.7", "192.0.2.8", "192.0.2.8"]
    # A VM of the same host, with the same user and port: it has a key of its own.
    guest = asyncio.run(around(settings(ssh={"hostKey": f"{KEY[:-4]}AAAA", "agent": True})))
    assert guest is not None and guest.before_create != hooks.before_create
    # On a host of its own the provider does that.
    kept_agent.of_program(host).kept = kept_agent.KeptFolder("lab", cast(pulumi.Resource, "agent"))
    monkeypatch.setattr(pulumi.runtime, "invoke_async", asked := AsyncMock())
    for more in ({"create": "apply"}, {}):  # a step without a command is the agent's own
        asyncio.run(step("192.0.2.8", **more))
    assert [call.args[:2] for call in asked.await_args_list] == [
        (command.HOLD, {"host": host.name, "owner": owner}) for owner in (None, "lab")
    ]
    assert reached.count("192.0.2.8") == 2
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
    assert command._around_each(settings()) is None


def test_a_hook_has_a_thread_though_as_many_registrations_wait_as_pulumi_gives_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
    monkeypatch.setattr(command, "get_monitor", lambda: object.__new__(ResourceMonitorStub))
    monkeypatch.setattr(pulumi, "ResourceHook", lambda *_: None)
    kept_agent._of_way.cache_clear()
    asked = threading.Event()

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(4))
        command._around_each(settings())
        registrations = [loop.run_in_executor(None, asked.wait, 20) for _ in range(4)]
        await loop.run_in_executor(None, asked.set)
        assert all(await asyncio.gather(*registrations))

    asyncio.run(program())


def test_a_step_that_is_cut_off_is_told_and_what_else_fails_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "error", told.append)
    for error in (
        'wait: remote command exited without exit status or exit signal: running "agent=…": ',
        "wanted: a\nfound:  b\nwhy:    c\nnext:   d\nProcess exited with status 1",
    ):
        assert not command._tell_if_cut_off(pulumi.ErrorHookArgs("", "", "pve-initrd", "", errors=[error]))
    assert len(told) == 1 and told[0].startswith("wanted: pve-initrd: ") and "run `pulumi up` again" in told[0]


def test_a_host_that_accepts_and_says_nothing_is_given_up_before_a_step(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        login = {"port": silent.getsockname()[1], "hostKey": KEY, "password": "a"}
        host = Host.model_validate({"address": "127.0.0.1", "timeouts": {"connect": 1}, "ssh": login})
        with pytest.raises(UnreachableError) as caught:
            asyncio.run(logins.reach(host))
    assert caught.value.found == "no answer within 1 s"


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, keys: int = 1) -> None:
    """Each connection fails so; the SSH agent has so many keys."""

    async def agent(*_: object) -> list[None]:
        return [None] * keys

    monkeypatch.setattr(asyncssh, "connect", AsyncMock(side_effect=error))
    monkeypatch.setattr(logins, "_keys_of_the_agent", agent)


@pytest.mark.parametrize(
    ("failed", "found"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('192.0.2.1', 22)"), "Connection refused"),
        (
            socket.gaierror(8, "nodename nor servname provided, or not known"),
            "nodename nor servname provided, or not known",
        ),  # macOS
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (asyncssh.ConnectionLost("Connection lost"), "Connection lost"),
    ],
)
def test_why_a_host_cant_be_reached_is_in_the_systems_words(
    monkeypatch: pytest.MonkeyPatch, failed: Exception, found: str
) -> None:
    failing(monkeypatch, failed)
    with pytest.raises(UnreachableError) as caught:
        ssh.read(settings(ssh={"hostKey": KEY, "password": "a"}))
    assert (caught.value.wanted, caught.value.found) == ("an SSH connection to 192.168.0.202:22", found)


@pytest.mark.parametrize(("keys", "step"), [(7, "the SSH agent has 7 keys"), (0, "ssh.password")])
def test_a_login_that_offers_too_many_keys_is_refused_and_no_host_is_off(
    monkeypatch: pytest.MonkeyPatch, keys: int, step: str
) -> None:
    failing(monkeypatch, asyncssh.ProtocolError("Too many authentication failures"), keys)  # sshd's MaxAuthTries
    with pytest.raises(LoginRefusedError, match="Too many authentication failures") as refused:
        ssh.read(settings(ssh={"hostKey": KEY, **({"agent": True} if keys else {"password": "a"})}))
    assert step in refused.value.next


@pytest.mark.parametrize(
    ("way", "command"),
    [
        ("file", ["ssh-copy-id", "-i", "{folder}/my key.pub", "-p", "2222", "admin@192.168.0.202"]),
        ("agent", ["ssh-copy-id", "-p", "2222", "admin@192.168.0.202"]),  # takes the agent's keys
        ("text", []),
        ("password", []),
    ],
)
def test_a_login_that_is_refused_is_cured_for_the_very_key_that_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, command: list[str]
) -> None:
    failing(monkeypatch, asyncssh.PermissionDenied("Permission denied"))
    key = asyncssh.generate_private_key("ssh-ed25519", comment="")
    key.write_private_key(tmp_path / "my key")
    ways: dict[str, Any] = {
        "file": {"privateKeyFile": f"{tmp_path}/my key"},
        "agent": {"agent": True},
        "password": {"password": "a"},
    }
    login = ways.get(way, {"privateKey": key.export_private_key().decode()})
    with pytest.raises(LoginRefusedError) as refused:
        ssh.read(settings(ssh={"hostKey": KEY, "user": "admin", "port": 2222, **login}))
    advised = re.findall(r"`(ssh-copy-id .*?)`", refused.value.next)
    assert [shlex.split(one) for one in advised] == [[word.format(folder=tmp_path) for word in command]] * bool(command)
    assert ("docs/windows.md" in refused.value.next) is bool(command)
    assert (key.export_public_key().decode().strip() in refused.value.next) is (way == "text")
    assert ("ssh.password" in refused.value.next) is (way == "password")


def test_a_key_file_that_isnt_there_is_made_by_its_own_name(tmp_path: Path) -> None:
    host = settings(ssh={"hostKey": KEY, "port": 2222, "privateKeyFile": f"{tmp_path}/my key"})
    with pytest.raises(HomelabError) as refused:
        _ = host.ssh.key
    [made] = (shlex.split(one) for one in re.findall("`(.*?)`", refused.value.next))
    assert made == ["ssh-keygen", "-t", "ed25519", "-f", f"{tmp_path}/my key"]


def test_a_host_that_has_no_key_of_the_pinned_kind_shows_another_key() -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256")

    async def main() -> None:
        server = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[other])
        try:
            login = {"hostKey": KEY, "password": "a", "port": server.get_port()}
            await logins.reach(Host.model_validate({"address": "127.0.0.1", "ssh": login}))
        finally:
            server.close()

    with pytest.raises(HomelabError, match="root's commands would go to it") as refused:
        asyncio.run(main())
    assert refused.value.found == other.get_fingerprint() and not isinstance(refused.value, UnreachableError)


def test_who_waits_is_told_every_few_seconds_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 2))  # each look at it is two seconds after the last
    monkeypatch.setattr(boots, "time", SimpleNamespace(monotonic=lambda: float(next(clock)), sleep=lambda _: None))
    said: list[str] = []
    monkeypatch.setattr(boots, "tell_meanwhile", said.append)
    boot, _ = restarted(monkeypatch, *[OFF] * 8, "new", patience=600)
    form = r"restarts: (\d+) s, at most 600; see its console meanwhile"
    seconds = [int(found[1]) for line in said if (found := re.fullmatch(form, line))]
    assert boot == "new" and len(said) >= 3
    assert all(5 <= later - earlier <= 10 for earlier, later in itertools.pairwise([0, *seconds])), said


def test_what_a_host_is_asked_and_until_when_is_said_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def run(work: Coroutine[Any, Any, Any], awaited: str) -> tuple[int, bytes, str]:
        work.close()
        told.append(awaited)
        return 0, b"{}", ""

    monkeypatch.setattr(loop, "run", run)
    session = ssh.Session(settings(address="192.0.2.1"))
    session.ask("read", "initramfs", Needed(needed=True))
    session.plan([("initramfs", Needed(needed=True))])
    wanted = [" to be read: a busy host", " to say what `pulumi up` changes: a busy host"]
    assert [any(one.startswith(f"192.0.2.1{text}") for text in wanted) for one in told] == [True, True], told
    assert all("given up after 60 s; Ctrl-C ends it" in one for one in told), told


def test_progress_of_a_run_goes_to_its_line_not_to_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(text, "_shown_by", lambda: [lambda what, *, meanwhile: told.append((what, meanwhile))])
    text.tell("pve: rebooting")
    text.tell_meanwhile("waiting for the host: 5 s")
    assert told == [("pve: rebooting", False), ("waiting for the host: 5 s", True)]


# -- NVIDIA's stacks with a reading --------------------------------------------------------------------------------
class _Answering(ssh.Session):
    """Reads a host with the containers 901, which runs, and 902, which is off; `later`: the guests once a container was asked."""

    def __init__(self, later: dict[str, object] | None = None, **guests: object) -> None:
        self._host = settings()
        configs = [conf("lxc", ctid, "ostype: debian") for ctid in (901, 902)]
        self.guests = {"running": [901], "configs": configs, **guests}
        self.later = later or {}

    def ask(self, *words: Any, ctid: int = 0, **_: Any) -> dict[str, Any]:
        if "read_host" in words:
            return asdict(desktop(guests=self.guests))
        self.guests |= self.later
        if ctid == 902:
            raise HomelabError(wanted="container 902 running", found="stopped", why="w", next="start it")
        return {"read": ctid}


class _Sending(ssh.Session):
    """Notes what is sent, and how long its answer is waited for."""

    def __init__(self) -> None:
        self._host = settings()

    def _run(self, *words: Any, **_: Any) -> str:
        self.request, self.waits = json.loads(words[2])["requests"][0], words[3]
        return "{}"


@pytest.mark.parametrize("seconds", [1, 60, 825, 3600])
def test_work_on_a_host_has_its_whole_time_and_more_for_its_error(tmp_path: Path, seconds: int) -> None:
    session, began = _Sending(), time.monotonic()
    session.ask("apply", "cluster_turn", nothing.Wanted(), seconds)
    limit = session.request["seconds"]
    assert Work(tmp_path, Log(tmp_path), limit).ends - began >= seconds
    assert seconds < limit <= session.waits < 1.2 * seconds + 10


def test_what_goes_on_without_us_has_no_limit_there(tmp_path: Path) -> None:
    session = _Sending()
    session.ask("apply", "start_guests", start_guests.Wanted(), 900, goes_on=True)
    assert "seconds" not in session.request and session.waits == 900


def test_plans_are_asked_together_and_told_from_what_a_login_prints() -> None:
    class Planning(_Sending):
        def _run(self, *args: Any, **more: Any) -> str:
            super()._run(*args, **more)
            return 'welcome\n{"files": []}\n{"reboot": "no"}\n'

    session = Planning()
    questions = [("stack_folder", StackFolder(owner="x")), ("cluster_turn", nothing.Wanted())]
    assert session.plan(questions) == [{"files": []}, {"reboot": "no"}]
    assert session.waits == 2 * settings().timeouts.api and session.request["layer"] == "stack_folder"


def systems_of(session: _Answering, *names: str) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homelab.reading.systems.of_plain", lambda _form, answer, _what: answer)
        found = systems.read(session, session.read(guests=True), names).systems
    return {name: one.found if isinstance(one, HomelabError) else one for name, one in found.items()}


def test_stacks_are_read_on_the_host_and_in_containers_that_run_and_that_nothing_works_on() -> None:
    assert systems_of(_Answering(), "host", "901", "902") == {"host": {"read": 0}, "901": {"read": 901}}
    for lines in ("lock: backup", "ostype: alpine"):
        assert systems_of(_Answering(configs=[conf("lxc", 901, lines)]), "host", "901") == {"host": {"read": 0}}


def test_where_nobody_knows_what_runs_no_container_counts_as_off() -> None:
    found = systems_of(_Answering(running=[], unlisted="refused"), "901", "902")
    assert found == {"901": {"read": 901}, "902": "stopped"}


def test_a_container_that_stops_while_the_host_is_read_counts_as_off() -> None:
    session = _Answering(running=[901, 902], later={"running": [901]})
    assert systems_of(session, "901", "902") == {"901": {"read": 901}}
    known: list[dict[str, object]] = [{"running": [901, 902]}, {"running": [], "unlisted": "refused"}]
    for later in known:
        assert systems_of(_Answering(running=[902], later=later), "902") == {"902": "stopped"}
