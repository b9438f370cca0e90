"""Killed at any call: the hookscript's program, the service, the steps in their units; a power cut, and a boot, at any of them; and a program of the host that
fails, or answers garbage, at any of its calls.

A call is a change of the disk, a value that is written into sysfs, or a program that is started. What is left there is kept, each state once, and the next
service, start or boot goes on from it. By default a sample of these states is tried, another one with another seed (tests/sampling.py); HOMELAB_EVERY_CUT=1
tries every one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from remote_scripts.notes import owed
from remote_scripts.tools.done import Done
from tests import sampling
from tests.agent import disk_kit, guest_kit
from tests.agent.handover_kit import CT950, GPU, SERVICE, START, STATE, STOP, VM103, Host
from tests.agent.handover_kit import host as host  # fixtures
from tests.agent.handover_kit import lent as lent
from tests.agent.kit import Killed, cuts, watched

SAMPLE = 8
ONLY = pytest.mark.parametrize("only", [False, True], ids=["one card of two", "the driver's only card"])


@dataclass(frozen=True)
class Left:
    """What is left where everything dies before one call. `how`: which; `is_unknown`: a container's shutdown was begun, and isn't noted."""

    how: str
    noted: str
    is_unknown: bool
    folder: Path

    def __str__(self) -> str:
        return f"HOMELAB_SEED={sampling.SEED} before {self.how}, noted {self.noted or 'nothing'}"


def sweep(host: Host, store: Path, *words: str) -> list[Left]:
    """Everything that a kill at any call leaves, each state once. In none of them has the card two users."""
    found: list[Left] = []
    numbers = itertools.count()
    last: object = None

    def watch(call: str, path: str) -> None:
        nonlocal last
        number, now = next(numbers), (host.everything(), host.tasks())
        if now != last:
            last = now
            left = Left(f"call {number}, {call} {path}", host.state(), host.is_unknown(), store / str(number))
            assert not host.two_users(), left
            host.copied(left.folder)
            found.append(left)

    with watched(watch):
        host.run(*words)
    return found


def settled(host: Host, left: Left, *, only: bool) -> None:
    """The host goes on by itself, and has the card, with everything as at first; a second time it does nothing. A container stays off whose shutdown was
    begun and isn't noted: its owner may have wanted it."""
    is_unknown = host.is_unknown()
    host.go_on()
    assert not host.two_users() and host.state() == "", f"{left}: {host.state()}\n{host.story()}"
    assert host.owed() == ({950: owed.UNKNOWN} if is_unknown else {}), left
    if is_unknown:
        assert host.read(CT950) == "stopped", left
        host.write(CT950, "running")  # by its owner, who was told
        host.alone()
        assert not host.owed(), left
    assert host.at_home(only=only), f"{left}\n{host.story()}"
    before = host.everything()
    host.go_on()
    assert host.everything() == before, left


@ONLY
def test_a_start_that_is_killed_anywhere_is_undone_or_begun_again(host: Host, tmp_path: Path, only: bool) -> None:
    with host.vm_locked():
        found = sweep(host, tmp_path / "start", *START)
    assert host.with_the_vm() and len(found) > 20
    assert {left.noted for left in found} >= {"", "DRAINING", "DETACHED", "VM"}
    unknown = [left for left in found if left.is_unknown]
    assert unknown and all(".owed." in left.how for left in unknown), "from a shutdown's request to its note"
    each = [(left, then) for left in found for then in ("service", "start")]
    for left, then in [(unknown[-1], "service"), *sampling.sample(each, SAMPLE, f"start {only}")]:
        host.back(left.folder)
        if then == "start":
            with host.vm_locked():
                host.run(*START)
            assert host.with_the_vm(), left
        settled(host, left, only=only)


