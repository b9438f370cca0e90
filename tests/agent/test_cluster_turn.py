"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts; its turn ends with everything put back."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers import absent_node, cluster_turn
from remote_scripts.layers.cluster_turn import Wanted
from remote_scripts.shared import cluster, pmxcfs, time_limit
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import Done
from tests.agent.cluster_kit import (
    HOME,
    LOCK,
    TURN,
    VOTES,
    Clock,
    clock,
    elsewhere,
    kept_disks,
    members,
    node_of_three,
    osd_dump,
    policy,
    refuse,
    said,
    status,
    system_of,
    turn_of,
    with_disks,
)
from tests.agent.kit import Host, Refused, watched
from tests.waiting import PATIENCE

__all__ = ["clock"]
UNITS = "/etc/systemd/system"
LINK = f"{UNITS}/timers.target.wants/homelab-turn.timer"


@pytest.fixture(autouse=True)
def node(host: Host, clock: Clock) -> Host:
    return node_of_three(host)


@pytest.fixture
def disks(node: Host) -> Host:
    return with_disks(node)


def says(host: Host, *, keep_quorum: bool = True) -> str:
    found = cluster.obstacle(system_of(host), policy(keep_quorum=keep_quorum))
    return found.why if found else ""


def take(host: Host, seconds: float = 0) -> str:
    """Why it doesn't get the turn; empty: it has it."""
    system = system_of(host)

    def change() -> cluster.Obstacle | None:
        return cluster.await_cluster(system, policy(), seconds) or cluster.take_turn(system, policy(), seconds)

    found = system.changing(change)
    return found.why if found else ""


def end(host: Host, seconds: int = 0, *, by_timer: bool = False) -> bool:
    if by_timer:
        cluster_turn.program(system_of(host))
        return True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_turn, "CLUSTER_SECONDS", seconds)
        patch.setattr(cluster_turn, "RETURN_SECONDS", 0)
        return bool(host.ask("apply", "cluster_turn", Wanted())["over"])


def ours(host: Host) -> list[str]:
    """What is left of a turn, but for Ceph's."""
    return sorted(
        path
        for path in host.tree("etc", "var")
        if "homelab" in path and path not in (HOME[1:], f"{LOCK[1:]}") and not path.endswith("/lock")
    )


@VOTES
def test_a_quorum_stays_without_this_node(node: Host, text: str, why: str) -> None:
    members(node, text)
    assert says(node) == why


def test_a_quorum_may_be_given_up_but_not_be_missing_before(node: Host) -> None:
    members(node, status(1, 1, expected=2))
    assert says(node, keep_quorum=False) == ""
    members(node, status(1, expected=3))
    assert says(node, keep_quorum=False).startswith("the cluster has no quorum")


def test_a_host_that_is_alone_asks_nobody(node: Host) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    del node.programs["pvecm"]
    before = node.tree()
    assert says(node) == "" and take(node) == "" and end(node)
    assert node.tree() == before and not said(node)


def test_a_node_without_its_pve_folder_is_still_one_of_a_cluster(node: Host) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    node.write("/etc/corosync/corosync.conf", "totem {}\n")
    assert says(node) == ""  # it has left its cluster
    (node.root / "etc/pve/local").unlink()
    assert says(node).startswith("/etc/pve isn't there") and take(node)
    assert not (node.root / LOCK[1:]).exists() and not ours(node)


def test_a_turn_is_taken_and_ended_without_a_trace(node: Host) -> None:
    before = node.lasting()
    began = int(time.time())
    assert take(node) == ""
    noted = dict(line.split(" ", 1) for line in node.read(TURN).splitlines())
    assert noted["node"] == "pve1" and began + 600 <= int(noted["until"]) <= time.time() + 600
    assert not node.exists(LOCK)
    # Should this run be killed, the node ends it by itself.
    assert "systemctl restart homelab-turn.timer" in said(node) and (node.root / LINK[1:]).is_symlink()
    assert "OnActiveSec=600s" in node.read(f"{UNITS}/homelab-turn.timer")
    assert end(node) and node.lasting() == before


