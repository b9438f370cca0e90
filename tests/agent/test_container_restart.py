"""The layer container_restart: what a container runs with, what its configuration says, and that it runs again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.shared import container_change, container_power, ha
from remote_scripts.shared.container_notes import Notes, Ran
from remote_scripts.tools.run import Done
from tests import sampling
from tests.agent.container_kit import BASE, BOOT, NET, NVIDIA, RECORD, SECOND, Containers, again, box
from tests.agent.kit import Refused, cuts, left_by, watched

__all__ = ["box"]

STOCK = BASE + NET
KNOWN = "AA:00:00:00:00:01"
#: Of the moments at which a run is cut short, by default.
SAMPLE = 24


@pytest.fixture(autouse=True)
def runs(box: Containers) -> None:
    box.nvidia(NVIDIA, RECORD, SECOND)
    box.conf, box.state = STOCK, "running"


def gpus(box: Containers, minors: tuple[int, ...] = (0,), verb: str = "apply") -> None:
    box.ask(verb, method="mount-entry", minors=minors)


def restart(box: Containers, minors: tuple[int, ...] = (0,), **more: Any) -> Any:
    return box.ask("apply", "restart", method="mount-entry", minors=minors, **more)


@pytest.fixture
def left_off(box: Containers) -> Containers:
    """It didn't start after its restart, and could by now."""
    gpus(box)
    box.starts_not = True
    with pytest.raises(Refused, match="it is off now"):
        restart(box)
    box.starts_not = False
    return box


def test_it_is_restarted_once_for_a_change(box: Containers) -> None:
    gpus(box)
    assert "restart" in box.noted()
    assert restart(box) == {"state": "running", "restarted": True}
    assert [call[0] for call in box.calls] == ["shutdown", "start"]
    assert "ran" not in box.noted(), "one that is switched off from inside after that stays off"
    assert restart(box) == {"state": "running", "restarted": False}
    assert [call[0] for call in box.calls] == ["shutdown", "start"]
    assert box.calls[0] == ["shutdown", "300", "--timeout", "5"]


@pytest.mark.parametrize(
    ("power", "up", "state"),
    [("keep", False, "stopped"), ("running", False, "running"), ("stopped", True, "stopped")],
)
def test_its_power_is_as_it_is_wanted(box: Containers, power: str, up: bool, state: str) -> None:
    box.state = "running" if up else "stopped"
    gpus(box)
    assert restart(box, power=power)["state"] == state == box.state


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_container_that_didnt_start_after_its_restart_is_started_by_the_next_run(box: Containers, verb: str) -> None:
    gpus(box)
    if verb == "revert":
        restart(box)
    box.starts_not = True
    with pytest.raises(Refused, match="it is off now"):
        gpus(box, verb="revert") if verb == "revert" else restart(box)
    assert box.state == "stopped"
    box.starts_not = False
    gpus(box, verb=verb)
    if verb == "revert":
        assert box.state == "running" and box.conf == STOCK and not box.noted()
        return
    assert restart(box) == {"state": "running", "restarted": True}
    # What somebody switches off after that stays off.
    box.pct(["shutdown", "300"], b"")
    gpus(box)
    assert restart(box)["state"] == "stopped"


@pytest.mark.parametrize("gone", ["started since", "another boot", "another one", "long ago"])
def test_one_that_a_run_has_left_off_is_started_only_where_nobody_can_have_switched_it_off(
    left_off: Containers, gone: str
) -> None:
    ran = Notes(left_off.host.system(), 300).read().ran
    assert ran and (ran.boot, ran.off, ran.known) == (BOOT, True, KNOWN)
    if gone == "started since":  # and no run in between; a start of the note's own second isn't a later one
        left_off.note(ran=replace(ran, at=ran.at - 5))
        left_off.pct(["start", "300"], b"")
        left_off.pct(["shutdown", "300"], b"")
    else:
        others = {
            "another boot": replace(ran, boot="another"),
            "another one": replace(ran, known="AA:AA:AA:00:00:00"),
            "long ago": replace(ran, at=ran.at - 3600),
        }
        left_off.note(ran=others[gone])
    assert restart(left_off) == {"state": "stopped", "restarted": False}
    assert "ran" not in left_off.noted()