@ONLY
def test_a_way_back_that_is_killed_anywhere_is_finished_by_the_service(host: Host, tmp_path: Path, only: bool) -> None:
    host.run(*START)
    with host.vm_locked():
        found = sweep(host, tmp_path / "hook", *STOP)
    assert {left.noted for left in found} == {"VM", "RETURNING"}
    service = sweep(host, tmp_path / "service", *SERVICE)
    assert host.at_home(only=only) and host.state() == "" and len(service) > 15
    for left in sampling.sample([*found, *service], SAMPLE, f"back {only}"):
        host.back(left.folder)
        settled(host, left, only=only)
        assert host.state() == "", left


def test_a_service_that_is_killed_while_it_undoes_a_start_is_finished_by_the_next(host: Host, tmp_path: Path) -> None:
    found = sweep(host, tmp_path / "start", *START)
    for noted in ("DRAINING", "DETACHED"):
        # As far as it had come in that state.
        host.back([left for left in found if left.noted == noted][-1].folder)
        undone = sweep(host, tmp_path / f"service {noted}", *SERVICE)
        for left in sampling.sample(undone, SAMPLE // 2, f"undone {noted}"):
            host.back(left.folder)
            settled(host, left, only=False)


def test_a_service_that_is_killed_while_the_vm_runs_changes_nothing(lent: Host, tmp_path: Path) -> None:
    lent.write(VM103, "running")
    assert len(sweep(lent, tmp_path / "service", *SERVICE)) == 1 and lent.with_the_vm()


@ONLY
def test_a_step_that_is_killed_in_its_unit_leaves_the_card_whole(host: Host, only: bool) -> None:
    real = host.programs["systemd-run"]
    at = 0

    def systemd_run(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        """The unit dies at one of its writes."""

        def watch(call: str, _path: str) -> None:
            nonlocal at
            at -= call == "write"
            if at == 0 and call == "write":
                raise Killed

        try:
            with watched(watch):
                return real(words, stdin)
        except Killed:
            return 137

    host.programs["systemd-run"] = systemd_run

    def writes(*words: str) -> int:
        """In the units of a run where none dies."""
        nonlocal at
        at = -1
        host.run(*words)
        return -1 - at

    # Two functions are claimed, unbound (the driver's only card by its module), and bound.
    there, back = writes(*START), writes(*SERVICE)
    assert there == (5 if only else 6)
    for number in range(1, there + 1):
        at = number
        host.call(*START)
        assert at <= 0, "its units had come to their end"
        assert not host.two_users() and (host.with_the_vm() or host.at_home(only=only)), number
        at = 0
        host.run(*SERVICE)
        assert host.at_home(only=only), number
    for number in range(1, back + 1):
        host.run(*START)
        at = number
        host.run(*SERVICE)
        assert at <= 0, "its units had come to their end"
        host.run(*SERVICE)
        assert host.at_home(only=only) and host.state() == "", f"{number} {host.story()}"


@pytest.mark.parametrize("way", ["start", "stop"])
def test_a_power_cut_at_any_call_ends_with_the_boot(host: Host, tmp_path: Path, way: str) -> None:
    (host.root / "var/lib/homelab").mkdir(parents=True)
    host.copied(tmp_path / "first")
    found = cuts(host, lambda _: host.run(*START))
    if way == "stop":
        found = cuts(host, lambda _: (host.call(*STOP), host.call(*SERVICE)))
    lasting = {repr(cut.lasting): cut.lasting for cut in found if cut.how.startswith("power")}
    assert len(lasting) > 3
    for number, files in enumerate(sampling.sample([*lasting.values()], SAMPLE, f"power {way}")):
        host.back(tmp_path / "first")
        disk_kit.restore(host.root, files)
        host.write("/proc/sys/kernel/random/boot_id", "next\n")
        host.write(CT950, "running" if number % 2 else "stopped")  # by its option onboot
        log = (
            host.read(f"{guest_kit.TASKS}/index") if host.exists(f"{guest_kit.TASKS}/index") else ""
        )  # Proxmox VE doesn't flush it
        ours = [any(upid in log for upid in debt.ours) for debt in owed.noted(host.system())]
        runs = bool(number % 2) or ours == [True]
        host.go_on()
        assert host.state() == "" and (host.read(CT950) == "running") is runs
        assert host.owed() == ({950: owed.UNKNOWN} if not runs and ours else {})
        with host.vm_locked():
            host.run(*START)
        assert host.with_the_vm(), "a VM that starts at this boot"
        host.run(*SERVICE)
        assert (host.read(CT950) == "running") is runs and host.state() == ""
    assert not host.exists(STATE)


#: What the call that is meant does.
FAULTS = {"fails": Done(1, b""), "says nothing": Done(0, b""), "garbage": Done(0, b"status: 7\n\x01=%\n[x\n")}
PROGRAMS = ("nvidia-smi", "pct", "qm", "pvedaemon", "systemctl", "systemd-run", "modprobe", "rmmod")


@ONLY
@pytest.mark.parametrize("way", ["start", "service"])
def test_a_command_that_goes_wrong_loses_nobody_anything(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: bool, way: str
) -> None:
    monkeypatch.setattr("remote_scripts.tools.state._TRY_SECONDS", 0.0)
    real = {name: host.programs[name] for name in PROGRAMS}
    numbers = dict.fromkeys(PROGRAMS, 0)
    meant: tuple[str, int, str] = ("", 0, "")

    def counted(name: str, words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        numbers[name] += 1
        if meant[:2] == (name, numbers[name]):
            # What it says nothing or garbage of, it does.
            if meant[2] != "fails":
                real[name](words, stdin)
            return FAULTS[meant[2]]
        return real[name](words, stdin)

    for name in PROGRAMS:
        host.programs[name] = lambda words, stdin, name=name: counted(name, words, stdin)  # type: ignore[misc]
    host.copied(tmp_path / "before")
    with host.vm_locked():
        host.run(*START)
    if way == "service":
        host.copied(tmp_path / "before")
        numbers.update(dict.fromkeys(PROGRAMS, 0))
        host.run(*SERVICE)
    every = [(name, number + 1, fault) for name in PROGRAMS for number in range(numbers[name]) for fault in FAULTS]
    assert len(every) > 30
    wrong: list[object] = []
    for moment in sampling.sample(every, SAMPLE, f"faults {way} {only}"):
        host.back(tmp_path / "before")
        numbers.update(dict.fromkeys(PROGRAMS, 0))
        meant = moment
        if way == "start":
            with host.vm_locked():
                said = host.call(*START)
            if not said and not host.with_the_vm():
                wrong.append((moment, "the VM starts without its card", said))
        else:
            said = host.call(*SERVICE)
        if host.two_users():
            wrong.append((moment, "it has two users", said))
        meant = ("", 0, "")
        for _ in range(2):
            host.go_on()
        if not host.at_home(only=only) or host.state() not in ("", "HELD") or host.owed():
            wrong.append((moment, f"{host.state()}: not everybody has everything again", host.story()))
    assert wrong == [], f"HOMELAB_SEED={sampling.SEED}"


TIMES = 200 if sampling.EVERY else 3


@ONLY
def test_after_many_turns_the_host_is_what_it_was(host: Host, only: bool) -> None:
    host.run(*SERVICE)
    # Of earlier turns, as much as is kept: it is cut in the first of these.
    host.write("/var/lib/homelab/handover/log", "2026-01-01 00:00:00 big: an old line\n" * 3600)
    first = None
    for number in range(TIMES):
        with host.vm_locked():
            host.run(*START)
            assert host.with_the_vm(), number
            host.run(*STOP)
        host.run(*SERVICE)
        assert host.at_home(only=only), number
        seen = host.everything(), sorted(path.name for path in (host.root / "run").rglob("*"))
        first = first or seen
        assert seen == first, number
        assert len(host.story()) <= 131072, "the story is no log without end"
    assert "an old line" in host.story() or TIMES > 3


def test_a_card_that_somebody_has_bound_otherwise_is_looked_at_again(lent: Host) -> None:
    """By hand, while the VM had it: the way back goes on from what there is."""
    lent.bind(GPU, "nvidia")
    (lent.root / "kept" / GPU).rename(lent.root / "proc/driver/nvidia/gpus" / GPU)
    lent.run(*SERVICE)
    assert lent.at_home(), lent.story()