# Another node's turn: its length is by its clock, how long it has been there by this node's.
HOURS = 3600.0


@pytest.mark.parametrize("ahead", [0, -5 * HOURS, 5 * HOURS, 30 * 24 * HOURS])
def test_the_turn_of_another_node_counts_for_its_length_whatever_its_clock_says(
    node: Host, clock: Clock, ahead: float
) -> None:
    theirs = turn_of(node, "pve2", 2400, by_its_clock=time.time() + ahead)
    why = take(node)
    assert why.startswith(
        "pve2 restarts, since 2026-11-22 06:00:00 UTC (/etc/pve/priv/homelab-reboot); once it is back"
    )
    clock.passed += 2300
    assert take(node) and node.read(TURN) == theirs
    clock.passed += 101
    assert take(node) == "" and node.read(TURN).startswith("node pve1\n")


def test_a_turn_that_was_taken_anew_counts_anew(node: Host, clock: Clock) -> None:
    turn_of(node, "pve2", 600)
    assert take(node)
    clock.passed += 599
    os.utime(node.root / TURN[1:], (time.time() + 300, time.time() + 300))  # the same text
    assert take(node)
    turn_of(node, "pve3", 600)
    clock.passed += 400
    assert take(node)
    clock.passed += 590
    assert take(node).startswith("pve3 restarts")
    clock.passed += 11
    assert take(node) == ""


def test_it_is_first_seen_in_this_boot(node: Host, clock: Clock) -> None:
    """Its note is in memory, and one that says a second which is still to come is no note."""
    turn_of(node, "pve2", 600)
    assert take(node)
    clock.passed += 601
    seen = node.read("/run/homelab/turn-seen").split()
    node.write("/run/homelab/turn-seen", f"{float(seen[0]) + 10**9:.2f} {seen[1]}\n")
    assert take(node)


@pytest.mark.parametrize(
    "nodes",
    [
        "1 1 pve1 (local)\n2 1 pve22",
        "1 1 pve1 (local)\n3 1 pve3",
        "1 1 A,V,NMW pve1 (local)\n2 1 A,V,NMW pve2\n0 1 Qdevice",
    ],
    ids=["another of a like name", "it isn't back", "it is, and there is an arbiter"],
)
def test_the_turn_of_one_that_isnt_back_stays(node: Host, clock: Clock, nodes: str) -> None:
    members(node, status(1, 1, 1, expected=3), nodes)
    theirs = turn_of(node, "pve2", 600)
    assert take(node)
    clock.passed += 10**6
    if "pve2\n" in f"{nodes}\n":
        assert take(node) == ""
        return
    assert take(node) == f"pve2 restarts, since 2026-11-22 06:00:00 UTC ({TURN})"
    assert node.read(TURN) == theirs and not node.exists(f"{HOME}/turn")
    assert end(node) and node.read(TURN) == theirs


@pytest.mark.parametrize("text", ["", "node\n", "\0\1garbage\n", "until 5\n"])
def test_what_names_no_node_is_nobodys_turn(node: Host, text: str) -> None:
    node.write(TURN, text)
    assert take(node) == "" and node.read(TURN).startswith("node pve1\n")


def test_a_turn_whose_end_is_no_number_has_none(node: Host, clock: Clock) -> None:
    node.write(TURN, "node pve2\nsince then\nuntil tomorrow\n")
    assert take(node)
    clock.passed += 10**6
    assert take(node) == f"pve2 restarts, since then ({TURN})"


