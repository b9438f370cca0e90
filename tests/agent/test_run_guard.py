"""The layer run_guard: one run at a time on a host, for as long as its client's end of the connection is open and says something."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from remote_scripts.both.run_guard import Wanted
from remote_scripts.layers import run_guard
from remote_scripts.notes.handover import run_at_work
from remote_scripts.tools import passes
from remote_scripts.tools.client import Client
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.state import Work
from remote_scripts.tools.system import System
from tests.agent.kit import Host
from tests.agent.run_guard_kit import HELD, answer, guarded, let_start
from tests.waiting import PATIENCE, wait_until


def test_the_second_is_told_who_is_at_work_and_the_first_goes_on(host: Host) -> None:
    with guarded(host, "anna on desk, since 14:02") as first:
        assert answer(first) == HELD
        with guarded(host, "ben") as second:
            said, _ = second.communicate()
        assert second.returncode == 1
        assert "found:  another one is: anna on desk, since 14:02\n" in said and "this run changes nothing more" in said
        assert first.poll() is None


@pytest.mark.parametrize("end", ["its input ends", "it is told to end", "it is killed", "it hears nothing any more"])
def test_the_host_is_free_again_however_the_first_ends(host: Host, end: str) -> None:
    with guarded(host, "anna", silence=0.3 if end == "it hears nothing any more" else 60) as first:
        assert answer(first) == HELD and first.stdin is not None
        if end == "its input ends":
            first.stdin.close()
        elif end != "it hears nothing any more":
            first.send_signal(signal.SIGTERM if end == "it is told to end" else signal.SIGKILL)
        assert (first.wait(timeout=PATIENCE) == -signal.SIGKILL) is (end == "it is killed")
        assert end == "it is killed" or not host.read("/run/homelab/up"), "who was at work is noted still"
        with guarded(host, "ben") as second:
            assert answer(second) == HELD


def test_what_steps_note_is_the_clients_to_tell_and_goes_with_the_run(host: Host) -> None:
    """pulumi-command shows what a step says only while it runs."""
    with guarded(host, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        for line in "wrote a file", "note: it was edited by hand", "note: and möre":
            host.system().log.say(line)
        assert [answer(first), answer(first)] == ["note: it was edited by hand\n", "note: and möre\n"]
        first.stdin.close()
        first.wait(timeout=PATIENCE)
    assert not host.exists("/run/homelab/notes")
    host.system().log.say("note: nobody is at work")
    assert not host.exists("/run/homelab/notes")


def test_it_goes_on_for_as_long_as_it_hears_something(host: Host) -> None:
    with guarded(host, "anna", silence=2) as first:
        assert answer(first) == HELD and first.stdin is not None
        for _ in range(8):
            with pytest.raises(subprocess.TimeoutExpired):
                first.wait(timeout=0.4)
            first.stdin.write("\n")
            first.stdin.flush()


class Deaf(Client):
    """A client that hears the answer, and goes."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, text: str) -> None:
        self.told.append(text)

    def lines(self, silence: float, step: float) -> Iterator[str | None]:
        return iter(())


def test_a_full_run_keeps_nobody_from_holding_the_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs no byte of disk for, and a `destroy` may be what makes room."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Work, "write", full)
    client = Deaf()
    run_guard.hold(host.system(), Wanted(who="anna"), client)
    assert client.told == [HELD.rstrip("\n")]


def test_passes_are_the_runs_own(host: Host) -> None:
    let_start(host, "anna")
    let_start(host, "anna", 104)
    let_start(host, "ben", 105)
    for who, its_own in (("anna", ["103", "104"]), ("ben", ["105"])):
        run_guard.hold(host.system(), Wanted(who=who), Deaf())
        assert passes.of(host.system(), who) == its_own
        assert [vmid for vmid in ("103", "104", "105") if passes.has(host.system(), vmid, who)] == its_own


