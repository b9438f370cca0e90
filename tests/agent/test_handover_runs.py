"""A handover, and a run of `pulumi up` that begins meanwhile (layers/run_guard.py), or another start: each comes to its end before the other one looks."""

from __future__ import annotations

import fcntl
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from remote_scripts.layers import handover as handover_layer
from remote_scripts.notes import handover
from remote_scripts.notes.card import Card
from remote_scripts.tools.done import Done
from remote_scripts.tools.system import System
from tests.agent.handover_kit import BIG, CT950, SERVICE, START, VM, Host, noted
from tests.agent.handover_kit import host as host  # fixtures
from tests.agent.handover_kit import lent as lent
from tests.agent.run_guard_kit import HELD, answer, guarded, let_start
from tests.waiting import PATIENCE, wait_until


def holding(host: Host, who: str, handing: float = 45) -> AbstractContextManager[subprocess.Popen[str]]:
    return guarded(host, who, handing=handing, ending=0.1)


class Begun(threading.Thread):
    """A call of the program that stands before a request to Proxmox VE until it may go on. `said`: what it refuses."""

    def __init__(self, host: Host, verb: str, *words: str) -> None:
        super().__init__(daemon=True)
        self.stands, self.gate = threading.Event(), threading.Event()
        self.said: str | None = None
        self._host, self._words = host, words
        real = host.programs["pvedaemon"]

        def pvedaemon(words: Sequence[str], request: bytes) -> Done | int | str | None:
            if f"/status/{verb} ".encode() in request:
                self.stands.set()
                assert self.gate.wait(PATIENCE)
            return real(words, request)

        host.programs["pvedaemon"] = pvedaemon

    def run(self) -> None:
        self.said = self._host.call(*self._words)

    def ended(self) -> str | None:
        self.gate.set()
        self.join(PATIENCE)
        return self.said


@contextmanager
def begun(host: Host, verb: str, *words: str) -> Iterator[Begun]:
    thread = Begun(host, verb, *words)
    thread.start()
    assert thread.stands.wait(PATIENCE)
    try:
        yield thread
    finally:
        thread.ended()


def is_noted(host: Host, who: str) -> Callable[[], bool]:
    path = host.root / "run/homelab/up"
    return lambda: path.exists() and path.read_text() == f"{who}\n"


def test_a_run_that_was_cut_off_has_let_start_what_it_had_when_it_comes_back(host: Host) -> None:
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        host.run(*START)
        assert host.with_the_vm()
    with holding(host, "anna") as up:
        assert answer(up) == HELD, "its own VM has the card: that is what it wanted"
    with holding(host, "ben") as up:
        said, _ = up.communicate()
        assert up.returncode == 1 and re.search("gpus.big .*VM 103", said)
    host.run(*SERVICE)
    with holding(host, "ben") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
        assert "is at work: ben" in host.call(*START), "whoever says so later than its own end"
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        assert "ben" not in host.read("/run/homelab/passes")


def test_a_run_that_was_cut_off_comes_back_while_its_own_vm_takes_the_card(host: Host) -> None:
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
        start = Begun(host, "shutdown", *START)
        start.start()
        assert start.stands.wait(PATIENCE)
    for who, is_let in (("ben", False), ("anna", True)):
        with holding(host, who, handing=0.2) as up:
            assert (answer(up) == HELD) is is_let, who
    assert start.ended() == "" and host.with_the_vm()


def test_a_run_that_begins_waits_for_a_card_that_comes_back(lent: Host) -> None:
    with begun(lent, "start", *SERVICE) as service, holding(lent, "anna") as up:
        wait_until(is_noted(lent, "anna"))
        service.gate.set()
        assert answer(up) == HELD
        assert service.ended() == ""
    assert lent.at_home() and lent.state() == ""


def test_a_run_that_begins_waits_for_a_handover_and_is_then_refused(host: Host) -> None:
    """A run that looked before the card is noted as away would find out between two of its steps."""
    with begun(host, "shutdown", *START) as start, holding(host, "anna") as up:
        wait_until(is_noted(host, "anna"))
        time.sleep(1)  # longer than a step of an earlier run is waited for
        start.gate.set()
        said, _ = up.communicate()
        assert up.returncode == 1 and re.search("gpus.big .*VM 103", said)
        assert start.ended() == ""
    assert host.with_the_vm()