def test_a_turn_that_cant_be_read_is_nobodys_to_take(node: Host) -> None:
    (node.root / TURN[1:]).mkdir()
    assert take(node).startswith(f"it isn't known which node restarts: {TURN}: ")
    assert not node.exists(f"{HOME}/turn")
    cluster.lift_noout_of_absent(system_of(node))  # it has nothing to say of its own
    (node.root / TURN[1:]).rmdir()
    node.write(TURN, "node pve1\n" + " " * (1 << 20))
    assert "it is longer than 1048576 bytes" in take(node)


def test_the_nodes_own_turn_of_a_run_that_was_killed_is_taken_anew(node: Host) -> None:
    turn_of(node, "pve1")
    assert take(node) == "" and int(node.read(TURN).split()[-1]) > time.time()


def test_it_waits_until_the_others_can_do_without_it(node: Host, clock: Clock) -> None:
    """The one that has just come back has its vote some seconds later."""
    members(node, status(1, 1, expected=3))
    clock.meanwhile = lambda: members(node, status(1, 1, 1, expected=3))
    assert take(node, 60) == ""


def test_a_lock_that_another_node_holds_is_waited_for_and_asked_to_end(node: Host, clock: Clock) -> None:
    lock = node.root / LOCK[1:]
    lock.mkdir()
    assert take(node).startswith("another node holds /etc/pve/priv/lock/homelab-reboot")
    # The cluster's file system takes that as a request to let go of a lock whose time is over.
    assert lock.stat().st_mtime == 0
    clock.meanwhile = lambda: shutil.rmtree(lock, ignore_errors=True)
    assert take(node, 60) == ""