def test_one_that_somebody_has_started_meanwhile_runs_on(left_off: Containers) -> None:
    left_off.pct(["start", "300"], b"")
    assert restart(left_off) == {"state": "running", "restarted": False} and "ran" not in left_off.noted()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_container_that_got_the_id_of_another_one_meanwhile_isnt_started(box: Containers, verb: str) -> None:
    """While this very run waited for its shutdown."""
    gpus(box)
    if verb == "revert":
        restart(box)

    def another() -> None:
        box.conf = box.conf.replace(KNOWN, "AA:00:00:00:00:99")

    box.calls.clear()
    box.after["shutdown"] = another
    if verb == "revert":
        gpus(box, verb="revert")
    else:
        assert restart(box) == {"state": "stopped", "restarted": False}
    assert [call[0] for call in box.calls] == ["shutdown"] and box.state == "stopped"


def test_a_container_that_got_the_id_of_one_that_waits_for_a_restart_runs_on(box: Containers) -> None:
    gpus(box)
    box.conf = STOCK.replace(KNOWN, "AA:00:00:00:00:99")
    gpus(box, verb="revert")
    assert not box.calls and not box.noted()


def test_a_container_that_is_started_while_its_configuration_is_written_is_restarted(box: Containers) -> None:
    """It may have what was there before."""
    box.state = "stopped"
    box.after["set"] = lambda: setattr(box, "state", "running")
    box.apply(minors=(0,))
    assert box.ask("apply", "restart", minors=(0,)) == {"state": "running", "restarted": True}


@pytest.mark.parametrize("whose", ["the run's", "somebody's", "nobody's"])
def test_a_run_that_was_killed_around_its_shutdown_starts_it_again_only_if_that_was_its_own(
    box: Containers, whose: str
) -> None:
    gpus(box)
    at = int(time.time()) - (0 if whose == "the run's" else 120)
    box.note(ran=Ran(int(at), BOOT, False, KNOWN))
    box.pct(["shutdown", "300"], b"")
    if whose == "nobody's":  # such as `poweroff` inside
        box.host.write("/var/log/pve/tasks/index", "")
    assert restart(box)["restarted"] is (whose == "the run's") is (box.state == "running")


