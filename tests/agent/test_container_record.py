"""The layer container_record: what is noted of a container goes with it to another node."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers.container_record import Wanted
from remote_scripts.shared import time_limit
from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.container_notes import Before, Given, Noted, Notes, Ran, RecordedNode
from tests.agent.kit import Host, Refused, cuts, left_by, watched

PLACE = "/var/lib/homelab/containers/300"
A, B = "AA:00:00:00:00:01", "AA:00:00:00:00:02"
CONF = f"hostname: box\nnet0: name=eth0,hwaddr={A.lower()},ip=dhcp\nnet1: hwaddr={B}\n\n[old]\nnet2: hwaddr=FF:FF\n"
LINE, MINE = "dev /dev/nvidia0,mode=0666", "lxc.mount.entry: /dev/x dev/x none bind"
GIVEN = Given(
    (LINE,), (RecordedNode("/dev/nvidia0", "195:0", "0000:01:00.0", "nvidia", "mode=0666"),), Cards(minors=(0,))
)
NOTED = Noted(given=GIVEN, guest="ai", revision=3)
BOOT = "c0ffee"


def noted(host: Host, noted: Noted) -> None:
    Notes(host.system(), 300).write(noted)


def found(host: Host) -> Noted:
    return Notes(host.system(), 300).read()


def ask(host: Host, verb: str, record: Any = None) -> Any:
    return host.ask(verb, "container_record", Wanted(ctid=300, record=record))["record"]


@pytest.fixture(autouse=True)
def node(host: Host) -> None:
    host.write("/proc/sys/kernel/random/boot_id", f"{BOOT}\n")
    host.write("/etc/pve/lxc/300.conf", CONF)


@pytest.fixture
def other(tmp_path: Path) -> Host:
    other = Host(tmp_path / "other")
    other.write("/proc/sys/kernel/random/boot_id", "of-the-other\n")
    return other


def test_what_a_run_that_was_killed_has_noted_is_put_on_the_disk_by_the_next(host: Host) -> None:
    notes, calls = Notes(host.system(), 300), list[str]()
    notes.change(mounted=True)
    with watched(lambda call, path: calls.append(f"{call} {path.removeprefix(str(host.root))}")):
        notes.change(mounted=True)
    assert calls[-2:] == [f"rename {PLACE}", f"flush {PLACE.rpartition('/')[0]}"]


def test_bytes_of_a_configuration_that_are_no_text_are_kept(host: Host) -> None:
    conf = b"description: \xff\n".decode("utf-8", "surrogateescape")
    noted(host, replace(NOTED, before=Before(conf, Given())))
    before = found(host).before
    assert before and before.conf.encode("utf-8", "surrogateescape") == b"description: \xff\n"


def test_what_is_noted_goes_to_another_node_and_is_forgotten_here(host: Host, other: Host) -> None:
    empty, stock = host.lasting(), other.lasting()
    noted(host, replace(NOTED, restart="", before=Before("hostname: box\n", Given()), after="x", mounted=True))
    before = host.tree()
    record = ask(host, "read")
    assert host.tree() == before
    for _ in "once", "after a run that was killed":
        assert ask(other, "apply", record) is None
    assert found(other) == replace(NOTED, restart="")
    assert (other.root / PLACE[1:]).stat().st_mode & 0o777 == 0o600
    assert ask(other, "read") == record
    ask(host, "revert", record)
    assert host.lasting() == {**empty, **{name: host.tree()[name] for name in host.tree() if name.startswith("etc/")}}
    assert ask(host, "read") is None is ask(host, "revert", record)
    ask(other, "revert", record)
    assert other.lasting() == stock


def test_lines_of_a_run_that_was_cut_short_go_along_too(host: Host, other: Host) -> None:
    noted(host, Noted(given=Given((LINE,))))
    ask(other, "apply", ask(host, "read"))
    assert found(other) == Noted(given=Given((LINE,)))


def test_what_is_noted_as_ours_there_stays_ours_and_the_rest_is_what_is_given(host: Host, other: Host) -> None:
    noted(host, NOTED)
    given = Given((MINE, LINE), (), Cards(method="mount-entry", minors=(1,)))
    noted(other, Noted(given=given, before=Before("old", Given())))
    ask(other, "apply", ask(host, "read"))
    assert found(other) == replace(NOTED, given=replace(GIVEN, lines=(LINE, MINE)))


@pytest.mark.parametrize(
    "changed",
    [
        {"given": replace(GIVEN, lines=(MINE,))},
        {"given": replace(GIVEN, cards=Cards())},
        {"revision": 4},
        {"restart": "x"},
    ],
    ids=["lines", "cards", "revision", "restart"],
)
def test_what_has_changed_since_isnt_forgotten(host: Host, changed: dict[str, Any]) -> None:
    noted(host, NOTED)
    record = ask(host, "read")
    noted(host, replace(NOTED, **changed))
    before = host.tree()
    with pytest.raises(Refused, match="it has changed meanwhile"):
        ask(host, "revert", record)
    assert host.tree("var") == {name: about for name, about in before.items() if name.startswith("var")}


@pytest.mark.parametrize("record", [None, {}, {"guest": "ai"}, {"given": {"nodes": []}}])
def test_half_of_what_is_noted_isnt_taken(other: Host, record: Any) -> None:
    before = other.lasting()
    with pytest.raises(Refused, match="isn't whole"):
        ask(other, "apply", record)
    assert other.lasting() == before


@pytest.mark.parametrize("content", ["", "half", '{"another": 1}', None], ids=["empty", "half", "another", "a folder"])
def test_what_cant_be_read_isnt_taken_for_none(host: Host, content: str | None) -> None:
    """A folder is what versions before 2.0.0 had."""
    host.write(f"{PLACE}/ours" if content is None else PLACE, content or "")
    before = host.tree()
    for verb in "read", "revert":
        with pytest.raises(Refused, match="containers/300 can't be read"):
            ask(host, verb)
    assert host.tree("var/lib") == {name: about for name, about in before.items() if name.startswith("var/lib")}


def task(kind: str, at: int, status: str, user: str = "root@pam") -> str:
    return f"UPID:pve:00001234:0000ABCD:{at:08X}:{kind}:300:{user}: {at + 1:08X} {status}\n"


KNOWN, AT = f"{A},{B}", int(time.time()) - 60


@pytest.mark.parametrize(
    ("ran", "tasks", "goes"),
    [
        (Ran(AT, BOOT, True, KNOWN), "", True),
        (Ran(AT, "another", True, KNOWN), "", False),
        (Ran(AT, BOOT, True, "AA:AA:AA:AA:AA:AA"), "", False),
        (Ran(AT - 3600, BOOT, True, KNOWN), "", False),
        (Ran(AT, BOOT, True, KNOWN), task("vzstart", 5, "OK"), False),
        (Ran(AT, BOOT, True, KNOWN), task("vzstart", 5, "command failed"), True),
        (Ran(AT, BOOT, True, KNOWN), task("vzstart", 5, "WARNINGS: 2"), False),
        (Ran(AT, BOOT, False, KNOWN), "", False),
        (Ran(AT, BOOT, False, KNOWN), task("vzshutdown", 1, "OK"), True),
        (Ran(AT, BOOT, False, KNOWN), task("vzshutdown", 1, "unable"), False),
        (Ran(AT, BOOT, False, KNOWN), task("vzstop", 1, "WARNINGS: 1"), True),
        (Ran(AT, BOOT, False, KNOWN), task("vzshutdown", 1, "OK", "a@pve"), False),
        (Ran(AT, BOOT, False, KNOWN), task("vzshutdown", 40, "OK"), False),
        (Ran(AT, BOOT, False, KNOWN), task("hastop", 1, "OK") + task("vzshutdown", 40, "OK"), True),
    ],
)
def test_that_it_is_to_run_again_goes_along_only_if_it_counts(
    host: Host, other: Host, ran: Ran, tasks: str, *, goes: bool
) -> None:
    host.write("/var/log/pve/tasks/index", moved(tasks, AT))
    noted(host, replace(NOTED, ran=ran))
    record = ask(host, "read")
    assert found(host).ran == ran, "`read` changes nothing"
    ask(other, "apply", record)
    assert found(other).ran == (Ran(AT, "of-the-other", True, KNOWN) if goes else None)
    ask(host, "revert", record)
    assert found(host) == Noted()


def moved(tasks: str, at: int) -> str:
    """The tasks, so many seconds later."""
    lines = [line.split(":", 5) for line in tasks.splitlines(keepends=True)]
    return "".join(":".join([*parts[:4], f"{int(parts[4], 16) + at:08X}", parts[5]]) for parts in lines)


def test_one_that_was_started_there_since_isnt_started_again(host: Host, other: Host) -> None:
    noted(host, replace(NOTED, ran=Ran(AT, BOOT, True, KNOWN)))
    other.write("/var/log/pve/tasks/index", moved(task("vzstart", 5, "OK"), AT))
    ask(other, "apply", ask(host, "read"))
    assert found(other) == NOTED


def test_tasks_that_cant_be_read_start_nothing(host: Host) -> None:
    noted(host, replace(NOTED, ran=Ran(int(time.time()), BOOT, True, KNOWN)))
    (host.root / "var/log/pve/tasks/index").mkdir(parents=True)
    assert ask(host, "read")["ran"] is None


@pytest.mark.parametrize("here", [Noted(), Noted(given=Given((MINE,)), after="x")], ids=["nothing", "something"])
def test_a_run_that_is_cut_short_anywhere_forgets_no_line_and_leaves_no_half_of_a_record(
    host: Host, other: Host, tmp_path: Path, here: Noted
) -> None:
    noted(host, NOTED)
    record = ask(host, "read")
    noted(other, here)
    taken = cuts(other, lambda one: ask(one, "apply", record))
    for number, cut in enumerate(taken):
        left = left_by(cut, other, tmp_path / f"taken {number}")
        assert {*here.given.lines} <= {*found(left).given.lines}, cut.how
    forgotten = cuts(host, lambda one: ask(one, "revert", record))
    for number, cut in enumerate(forgotten):
        left = left_by(cut, host, tmp_path / f"forgotten {number}")
        assert ask(left, "read") in (record, None), cut.how
    assert record["guest"] == "ai"


def test_a_hanging_cluster_file_system_ends_the_question(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    noted(host, replace(NOTED, ran=Ran(int(time.time()), BOOT, True, KNOWN)))
    conf = host.root / "etc/pve/lxc/300.conf"
    conf.unlink()
    os.mkfifo(conf)  # nobody writes into it
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    with pytest.raises(Refused, match="no answer within 0.2 s"):
        ask(host, "read")
    os.close(os.open(conf, os.O_RDWR | os.O_NONBLOCK))