def test_two_nodes_that_ask_at_once_take_turns(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see that nobody restarts; one is told so under the lock."""
    make = disk.make_folder

    def other_first(path: Path, mode: int = 0o755) -> None:
        make(path, mode)
        if path.name == "homelab-reboot":
            elsewhere(lambda: turn_of(node, "pve2"))

    monkeypatch.setattr(disk, "make_folder", other_first)
    assert take(node).startswith("pve2 restarts")
    assert not node.exists(LOCK) and node.read(TURN).startswith("node pve2")


@pytest.mark.parametrize("call", ["create", "write", "mkdir"])
def test_what_hung_in_etc_pve_writes_nothing_once_that_answers_again(
    node: Host, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """By then another node has the turn."""
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    answers = threading.Event()
    hung: list[threading.Thread] = []

    def hang(name: str, path: str) -> None:
        if name == call and "/etc/pve/" in path and not hung:
            hung.append(threading.current_thread())
            answers.wait(PATIENCE)

    with watched(hang):
        assert take(node)
        turn_of(node, "pve2")
        answers.set()
        hung[0].join(PATIENCE)
    assert node.read(TURN).startswith("node pve2\n")


def test_a_turn_is_read_again_after_it_was_written(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock may have ended meanwhile: another node has written, too."""
    write = pmxcfs.write

    def other_last(system: Any, path: str, content: bytes, until: float) -> None:
        write(system, path, content, until)
        elsewhere(lambda: turn_of(node, "pve2"))

    monkeypatch.setattr(pmxcfs, "write", other_last)
    assert take(node) == f"{TURN} isn't what this node has written there"
    assert node.read(TURN).startswith("node pve2\n") and ours(node) == [TURN[1:]], "what isn't this node's stays"


def test_a_turn_isnt_written_by_whoever_was_held_up_with_the_clusters_lock(node: Host, clock: Clock) -> None:
    """It ends by itself after 120 s; another node may have it, and the turn, by then."""

    def slow(_arguments: Sequence[str], _stdin: bytes) -> int:
        clock.passed += 45  # systemd has much to do
        return 0

    before, quick = node.lasting(), node.programs["systemctl"]
    node.programs["systemctl"] = slow
    assert take(node).startswith("what this node has to note took so long that another one may have")
    assert not node.exists(TURN)
    (node.root / LOCK[1:]).rmdir()  # it is still there: by now it may be another node's
    node.programs["systemctl"] = quick
    assert end(node) and node.lasting() == before
    assert take(node) == ""


@pytest.mark.parametrize("seconds", [-HOURS, HOURS])
def test_a_turn_whose_end_was_reckoned_by_another_clock_isnt_taken(
    node: Host, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The clock is set between the reckoning and the writing: to the others it would have no length, or hours."""
    before, write = node.lasting(), pmxcfs.write

    def written(system: Any, path: str, content: bytes, until: float) -> None:
        write(system, path, content, until)
        now = time.time() + seconds
        elsewhere(lambda: os.utime(node.root / path[1:], (now, now)))

    monkeypatch.setattr(pmxcfs, "write", written)
    assert take(node).startswith("the clock of this node was set while")
    assert node.lasting() == before


def test_the_end_of_a_turn_leaves_another_nodes_alone(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is written between the first look and the lock."""
    assert take(node) == ""
    make = disk.make_folder

    def other_first(path: Path, mode: int = 0o755) -> None:
        make(path, mode)
        elsewhere(lambda: turn_of(node, "pve3"))

    monkeypatch.setattr(disk, "make_folder", other_first)
    assert end(node) and node.read(TURN).startswith("node pve3\n")


@pytest.mark.parametrize("what", ["no /etc/pve yet", "no quorum yet", "another node holds the lock"])
def test_the_end_of_a_turn_waits_for_the_cluster(
    node: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    assert take(node) == ""
    later: Callable[[], object]
    if what == "no /etc/pve yet":
        away = (node.root / "etc/pve").rename(node.root / "etc/later")
        later = lambda: away.rename(node.root / "etc/pve")  # noqa: E731
    elif what == "no quorum yet":
        later = without_quorum(monkeypatch)
    else:
        (node.root / LOCK[1:]).mkdir()
        later = (node.root / LOCK[1:]).rmdir
    assert not end(node)
    assert node.exists(f"{HOME}/turn")
    # The node goes on trying at once.
    assert node.exists(LINK) and said(node)[-1] == "systemctl start --no-block homelab-turn.service"
    clock.meanwhile = once(later)
    assert end(node, 60) and not ours(node)


def once(act: Callable[[], object]) -> Callable[[], object]:
    acts = [act]
    return lambda: acts.pop()() if acts else None


def without_quorum(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing can be removed from /etc/pve until what is returned is called."""
    remove = disk.remove

    def refuse(path: Path) -> None:
        if "/etc/pve/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(disk, "remove", refuse)
    return lambda: monkeypatch.setattr(disk, "remove", remove)


# Ceph.


@pytest.mark.parametrize(
    ("refuses", "answer", "why"),
    [
        ("osd", "unsafe to stop", "Ceph can't do without this node's disks now (`ceph osd ok-to-stop 0 3`): unsafe to stop"),
        ("mon", "not enough", "Ceph can't do without this node's monitor now (`ceph mon ok-to-stop pve1`): not enough"),
        ("mon", "", "Ceph can't do without this node's monitor now (`ceph mon ok-to-stop pve1`): no answer within 20 s"),
        ("-", "", ""),
    ],
    ids=["its disks", "its monitor", "no answer", "it can"],
)  # fmt: skip
def test_ceph_is_asked_whether_it_can_do_without_the_nodes_daemons(
    disks: Host, refuses: str, answer: str, why: str
) -> None:
    (disks.root / "var/lib/ceph/mon/ceph-pve1").mkdir(parents=True)
    refuse(disks, "ceph", refuses, said=answer, status=16)
    assert says(disks) == why


def test_a_node_without_daemons_of_ceph_and_a_cluster_of_one_ask_it_nothing(node: Host) -> None:
    """Each node has Ceph's configuration in /etc/pve."""
    node.write("/etc/pve/ceph.conf", "[global]\n")
    del node.programs["ceph"]
    assert says(node) == ""
    with_disks(node)
    assert says(node)
    members(node, status(1, expected=1))
    assert says(node) == "" and take(node) == ""


@pytest.mark.parametrize(
    ("flags", "kept", "then"),
    [("", (), ["osd.0", "osd.3"]), ("", (3,), ["osd.0", "osd.3"]), ("noout,", (), []), ("nobackfill,noout,", (1,), ["osd.1"])],
    ids=["nobody's", "one of them is somebody's", "the whole cluster's", "the whole cluster's, and another disk's"],
)  # fmt: skip
def test_ceph_replaces_no_disk_of_a_node_that_restarts(
    disks: Host, flags: str, kept: tuple[int, ...], then: list[str]
) -> None:
    """What somebody else has set stays, before and after."""
    osd_dump(disks, flags, kept)
    before = disks.lasting()
    assert take(disks) == "" and kept_disks(disks) == then
    assert end(disks) and disks.lasting() == before


def test_noout_of_a_run_that_was_killed_stays_noted_by_the_next_one(disks: Host) -> None:
    before = disks.lasting()
    assert take(disks) == "" and take(disks) == ""
    assert disks.read(f"{HOME}/away") == "noout 0 3\n" and "noout 0 3\n" in disks.read(TURN)
    osd_dump(disks, kept=(0,))  # such as where disk 3 was made anew meanwhile
    assert take(disks) == "" and disks.read(f"{HOME}/away") == "noout 0 3\n"
    assert end(disks) and disks.lasting() == before


def test_a_dump_that_is_cut_off_is_no_answer(disks: Host) -> None:
    """Of a disk that isn't in it nothing is known."""
    text = osd_dump(disks).partition("osd.3")[0]
    real = disks.programs["ceph"]
    disks.programs["ceph"] = lambda arguments, stdin: (
        Done(1, text.encode()) if arguments == ("osd", "dump") else real(arguments, stdin)
    )
    assert take(disks).startswith("Ceph doesn't say which disks it would replace") and not kept_disks(disks)


@pytest.mark.parametrize(
    ("program", "words", "why"),
    [
        ("ceph", ("osd", "dump"), "Ceph doesn't say which disks it would replace"),
        ("ceph", ("osd", "add-noout"), "Ceph would replace this node's disks (`ceph osd add-noout 0 3`): no"),
        ("systemctl", ("daemon-reload",), "the end of this node's turn can't be arranged on this host"),
    ],
)
def test_a_node_whose_disks_ceph_would_replace_isnt_restarted(
    disks: Host, program: str, words: tuple[str, ...], why: str
) -> None:
    before = disks.lasting()
    refuse(disks, program, *words, said="no", status=22)
    assert take(disks).startswith(why)
    assert disks.lasting() == before


def test_a_disk_that_cant_be_told_and_a_note_that_cant_be_read_are_said(disks: Host) -> None:
    (disks.root / "var/lib/ceph/osd/ceph-7/whoami").mkdir(parents=True)
    with pytest.raises(Exception, match="disks and monitors of Ceph this node has"):
        take(disks)
    shutil.rmtree(disks.root / "var/lib/ceph/osd/ceph-7")
    for folder in ("osd", "mon"):
        place = disks.root / "var/lib/ceph" / folder
        if place.exists():
            place.rename(disks.root / "var/lib/ceph/away")
        disks.write(f"/var/lib/ceph/{folder}", "")  # as a folder that can't be read
        with pytest.raises(Exception, match=f"/var/lib/ceph/{folder} can't be read"):
            take(disks)
        place.unlink()
        if (disks.root / "var/lib/ceph/away").exists():
            (disks.root / "var/lib/ceph/away").rename(place)
    assert take(disks) == ""
    (disks.root / f"{HOME}/away"[1:]).unlink()
    (disks.root / f"{HOME}/away"[1:]).mkdir()
    with pytest.raises(Refused, match="to know what is set for a restart of this node"):
        end(disks)
    assert kept_disks(disks) and disks.exists(TURN)


def test_a_turn_goes_on_until_noout_is_unset(disks: Host) -> None:
    """Monitors have a quorum some time after a boot."""
    before, asks = disks.lasting(), disks.programs["ceph"]
    assert take(disks) == ""
    refuse(disks, "ceph")
    assert not end(disks)
    assert disks.read(f"{HOME}/away") == "noout 0 3\n" and disks.exists(TURN)
    # The node's own timer fails, so that systemd starts it again.
    with pytest.raises(Failure, match="ceph osd rm-noout 0 3"):
        end(disks, by_timer=True)
    assert disks.read(f"{HOME}/away") == "noout 0 3\n"
    disks.programs["ceph"] = asks
    assert end(disks, by_timer=True) and disks.lasting() == before
    # It doesn't stop itself; an `up` stops its next try.
    assert "systemctl stop --no-block homelab-turn.service" not in said(disks)
    assert take(disks) == "" and end(disks) and disks.lasting() == before
    assert "systemctl stop --no-block homelab-turn.service" in said(disks)


def destroyed(host: Host) -> None:
    """What the end of a `revert` of the command line does."""
    system = system_of(host)
    system.changing(lambda: cluster.give_turn_back(system))


@pytest.mark.parametrize("armed", [True, False])
def test_destroy_forgets_no_noout(disks: Host, armed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The node's own timer goes on with it; where there is none, `destroy` fails."""
    before, asks = disks.lasting(), disks.programs["ceph"]
    assert take(disks) == ""
    refuse(disks, "ceph")
    if armed:
        destroyed(disks)
        assert "note: the node goes on by itself" in (text := capsys.readouterr().err) and "rm-noout 0 3" in text
        assert said(disks)[-1] == "systemctl start --no-block homelab-turn.service"
    else:
        (disks.root / f"{UNITS}/homelab-turn.timer"[1:]).unlink()
        with pytest.raises(Exception, match="ceph osd rm-noout 0 3"):
            destroyed(disks)
    assert disks.read(f"{HOME}/away") == "noout 0 3\n" and disks.exists(f"{HOME}/turn")
    disks.programs["ceph"] = asks
    capsys.readouterr()
    destroyed(disks)
    assert disks.lasting() == before and not capsys.readouterr().err


def test_destroy_without_a_quorum_forgets_nothing_either(
    node: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = node.lasting()
    assert take(node) == ""
    later = without_quorum(monkeypatch)
    destroyed(node)
    assert f"until then no node of the cluster restarts: rm {TURN}" in capsys.readouterr().err
    assert node.exists(f"{HOME}/turn") and node.exists(LINK)
    later()
    assert end(node, by_timer=True) and node.lasting() == before


def test_a_turn_that_set_nothing_and_that_no_timer_ends_keeps_no_host_from_being_given_back(
    node: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take(node) == ""
    (node.root / f"{UNITS}/homelab-turn.timer"[1:]).unlink()
    without_quorum(monkeypatch)
    destroyed(node)
    assert f"that this node doesn't restart: no node of the cluster restarts: rm {TURN}" in capsys.readouterr().err
    assert not node.exists(f"{HOME}/turn")


# A node that hasn't come back.


@pytest.mark.parametrize(("back", "waited", "lifted"), [(False, 700, True), (False, 0, False), (True, 700, False)])
def test_ceph_replaces_the_disks_of_a_node_that_hasnt_come_back(
    disks: Host, clock: Clock, back: bool, waited: float, lifted: bool
) -> None:
    """Its turn stays: somebody has to look at it."""
    members(disks, status(1, 1, 1, expected=3), "1 1 pve1 (local)\n3 1 pve3" + "\n2 1 pve2" * back)
    osd_dump(disks, kept=(0, 1))
    theirs = turn_of(disks, "pve2", 600, noout="1", by_its_clock=time.time() - 9 * HOURS)
    for _ in range(2):
        cluster.lift_noout_of_absent(system_of(disks))
        clock.passed += waited
    assert kept_disks(disks) == (["osd.0"] if lifted else ["osd.0", "osd.1"])
    assert disks.read(TURN) == theirs


def lift(host: Host, name: str = "pve2") -> str:
    return str(host.ask("apply", "absent_node", absent_node.Wanted(node=name))["lifted"])


def test_an_up_that_has_waited_for_a_node_in_vain_has_its_disks_replaced(disks: Host) -> None:
    members(disks, status(1, 1, expected=3), "1 1 pve1 (local)\n3 1 pve3")
    turn_of(disks, "pve2", 600, noout="1")
    osd_dump(disks, kept=(1,))
    assert lift(disks, "pve9") == "none" and kept_disks(disks)
    pvecm = disks.programs["pvecm"]
    disks.programs["pvecm"] = lambda _arguments, _stdin: Done(1, b"")
    assert lift(disks) == "no" and kept_disks(disks), "whether it is back can't be told"
    disks.programs["pvecm"] = pvecm
    assert lift(disks) == "yes" and not kept_disks(disks)
    refuse(disks, "ceph")
    assert lift(disks) == "no"
    members(disks, status(1, 1, 1, expected=3))
    assert lift(disks) == "none", "it is back"
    (disks.root / TURN[1:]).unlink()
    (disks.root / TURN[1:]).mkdir()
    assert lift(disks) == "no", "the turn can't be read"
    (disks.root / "etc/pve").rename(disks.root / "etc/hangs")
    assert lift(disks) == "no"


@pytest.mark.parametrize("call", ["create", "rename"])
def test_a_turn_that_cant_be_written_is_none_and_leaves_nothing(
    node: Host, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, real = node.lasting(), getattr(disk, call)

    def fails(path: Path, *rest: Any) -> Any:
        if "/etc/pve/priv/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest)

    monkeypatch.setattr(disk, call, fails)
    assert take(node).endswith("can't be written")
    assert node.lasting() == before


def test_a_turn_that_cant_be_noted_on_the_host_isnt_taken(node: Host) -> None:
    (node.root / f"{HOME}/turn/x"[1:]).mkdir(parents=True)
    assert take(node).endswith("can't be written")
    assert not node.exists(TURN) and not node.exists(LOCK)


def test_what_a_run_left_that_was_killed_before_it_had_its_turn_goes(node: Host) -> None:
    assert take(node) == ""
    (node.root / TURN[1:]).rename(node.root / f"{TURN}.new"[1:])
    assert end(node) and not ours(node)


def test_nobody_ends_a_turn_while_its_restart_is_ordered(node: Host) -> None:
    """The node's own timer may wait for the lock meanwhile, of an earlier turn; another stack may verify this boot."""
    assert take(node) == ""
    cluster.note_restart(system_of(node))
    ordered = node.read("/run/homelab/ordered")
    with pytest.raises(Failure):
        end(node, by_timer=True)
    assert not end(node) and node.exists(TURN)
    boot, since = ordered.split()
    for other in (f"{boot} {int(since) - 901}\n", f"other {since}\n", f"{boot} {int(since) + 10**6}\n", f"{boot} x\n"):
        node.write("/run/homelab/ordered", other)
        assert end(node) and not ours(node)
        assert take(node) == ""


def test_what_the_nodes_own_timer_starts_runs_from_its_copy(node: Host, tmp_path: Path) -> None:
    """As systemd starts it, whatever has become of the agent that has put it there."""
    assert take(node) == ""
    (node.root / TURN[1:]).unlink()  # given back by hand, as this machine has no cluster
    (start,) = [
        line for line in node.read(f"{UNITS}/homelab-turn.service").splitlines() if line.startswith("ExecStart=")
    ]
    words = shlex.split(start.partition("=")[2])
    words = [str(node.root / HOME[1:] / "turn-end") if word == f"{HOME}/turn-end" else word for word in words]
    environment = {"ROOT": str(node.root), "PATH": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert not ours(node)
