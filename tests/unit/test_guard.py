"""homelab/remote/host_session.py: who is at work on a host, in words; and what of a run is held by it."""

from __future__ import annotations

import asyncio
import getpass
import platform
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NoReturn

import asyncssh
import pytest

from homelab import text
from homelab.container.resource import ContainerVerification
from homelab.errors import RefusedError, UnreachableError
from homelab.nvidia.resource import GuestReboot
from homelab.nvidia.work import GuestRebootWork
from homelab.provider.serve import Homelab
from homelab.remote import host_session, loop
from homelab.remote.host_session import HostSession
from homelab.resources.base import HostInputs, NoOutputs
from homelab.resources.work import base
from homelab.resources.work.base import Work
from homelab.settings import Host, Timeouts
from remote_scripts.both.run_guard import Wanted
from remote_scripts.both.terms import HANDOVER_SECONDS
from remote_scripts.layers import handover as layer
from tests.waiting import PATIENCE, wait_until


def test_a_user_without_a_name_is_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> NoReturn:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(platform, "node", lambda: "desk")
    assert host_session._this_run.__wrapped__().startswith("an unknown user on desk, since 2")


class Acts(Work[HostInputs, NoOutputs]):
    """Work that says in which order things happen."""

    resource = ContainerVerification

    def __init__(self, done: list[str], **texts: str) -> None:
        super().__init__(texts)
        self._done = done

    def _inputs(self, properties: dict[str, Any]) -> HostInputs:
        return HostInputs(host=properties["host"])

    def _outputs(self, state: dict[str, Any]) -> NoOutputs:
        return NoOutputs()

    def create(self, inputs: HostInputs) -> NoOutputs:
        self._done.append("created")
        return NoOutputs()

    def delete(self, inputs: HostInputs, outputs: NoOutputs) -> None:
        self._done.append("deleted")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in its order; a host can be held."""
    said: list[str] = []
    monkeypatch.setattr(HostSession, "hold", lambda session, host: said.append(f"held {session.name}"))
    monkeypatch.setattr(
        base, "load_host", lambda hosts, name: Host.model_construct(address="192.0.2.1", timeouts=Timeouts())
    )
    return said


def test_a_host_is_held_before_anything_of_it_is_deleted(done: list[str]) -> None:
    class ActsAlone(Acts):
        """The same, of one that has nothing to delete."""

        delete = Work.delete

    Acts(done).deleted({"host": "pve"})
    assert done == ["held pve", "deleted"]
    # The end of a chain is an act, with nothing to delete: it comes before the scripts that have.
    ActsAlone(done).deleted({"host": "pve2"})
    assert done[2:] == ["held pve2"]


def test_what_another_run_holds_is_not_deleted(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise RefusedError(wanted="to be the only run", found="another one is", why="c", next="d")

    monkeypatch.setattr(HostSession, "hold", refused)
    with pytest.raises(RefusedError):
        Acts(done).deleted({"host": "pve"})
    assert done == []


def test_an_unreachable_host_is_asked_once_and_its_resources_are_deleted(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gone(session: HostSession, host: Host) -> NoReturn:
        asked.append(session.name)
        raise UnreachableError(wanted="a", found="b", why="c", next="d")

    monkeypatch.setattr(HostSession, "hold", gone)
    for _ in range(2):
        Acts(done).deleted({"host": "pve"})
    assert (asked, done) == (["pve"], ["deleted", "deleted"])


def test_a_run_that_lost_its_host_notices_before_its_next_change(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Acts(done).created({"host": "pve"})
    assert done == ["held pve", "created"]
    ended = host_session.Guard("pve", Host.model_construct(address="192.0.2.1"))
    ended.ended.set()
    host_session.of("pve").guard = ended
    Acts(done).created({"host": "pve"})
    assert done[2:] == ["held pve", "created"]


@pytest.mark.parametrize(("was_held", "told"), [(False, []), (True, ["held pve"])])
def test_what_is_inside_a_vm_is_changed_while_the_host_is_held_if_it_was_before(
    done: list[str], monkeypatch: pytest.MonkeyPatch, was_held: bool, told: list[str]
) -> None:
    """The VM may run with a card that it has in turn, by which the host can't be held."""
    if was_held:
        ended = host_session.Guard("pve", Host.model_construct(address="192.0.2.1"))
        ended.ended.set()
        monkeypatch.setattr(host_session.of("pve"), "guard", ended)
    inputs = {"target": "vm", "system_name": "vms.sandbox", "address": "192.0.2.2", "after": "", "stays": False}
    restart = {"driver": "580", "timeout": 60, "step": "", "generation": "0", "nvidia": {}, "passed": []}
    monkeypatch.setattr(GuestRebootWork, "create", lambda *_: GuestReboot.Outputs(boot_id="new"))
    assert GuestRebootWork({}).created({"host": "pve", **inputs, **restart})[1]["boot_id"] == "new"
    assert done == told


def test_a_cancelled_run_tells_each_host_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for name in ("pve1", "pve2"):
        monkeypatch.setattr(host_session.of(name), "guard", SimpleNamespace(say=told.append))
    asyncio.run(Homelab().cancel(None))
    assert told == ["cancelled"] * 2


def test_the_end_of_a_run_that_holds_nothing_is_answered_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says it at each run's end, and gives all its plugins five seconds together."""
    monkeypatch.delitem(sys.modules, "homelab.remote.host_session")
    asyncio.run(Homelab().cancel(None))
    assert "homelab.remote.host_session" not in sys.modules