def test_a_run_that_comes_back_has_its_passes_while_it_waits_for_a_handover(host: Host) -> None:
    (host.root / "run/homelab").mkdir(mode=0o700)
    host.write("/run/homelab/passes", "103 anna\n105 ben\n")
    host.write("/run/homelab/handing", "")
    with (host.root / "run/homelab/handing").open() as handing, holding(host, "anna") as up:
        fcntl.flock(handing, fcntl.LOCK_EX)
        wait_until(is_noted(host, "anna"))
        assert handover.run_at_work(host.system(), "103") is None
        with (host.root / "run/homelab/passes").open("a") as passes:
            passes.write("104 anna\n")
        host.write("/var/lib/homelab/handover/big.state", noted("VM", vm="104"))
        fcntl.flock(handing, fcntl.LOCK_UN)
        assert answer(up) == HELD, "the card of a VM that it let through meanwhile is where it is to be"
    assert host.read("/run/homelab/passes") == "103 anna\n105 ben\n104 anna\n"


def test_of_two_starts_at_the_same_time_one_gets_it(host: Host) -> None:
    host.cards(Card(name="big", functions=BIG.functions, vms=(103, 104)))
    host.write("/etc/pve/qemu-server/104.conf", host.read(VM))
    for vmid in ("103", "104"):
        host.write(f"/state/qm/{vmid}", "running")  # what is being started is no more than that
    with begun(host, "shutdown", *START) as first:
        said: list[str] = []
        second = threading.Thread(target=lambda: said.append(host.call("hook", "104", "pre-start")))
        second.start()
        first.gate.set()
        second.join(PATIENCE)
        assert first.ended() == ""
    assert len(said) == 1 and "VM 103" in said[0] and host.with_the_vm() and not host.two_users()


@contextmanager
def working_inside(host: Host, who: str) -> Iterator[None]:
    """A step that works in the container, whose run was cut off: the keeper of its program has the lock."""
    (host.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    host.write("/run/homelab/inside-950", f"{who}\n")
    host.write("/run/homelab/steps", "2026-12-01 10:00:00 container 950: apt-get install\n  Setting up libcuda1 ...\n")
    with (host.root / "run/homelab/inside-950").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_start_waits_for_work_inside_a_container_before_it_takes_the_host(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_TRY_SECONDS", "PROGRESS_SECONDS"):
        monkeypatch.setattr(f"remote_scripts.tools.state.{name}", 0.01)
    said, told = list[str](), [""]

    def waited() -> str:
        told[0] += capsys.readouterr().err
        return told[0]

    start = threading.Thread(target=lambda: said.append(host.call(*START)))
    with working_inside(host, "anna's up"):
        start.start()
        wait_until(lambda: "waits" in waited())
        assert host.read(CT950) == "running" and not host.system().work.is_locked("/run/homelab/lock")
    start.join(PATIENCE)
    assert said == [""] and host.with_the_vm()
    first = "VM 103 waits: homelab still works in container 950: a step of anna's up (Setting up libcuda1 ...): "
    assert waited().startswith(first)


def test_what_still_works_inside_a_container_refuses_the_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_scripts.tools.state._TRY_SECONDS", 0.01)
    monkeypatch.setattr(handover_layer, "INSIDE_SECONDS", 0.05)
    with working_inside(host, "anna's up"):
        assert_refused(host, host.call(*START))
    host.run(*START)
    assert host.with_the_vm()


def test_work_inside_a_container_that_began_during_the_wait_for_the_host_refuses_the_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_host = handover_layer._get_host_for_start
    with ExitStack() as during_the_start:

        def take_later(system: System, vmid: str) -> None:
            take_host(system, vmid)
            during_the_start.enter_context(working_inside(host, "anna's up"))

        monkeypatch.setattr(handover_layer, "_get_host_for_start", take_later)
        assert_refused(host, host.call(*START))


def assert_refused(host: Host, said: str) -> None:
    assert "homelab still works in container 950: a step of anna's up" in said and "nothing was changed" in said
    assert host.at_home() and "vzshutdown" not in host.tasks()