def test_one_that_doesnt_go_off_has_its_configuration_as_before(box: Containers) -> None:
    gpus(box)
    box.is_deaf = True
    with pytest.raises(Refused, match="it still runs: timeout\nwhy: .*its configuration is as it was before"):
        restart(box)
    assert box.conf == STOCK and box.state == "running"
    gpus(box)
    box.is_deaf = False
    assert restart(box) == {"state": "running", "restarted": True} and "ran" not in box.noted()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_one_that_goes_off_later_than_it_was_waited_for_is_named_by_the_next_run(
    box: Containers, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus(box)
    if verb == "revert":
        restart(box)
    box.is_deaf = True
    for _ in range(2):
        with pytest.raises(Refused, match="it was asked to go off, and may do so later"):
            gpus(box, verb="revert") if verb == "revert" else restart(box)
        gpus(box, verb=verb) if verb == "apply" else None
    box.state = "stopped"
    gpus(box, verb="revert") if verb == "revert" else restart(box)
    assert "note: container 300 ran when an earlier run shut it down" in capsys.readouterr().err
    assert box.state == "stopped" and "ran" not in box.noted()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_one_whose_lock_refuses_its_shutdown_was_not_asked(box: Containers, verb: str) -> None:
    """A backup that began after its configuration was written."""

    def backup(call: str, path: str) -> None:
        is_note = call == "rename" and path == f"{box.root}{RECORD}"
        if is_note and '"ran": {' in Path(path).with_name(".300.homelab-tmp").read_text() and "lock" not in box.conf:
            box.conf += "lock: backup\n"

    gpus(box)
    if verb == "revert":
        restart(box)
    with watched(backup), pytest.raises(Refused) as refused:
        gpus(box, verb="revert") if verb == "revert" else restart(box)
    assert "so that it was not asked to go off; its configuration" in str(refused.value)
    assert "it still runs: CT is locked (backup)" in str(refused.value)
    assert "a lock that was left behind: `pct unlock 300`" in str(refused.value)
    box.conf = box.conf.replace("lock: backup\n", "")
    gpus(box, verb="revert") if verb == "revert" else gpus(box)
    assert verb == "revert" or restart(box) == {"state": "running", "restarted": True}
    assert "ran" not in box.noted() and box.state == "running"


def test_one_that_doesnt_go_off_is_stopped_where_the_settings_say_so(box: Containers) -> None:
    gpus(box)
    box.is_deaf = True
    assert restart(box, otherwise="stop") == {"state": "running", "restarted": True}
    assert [call[0] for call in box.calls] == ["shutdown", "stop", "start"]


def test_one_that_doesnt_go_off_to_lose_its_cards_is_said(box: Containers) -> None:
    gpus(box)
    restart(box)
    box.is_deaf = True
    with pytest.raises(Refused, match="off within 5 s(.|\n)*its configuration has no card any more(.|\n)*pct stop 300"):
        gpus(box, verb="revert")
    box.is_deaf = False
    gpus(box, verb="revert")
    assert box.conf == STOCK and box.state == "running" and not box.noted()


@pytest.mark.parametrize("more", [(0,), (0, 1)], ids=["the same cards", "another card"])
def test_what_somebody_has_changed_since_is_never_put_back(box: Containers, more: tuple[int, ...]) -> None:
    gpus(box)
    box.conf = box.conf.replace("memory: ", "memory: 1") + "\n[precious]\narch: amd64\nsnaptime: 1700000000\n"
    theirs = {*box.conf.splitlines()}
    gpus(box, more)
    box.is_deaf = True
    with pytest.raises(Refused, match="its configuration stays as it was written"):
        restart(box, more)
    assert theirs <= {*box.conf.splitlines()}


def test_what_somebody_changes_at_the_last_moment_is_never_put_back(
    box: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(box)
    box.is_deaf = True

    @contextmanager
    def meanwhile(*_: object) -> Iterator[bool]:
        box.conf = box.conf.replace("memory: ", "memory: 1")
        yield True

    monkeypatch.setattr(container_change, "file_lock", meanwhile)
    with pytest.raises(Refused, match="its configuration stays as it was written"):
        restart(box)
    assert "memory: 1" in box.conf


def test_what_was_written_is_on_the_disk_before_that_is_noted(box: Containers) -> None:
    seen: list[tuple[bool, bool]] = []
    box.host.programs["sync"] = lambda *_: seen.append((box.conf != STOCK, "after" in box.noted()))
    gpus(box)
    assert (True, False) in seen


def test_whether_it_runs_isnt_guessed(box: Containers) -> None:
    box.host.programs["pct"] = lambda _arguments, _stdin: Done(124, b"")
    with pytest.raises(Refused, match="whether container 300 runs"):
        gpus(box)
    assert box.conf == STOCK


# -- under HA: pct asks the manager and ends at once, and the container follows ------------------------------------
class Managed:
    """The manager switches it three looks later."""

    def __init__(self, box: Containers) -> None:
        self.box, self.looks, self.wanted = box, 0, ""
        box.host.write("/etc/pve/ha/resources.cfg", "ct: 300\n\tstate started\n\nvm: 103\n")
        box.host.programs["pct"] = self.pct

    def pct(self, arguments: Sequence[str], stdin: bytes) -> Any:
        verb = arguments[0]
        if verb in ("shutdown", "start", "stop"):
            self.box.calls.append([*arguments])
            self.looks = 0
            self.wanted = "" if verb == "shutdown" and self.box.is_deaf else "running" if verb == "start" else "stopped"
            return 0
        self.looks += verb == "status"
        if self.looks > 3 and self.wanted:
            self.box.state = self.wanted
        return self.box.pct(arguments, stdin)


@pytest.fixture
def managed(box: Containers, monkeypatch: pytest.MonkeyPatch) -> Managed:
    monkeypatch.setattr(container_power, "HA_SECONDS", 5.0)
    return Managed(box)


def test_a_container_under_ha_is_waited_for(box: Containers, managed: Managed) -> None:
    gpus(box)
    assert restart(box) == {"state": "running", "restarted": True}
    assert [call[0] for call in box.calls] == ["shutdown", "start"]


def test_one_that_doesnt_hear_is_stopped_by_ha_too(
    box: Containers, managed: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(box)
    box.is_deaf = True
    monkeypatch.setattr(container_power, "HA_SECONDS", 0.2)
    assert restart(box, otherwise="stop", timeout=0) == {"state": "running", "restarted": True}
    assert [call[0] for call in box.calls] == ["shutdown", "stop", "start"]


def test_one_that_ha_doesnt_start_is_said(box: Containers, managed: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(box)
    monkeypatch.setattr(container_power, "HA_SECONDS", 0.2)
    box.host.programs["pct"] = lambda words, stdin: 0 if words[0] == "start" else managed.pct(words, stdin)
    with pytest.raises(Refused, match="container 300 started by HA\nfound:  it is off after 0.2 s"):
        restart(box)
    assert "ran" in box.noted()


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_one_that_ha_has_frozen_is_asked_nothing(box: Containers, managed: Managed, state: str) -> None:
    box.state = state
    gpus(box)
    box.host.programs["ha-manager"] = lambda *_: "quorum OK\nservice ct:300 (pve, freeze)\n"
    with pytest.raises(Refused, match="HA has frozen it(.|\n)*`ha-manager crm-command arm-ha`"):
        restart(box, power="running")
    assert box.calls == [] and box.state == state
    box.host.programs["ha-manager"] = lambda *_: "quorum OK\nservice ct:300 (pve, started)\n"
    assert restart(box, power="running")["state"] == "running"


@pytest.mark.parametrize(
    ("services", "under"),
    [
        ("ct: 300\n\tstate started\n", True),
        ("ct:300 \n", True),
        ("ct: 3000\n", False),
        ("ct: 30\n", False),
        ("vm: 300\n", False),
        ("", False),
        ("ct: 300\n\tstate ignored\n\nct: 302\n\tstate started\n", False),
    ],
)
def test_who_is_under_ha(box: Containers, services: str, under: bool) -> None:
    box.host.write("/etc/pve/ha/resources.cfg", services)
    assert ha.may_manage(box.host.system(), "ct:300") is under


@pytest.mark.parametrize(
    ("manager", "under"),
    [
        ('{"disarm": {"mode": "ignore", "state": "disarming"}}', False),
        ('{"disarm": {"mode": "freeze", "state": "disarmed"}}', True),
        ('{"service_status": {}}', True),
        ("[]", True),
        ("{", True),
    ],
)
def test_a_ha_that_is_disarmed_manages_nobody_if_it_ignores_all(box: Containers, manager: str, under: bool) -> None:
    box.host.write("/etc/pve/ha/resources.cfg", "ct: 300\n\tstate started\n")
    box.host.write("/etc/pve/ha/manager_status", manager)
    assert ha.may_manage(box.host.system(), "ct:300") is under


def test_where_that_cant_be_read_it_may_be(box: Containers) -> None:
    (box.root / "etc/pve/ha/resources.cfg").mkdir(parents=True)
    assert ha.may_manage(box.host.system(), "ct:300")


def test_a_restart_that_is_cut_short_anywhere_is_made_good_by_the_next(box: Containers, tmp_path: Path) -> None:
    gpus(box)
    restart(box)
    gpus(box, (1,))
    found = cuts(box.host, lambda _: restart(box, (1,)))
    given = box.conf
    assert len(found) > 10
    for number, cut in enumerate(sampling.sample(found, SAMPLE, "restart")):
        left = again(box, left_by(cut, box.host, tmp_path / f"{number}"))
        if "power" in cut.how:
            left.host.write("/proc/sys/kernel/random/boot_id", "the next\n")
            left.state = "stopped"
        gpus(left, (1,))
        restart(left, (1,))
        # Who was switched on by nobody after a power cut is the host's to start.
        assert left.state == ("stopped" if "power" in cut.how else "running"), cut.how
        assert left.conf == given and not {"ran", "restart", "before"} & {*left.noted()}, cut.how
        gpus(left, (1,), "revert")
        assert left.conf == STOCK and not left.noted(), cut.how