class Answers:
    """A guard that is refused for as long as ``refusals`` has texts."""

    refusals: list[str]

    def __init__(self, name: str, host: Host) -> None:
        self.answered, self.ended = threading.Event(), threading.Event()
        self.error = RefusedError(wanted="w", found=self.refusals.pop(0), why="w", next="n") if self.refusals else None

    def begin(self) -> None:
        self.answered.set()
        self.ended.set()


def test_a_run_that_was_cut_off_waits_for_the_host_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_session, "Guard", Answers)
    host = Host.model_construct(address="192.0.2.1")
    Answers.refusals = []
    host_session.of("pve").hold(host)
    Answers.refusals = [f"another one is: {host_session._this_run()}"] * 3
    host_session.of("pve").hold(host)
    assert Answers.refusals == []
    Answers.refusals = [f"another one is: {host_session._this_run()}", "another one is: ben on desk"]
    with pytest.raises(RefusedError, match="ben on desk"):
        host_session.of("pve").hold(host)
    Answers.refusals = [f"another one is: {host_session._this_run()}"]  # cut off before its first answer
    host_session.of("pve2").hold(host)
    assert Answers.refusals == []


def test_a_host_answers_before_its_client_gives_up() -> None:
    wanted = Wanted(who="ben on desk")
    assert wanted.patience + wanted.handing + wanted.ending < Timeouts().api


class Sshd:
    """Lets anybody in, and answers that the host is held, and with what `note` has; or with what `refusal` has."""

    refusal = ""
    note = ""

    def __init__(self) -> None:
        key, self.connections = asyncssh.generate_private_key("ssh-ed25519"), list[asyncssh.SSHServerConnection]()
        connections = self.connections

        class Login(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                connections.append(conn)

            def begin_auth(self, username: str) -> bool:
                return False

        async def hold(process: asyncssh.SSHServerProcess[str]) -> None:
            process.stdout.write(self.refusal or f'{{"held":"yes"}}\n{self.note}')
            if self.refusal:
                process.exit(1)
            else:
                await process.stdin.read()

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1", 0, server_host_keys=[key], server_factory=Login, process_factory=hold
            )

        self.listener = loop.run(listen())
        access = {"port": self.listener.get_port(), "hostKey": key.export_public_key().decode().strip()}
        self.host = Host.model_validate({"address": "127.0.0.1", "ssh": access | {"password": "secret"}})

    async def cut(self) -> None:
        """All connections to it, as where its host has stopped."""
        for connection in self.connections:
            connection.abort()

    async def end(self) -> None:
        await self.cut()
        self.listener.close()


@pytest.fixture
def sshd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    monkeypatch.setattr(host_session, "on_loss", list)
    server = Sshd()
    yield server
    loop.run(server.end())
    held = host_session.of("pve").guard
    assert held is not None
    held._work.result(PATIENCE)


def test_a_connection_that_was_lost_holds_nothing_any_more(sshd: Sshd) -> None:
    """The host restarted, or a firewall on the way forgot it: nobody said goodbye."""
    with ThreadPoolExecutor(2) as resources:  # the engine works on several at once
        [*resources.map(lambda host: host_session.of("pve").hold(host), [sshd.host] * 2)]
    assert len(sshd.connections) == 1 and host_session.of("pve").is_held
    first = host_session.of("pve").guard
    loop.run(sshd.cut())
    assert first is not None and first.ended.wait(PATIENCE)
    host_session.of("pve").hold(sshd.host)
    assert len(sshd.connections) == 2


def test_a_host_that_another_run_holds_is_refused_with_the_hosts_own_words(sshd: Sshd) -> None:
    sshd.refusal = "wanted: to be alone\nfound:  another one is: ben on desk\nwhy:    w\nnext:   wait\n"
    for _ in range(2):  # asked again before each change, as long as it is refused
        with pytest.raises(RefusedError) as error:
            host_session.of("pve").hold(sshd.host)
        assert (error.value.found, error.value.next) == ("another one is: ben on desk", "wait")
    sshd.refusal = ""
    host_session.of("pve").hold(sshd.host)


def test_what_a_step_notes_on_the_host_is_told_by_the_provider(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own log, so that it stands among the messages at the end."""
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(text, "_shown_by", lambda: [lambda said, *, meanwhile: told.append((said, meanwhile))])
    sshd.note = "note: it was edited by hand\n\nnote: \x1b[31mred\n"
    host_session.of("pve").hold(sshd.host)
    wait_until(lambda: len(told) == 2)
    assert told == [("pve: note: it was edited by hand", False), ("pve: note: red", False)]


def test_a_run_that_came_too_late_after_its_reboot_changes_nothing_more(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had not held the host before: scripts alone came before its verification."""
    monkeypatch.undo()
    host = Host.model_construct(address="192.0.2.1", timeouts=Timeouts())
    monkeypatch.setattr(base, "load_host", lambda hosts, name: host)
    monkeypatch.setattr(host_session, "Guard", Answers)
    Answers.refusals = ["another one is: ben on desk"] * 2
    with pytest.raises(RefusedError):
        host_session.of("pve").hold(host)
    with pytest.raises(RefusedError, match="ben on desk"):
        Acts(done).created({"host": "pve"})
    assert done == []
    Acts(done).created({"host": "pve"})
    assert done == ["created"], "the other one has ended"


def test_a_start_has_the_time_that_its_hookscript_may_wait() -> None:
    """For another card's handover, as layers/handover.py says, beside what the start itself may take."""
    assert layer.INSIDE_SECONDS + layer.START_SECONDS < HANDOVER_SECONDS