class Step(threading.Thread):
    """A step of whoever is at work, which has the lock and waits. `said`: why it has ended."""

    def __init__(self, host: Host, limit: float = 60) -> None:
        super().__init__(daemon=True)
        self._system = System(host.root, limit=limit)
        self._system.work.take_lock()
        self.said = ""
        self.start()

    def run(self) -> None:
        try:
            for _ in self._system.work.tries(PATIENCE, "waiting for the test"):
                pass
        except Failure as failure:
            self.said = failure.found
        finally:
            self._system.work.release()


@pytest.mark.parametrize("end", ["it is cancelled", "its client is gone", "it is killed"])
def test_what_a_run_has_begun_ends_where_it_waits_when_that_run_ends(host: Host, end: str) -> None:
    with guarded(host, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        begun = Step(host)
        if end == "it is cancelled":
            print("cancelled", file=first.stdin, flush=True)
        elif end == "its client is gone":
            first.stdin.close()
        else:
            first.kill()
            assert first.wait(PATIENCE) == -signal.SIGKILL
            with guarded(host, "ben") as second:  # until then nobody has noted that the first is gone
                second.communicate()
        begun.join(PATIENCE)
    assert begun.said == "it has ended, or was cancelled"
    with guarded(host, "ben") as second:
        assert answer(second) == HELD


def test_no_run_begins_beside_a_step_of_an_earlier_one(host: Host) -> None:
    with guarded(host, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        system = System(host.root, limit=60)
        system.work.take_lock()
        first.stdin.close()
        first.wait(PATIENCE)
    with guarded(host, "ben") as second:
        said, _ = second.communicate()
    assert "found:  a step of an earlier run is still at work, of anna (lock: " in said and second.returncode == 1
    with guarded(host, "anna") as same:
        assert answer(same) == HELD, "its own step"
    system.work.release()


def test_a_run_that_holds_the_host_after_its_first_steps_waits_for_none_of_them(host: Host) -> None:
    system = System(host.root, limit=60)
    system.work.take_lock()
    with guarded(host, "anna") as first:
        assert answer(first) == HELD
    system.work.release()


def test_no_run_begins_beside_a_step_in_a_container(host: Host) -> None:
    """Whose lock is /run/homelab/inside-ID (tests/agent/test_tools_container.py)."""
    with guarded(host, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        with host.system().work.holding("inside-901", 1):
            host.system().work.write("inside-901", "anna\n")
            first.stdin.close()
            first.wait(PATIENCE)
            with guarded(host, "ben") as second:
                assert "a step of an earlier run is still at work, of anna" in second.communicate()[0]
    with guarded(host, "ben") as second:
        assert answer(second) == HELD


def test_no_run_begins_beside_a_guests_change_of_an_earlier_one_which_may_still_start_its_vm(host: Host) -> None:
    """A VM whose hookscript asks who is at work: the run that waits isn't named by then."""
    with guarded(host, "anna") as first:
        assert answer(first) == HELD and first.stdin is not None
        with host.system().work.holding("guest-103", 1):
            host.system().work.write("guest-103", "anna\n")  # guests/change.py
            first.stdin.close()
            first.wait(PATIENCE)
            with guarded(host, "ben", ending=3) as second:
                wait_until(host.working_system().work.is_held)
                assert run_at_work(host.working_system(), "103") is None
                said, _ = second.communicate()
    assert "a step of an earlier run is still at work, of anna (guest-103: " in said and second.returncode == 1
    with guarded(host, "ben") as third:
        assert answer(third) == HELD


def test_a_step_that_no_run_has_begun_is_ended_by_its_limit_alone(host: Host) -> None:
    begun = Step(host, limit=8)
    with guarded(host, "ben") as other:
        assert answer(other) == HELD
    begun.join(PATIENCE)
    assert begun.said == "it is still waiting for the test"


def test_another_one_is_named_at_once_in_the_log(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """The client tells of it where the connection is lost before the answer."""
    with guarded(host, "anna") as first:
        assert answer(first) == HELD
        with guarded(host, "ben") as second:
            second.communicate()
    assert "another run is at work: anna\n" in capfd.readouterr().err
