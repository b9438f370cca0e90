"""The layer container_record: what is noted of a container goes with it to another node."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

import pytest

from remote_scripts.layers.container_record import Wanted
from remote_scripts.shared import time_limit
from remote_scripts.shared.container_notes import Notes
from tests.agent.kit import Host, Refused, cuts, left_by, watched

FOLDER = "/var/lib/homelab/containers/300"
A, B = "AA:00:00:00:00:01", "AA:00:00:00:00:02"
CONF = f"hostname: box\nnet0: name=eth0,hwaddr={A.lower()},ip=dhcp\nnet1: hwaddr={B}\n\n[old]\nnet2: hwaddr=FF:FF\n"
NOTED = {
    "ours": b"dev /dev/nvidia0,mode=0666\n",
    "wanted": b"device\n0\n\n",
    "nodes": b"/dev/nvidia0 195:0 0000:01:00.0 nvidia mode=0666\n",
    "guest": b"ai\n",
    "revision": b"3\n",
}
STAYS = {"before": b"hostname: box\n\xff", "after": b"x\n", "restart": b"", "ours_before": b"", "mounted": b""}
BOOT = "c0ffee"
Record = dict[str, str]


def noted(host: Host, parts: dict[str, bytes], folder: str = FOLDER) -> None:
    for name, content in parts.items():
        host.write(f"{folder}/{name}", content, 0o600)


def found(host: Host) -> dict[str, bytes]:
    folder = host.root / FOLDER.lstrip("/")
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def ask(host: Host, verb: str, record: Record | None = None) -> Record:
    answer: Record = host.ask(verb, "container_record", Wanted(ctid=300, record=record or {}))["record"]
    return answer


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
    notes, flushed = Notes(host.system(), 300), list[str]()
    notes.write("ran", "x\n")
    with watched(lambda call, path: flushed.append(f"{call} {path.removeprefix(str(host.root))}")):
        notes.write("ran", "x\n")
    assert flushed == [f"flush {FOLDER}/ran", f"flush {FOLDER}"]


def test_what_is_noted_goes_to_another_node_and_is_forgotten_here(host: Host, other: Host) -> None:
    empty, stock = host.lasting(), other.lasting()
    noted(host, NOTED | STAYS)
    before = host.tree()
    record = ask(host, "read")
    assert host.tree() == before
    for _ in "once", "after a run that was killed":
        assert ask(other, "apply", record) == {}
    assert found(other) == NOTED | {"restart": b""}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (other.root / FOLDER[1:]).iterdir())
    assert ask(other, "read") == record
    ask(host, "revert", record)
    assert host.lasting() == {**empty, **{name: host.tree()[name] for name in host.tree() if name.startswith("etc/")}}
    assert ask(host, "read") == {} == ask(host, "revert", record)
    ask(other, "revert", record)
    assert other.lasting() == stock


def test_lines_of_a_run_that_was_cut_short_go_along_too(host: Host, other: Host) -> None:
    noted(host, {"ours": NOTED["ours"]})
    ask(other, "apply", ask(host, "read"))
    assert found(other) == {"ours": NOTED["ours"]}


def test_what_is_noted_as_ours_there_stays_ours_and_the_rest_is_what_is_given(host: Host, other: Host) -> None:
    noted(host, NOTED)
    mine = b"lxc.mount.entry: /dev/x dev/x none bind\n"
    noted(other, {"ours": mine + NOTED["ours"], "before": b"old", "wanted": b"mount-entry\n1\n\n"})
    ask(other, "apply", ask(host, "read"))
    assert found(other) == NOTED | {"ours": NOTED["ours"] + mine}


@pytest.mark.parametrize("part", ["ours", "wanted", "revision", "a new one"])
def test_what_has_changed_since_isnt_forgotten(host: Host, part: str) -> None:
    noted(host, NOTED)
    record = ask(host, "read")
    noted(host, {part.replace(" ", "_"): b"another\n"})
    before = host.tree()
    with pytest.raises(Refused, match="it has changed meanwhile"):
        ask(host, "revert", record)
    assert host.tree("var") == {name: about for name, about in before.items() if name.startswith("var")}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"nodes": "eA=="},
        {"ours": "no base64"},
        {"ours": "eA="},
        {"ours": "eA==", "../x": "eA=="},
        {"ours": "eA==", "": ""},
        {"ours": "eA==", ".x": ""},
    ],
)
def test_half_of_what_is_noted_or_anything_else_isnt_taken(other: Host, record: Record) -> None:
    before = other.lasting()
    with pytest.raises(Refused, match="isn't whole"):
        ask(other, "apply", record)
    assert other.lasting() == before


def test_a_part_that_cant_be_read_isnt_taken_for_none(host: Host) -> None:
    noted(host, NOTED)
    (host.root / FOLDER[1:] / "ran").mkdir()
    for verb in "read", "revert":
        with pytest.raises(Refused, match="containers/300/ran can't be read"):
            ask(host, verb)
    assert found_names(host) == {*NOTED}


def found_names(host: Host) -> set[str]:
    return {path.name for path in (host.root / FOLDER[1:]).iterdir()}


def task(kind: str, at: int, status: str, user: str = "root@pam") -> str:
    return f"UPID:pve:00001234:0000ABCD:{at:08X}:{kind}:300:{user}: {at + 1:08X} {status}\n"


KNOWN = f"{A},{B}"


@pytest.mark.parametrize(
    ("ran", "tasks", "goes"),
    [
        (f"AT {BOOT} yes {KNOWN}\n", "", True),
        (f"AT another yes {KNOWN}\n", "", False),
        (f"AT {BOOT} yes AA:AA:AA:AA:AA:AA\n", "", False),
        (f"LONG {BOOT} yes {KNOWN}\n", "", False),
        ("", "", False),
        (f"AT {BOOT} yes {KNOWN}\n", task("vzstart", 5, "OK"), False),
        (f"AT {BOOT} yes {KNOWN}\n", task("vzstart", 5, "command failed"), True),
        (f"AT {BOOT} yes {KNOWN}\n", task("vzstart", 5, "WARNINGS: 2"), False),
        (f"AT {BOOT} no {KNOWN}\n", "", False),
        (f"AT {BOOT} no {KNOWN}\n", task("vzshutdown", 1, "OK"), True),
        (f"AT {BOOT} no {KNOWN}\n", task("vzshutdown", 1, "unable"), False),
        (f"AT {BOOT} no {KNOWN}\n", task("vzstop", 1, "WARNINGS: 1"), True),
        (f"AT {BOOT} no {KNOWN}\n", task("vzshutdown", 1, "OK", "a@pve"), False),
        (f"AT {BOOT} no {KNOWN}\n", task("vzshutdown", 40, "OK"), False),
        (f"AT {BOOT} no {KNOWN}\n", task("hastop", 1, "OK") + task("vzshutdown", 40, "OK"), True),
    ],
)
def test_that_it_is_to_run_again_goes_along_only_if_it_counts(
    host: Host, other: Host, ran: str, tasks: str, *, goes: bool
) -> None:
    at = int(time.time()) - 60
    ran = ran.replace("AT", str(at)).replace("LONG", str(at - 3600))
    host.write("/var/log/pve/tasks/index", moved(tasks, at))
    noted(host, {**NOTED, "ran": ran.encode()})
    record = ask(host, "read")
    assert found(host)["ran"] == ran.encode(), "`read` changes nothing"
    ask(other, "apply", record)
    assert found(other).get("ran", b"").decode() == (f"{at} of-the-other yes {KNOWN}\n" if goes else "")
    ask(host, "revert", record)
    assert found(host) == {}


def moved(tasks: str, at: int) -> str:
    """The tasks, so many seconds later."""
    lines = [line.split(":", 5) for line in tasks.splitlines(keepends=True)]
    return "".join(":".join([*parts[:4], f"{int(parts[4], 16) + at:08X}", parts[5]]) for parts in lines)


def test_one_that_was_started_there_since_isnt_started_again(host: Host, other: Host) -> None:
    at = int(time.time()) - 60
    noted(host, {**NOTED, "ran": f"{at} {BOOT} yes {KNOWN}\n".encode()})
    other.write("/var/log/pve/tasks/index", moved(task("vzstart", 5, "OK"), at))
    ask(other, "apply", ask(host, "read"))
    assert found(other) == NOTED


def test_tasks_that_cant_be_read_start_nothing(host: Host) -> None:
    noted(host, {**NOTED, "ran": f"{int(time.time())} {BOOT} yes {KNOWN}\n".encode()})
    (host.root / "var/log/pve/tasks/index").mkdir(parents=True)
    assert "ran" not in ask(host, "read")


@pytest.mark.parametrize("here", [{}, {"ours": b"mine\n", "before": b"x"}], ids=["nothing", "something"])
def test_a_run_that_is_cut_short_anywhere_forgets_no_line_and_leaves_no_half_of_a_record(
    host: Host, other: Host, tmp_path: Path, here: dict[str, bytes]
) -> None:
    noted(host, NOTED)
    record = ask(host, "read")
    noted(other, here)
    taken = cuts(other, lambda one: ask(one, "apply", record))
    for number, cut in enumerate(taken):
        left = left_by(cut, other, tmp_path / f"taken {number}")
        assert set(here.get("ours", b"").splitlines()) <= set(found(left).get("ours", b"").splitlines()), cut.how
    forgotten = cuts(host, lambda one: ask(one, "revert", record))
    for number, cut in enumerate(forgotten):
        left = left_by(cut, host, tmp_path / f"forgotten {number}")
        assert ask(left, "read") in (record, {}), cut.how
    assert base64.b64decode(record["guest"]) == b"ai\n"


def test_a_hanging_cluster_file_system_ends_the_question(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    noted(host, {**NOTED, "ran": f"{int(time.time())} {BOOT} yes {KNOWN}\n".encode()})
    conf = host.root / "etc/pve/lxc/300.conf"
    conf.unlink()
    os.mkfifo(conf)  # nobody writes into it
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    with pytest.raises(Refused, match="no answer within 0.2 s"):
        ask(host, "read")
    os.close(os.open(conf, os.O_RDWR | os.O_NONBLOCK))
