"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from remote_scripts.cluster import cluster, turn
from remote_scripts.layers import cluster_turn
from remote_scripts.pve import pmxcfs
from remote_scripts.tools.done import Done
from tests.agent.cluster_kit import TURN, Clock, Host, status
from tests.agent.cluster_kit import host as host  # a fixture


@pytest.fixture(autouse=True)
def node(host: Host, clock: Clock) -> Host:
    return host.node_of_three()


def says(host: Host, *, keep_quorum: bool = True) -> str:
    return cluster.obstacle(host.working_system(), keep_quorum=keep_quorum)


def take(host: Host, seconds: float = 0) -> str:
    """Why it doesn't get the turn; empty: it has it."""
    system = host.working_system()

    def change() -> str:
        waits = (cluster.await_cluster(system, seconds, keep_quorum=True, away_seconds=away) for away in (0, 600))
        return next(filter(None, waits), "")

    why: str = system.changing(change)
    return why


def end(host: Host, seconds: int = 0) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_turn, "CLUSTER_SECONDS", seconds)
        return bool(host.ask("apply", "cluster_turn", {})["over"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (status(1, 1, 1, expected=3), ""),
        (status(1, 1, expected=3), "without this node the cluster has 1 of 3 votes, and 2 are needed"),
        (status(1, 1, expected=2), "without this node the cluster has 1 of 2 votes, and 2 are needed"),
        (status(1, 1, expected=3, device=True), ""),
        (status(3, 1, 1, expected=5), "without this node the cluster has 2 of 5 votes, and 3 are needed"),
        (status(0, 1, 1, expected=2), ""),
        (status(1, 0, expected=1), "without this node the cluster has 0 of 1 votes, and 1 are needed"),
        (status(1, expected=1), ""),
        (status(1, expected=3), "the cluster has no quorum: 1 of 3 votes, and 2 are needed"),
        ("Cannot initialize CMAP service\n", "`pvecm status` doesn't say which votes the cluster has: Cannot initialize CMAP service"),
        ("", "`pvecm status` doesn't say which votes the cluster has: no answer within 20 s"),
    ],
    ids=[
        "three", "two of three", "two", "two and an arbiter", "one with most votes", "one without a vote", "the other without a vote", "a cluster of one", "alone",
        "corosync doesn't run", "no answer",
    ],
)  # fmt: skip
def test_a_quorum_stays_without_this_node(node: Host, text: str, why: str) -> None:
    node.members(text)
    assert says(node) == why


def test_a_quorum_may_be_given_up_but_not_be_missing_before(node: Host) -> None:
    node.members(status(1, 1, expected=2))
    assert says(node, keep_quorum=False) == ""
    node.members(status(1, expected=3))
    assert says(node, keep_quorum=False).startswith("the cluster has no quorum")


def test_a_host_that_is_alone_asks_nobody(node: Host) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    del node.programs["pvecm"]
    before = node.tree()
    assert says(node) == "" and take(node) == "" and end(node)
    assert node.tree() == before and not node.said()


def test_a_node_without_its_pve_folder_is_still_one_of_a_cluster(node: Host) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    node.write("/etc/corosync/corosync.conf", "totem {}\n")
    assert says(node) == ""  # it has left its cluster
    (node.root / "etc/pve/local").unlink()
    assert says(node).startswith("/etc/pve ") and take(node)
    assert not node.exists(TURN)


def test_a_turn_is_taken_and_ended_without_a_trace(node: Host) -> None:
    before = node.lasting()
    began = int(time.time())
    assert take(node) == ""
    noted = dict(line.split(" ", 1) for line in node.read(TURN).splitlines())
    assert noted["node"] == "pve1" and began + 600 <= int(noted["until"]) <= time.time() + 600
    assert {*node.lasting()} - {*before} == {TURN[1:], pmxcfs.HOMELAB[1:]}
    assert end(node) and node.lasting() == before


# Another node's turn: it ends once that node is heard again, later than its end, by that node's clock.
HOURS = 3600.0


@pytest.mark.parametrize("ahead", [0, -5 * HOURS, 5 * HOURS, 30 * 24 * HOURS])
def test_the_turn_of_another_node_counts_for_its_length_whatever_its_clock_says(node: Host, ahead: float) -> None:
    theirs = node.turn_of("pve2", 2400, ahead=ahead)
    for passed in (-60, 2300):
        node.is_heard("pve2", passed, ahead=ahead)
        assert take(node) == f"pve2 restarts, since 2026-11-22 06:00:00 UTC ({TURN})" and node.read(TURN) == theirs
    node.is_heard("pve2", 2401, ahead=ahead)
    assert take(node) == "" and node.read(TURN).startswith("node pve1\n")


def test_the_turn_of_one_that_isnt_back_stays(node: Host) -> None:
    """Somebody has to look at that node."""
    theirs = node.turn_of("pve2", 600, ahead=-HOURS)
    node.is_heard("pve3")
    for heard in (False, True):
        if heard:
            node.is_heard("pve2", -HOURS)
        assert take(node) == f"pve2 restarts, since 2026-11-22 06:00:00 UTC ({TURN})"
        assert end(node) and node.read(TURN) == theirs


@pytest.mark.parametrize("text", ["", "node\n", "\0\1garbage\n", "until 5\n"])
def test_what_names_no_node_is_nobodys_turn(node: Host, text: str) -> None:
    node.write(TURN, text)
    assert take(node) == "" and node.read(TURN).startswith("node pve1\n")


def test_a_turn_whose_end_is_no_number_has_none(node: Host) -> None:
    node.write(TURN, "node pve2\nsince then\nuntil tomorrow\n")
    node.is_heard("pve2", 10**6)
    assert take(node) == f"pve2 restarts, since then ({TURN})"


def test_a_turn_that_cant_be_read_is_nobodys_to_take(node: Host) -> None:
    (node.root / TURN[1:]).mkdir(parents=True)
    assert take(node).startswith(f"it isn't known which node restarts: {TURN}: ")


def test_the_nodes_own_turn_of_a_run_that_was_killed_is_taken_anew(node: Host) -> None:
    node.turn_of("pve1")
    assert take(node) == "" and int(node.read(TURN).split()[-1]) > time.time()


def test_it_waits_until_the_others_can_do_without_it(node: Host, clock: Clock) -> None:
    """The one that has just come back has its vote some seconds later."""
    node.members(status(1, 1, expected=3))
    clock.meanwhile = lambda: node.members(status(1, 1, 1, expected=3))
    assert take(node, 60) == ""


def test_of_two_nodes_that_take_the_turn_at_once_one_doesnt_restart(node: Host) -> None:
    """Both have seen that nobody restarts; the other node has written later."""
    assert take(node) == "" and turn.lost(node.working_system()) == ""
    node.turn_of("pve2")
    assert turn.lost(node.working_system()) == f"it isn't this node's turn any more: {TURN} names pve2"
    assert end(node) and node.read(TURN).startswith("node pve2\n")


def test_a_turn_that_cant_be_written_is_none_and_leaves_nothing(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node.lasting()
    node.without_quorum(monkeypatch)
    assert take(node) == f"{TURN} can't be written: Permission denied"
    assert node.lasting() == before


@pytest.mark.parametrize("what", ["no /etc/pve yet", "no quorum yet"])
def test_the_end_of_a_turn_waits_for_the_cluster(node: Host, clock: Clock, what: str) -> None:
    assert take(node) == ""
    with pytest.MonkeyPatch.context() as patch:
        later: list[Callable[[], object]] = [patch.undo]
        if what == "no /etc/pve yet":
            node.write("/etc/corosync/corosync.conf", "totem {}\n")
            away = (node.root / "etc/pve").rename(node.root / "etc/later")
            later = [partial(away.rename, node.root / "etc/pve")]
        else:
            node.without_quorum(patch)
        assert not end(node)
        clock.meanwhile = lambda: later.pop()() if later else None
        assert end(node, 60) and not node.exists(TURN)


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
    node: Host, refuses: str, answer: str, why: str
) -> None:
    (node.with_disks().root / "var/lib/ceph/mon/ceph-pve1").mkdir(parents=True)
    node.programs["ceph"] = lambda words, _stdin: Done(16, b"", answer.encode()) if words[0] == refuses else 0
    assert says(node) == why


def test_a_node_without_daemons_of_ceph_and_a_cluster_of_one_ask_it_nothing(node: Host) -> None:
    """Each node has Ceph's configuration in /etc/pve."""
    node.write("/etc/pve/ceph.conf", "[global]\n")
    del node.programs["ceph"]
    assert says(node) == ""
    node.with_disks()
    assert says(node)
    node.members(status(1, expected=1))
    assert says(node) == "" and take(node) == ""


def test_a_disk_that_cant_be_told_is_said(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    whoami = node.with_disks().root / "var/lib/ceph/osd/ceph-7/whoami"
    whoami.mkdir(parents=True)
    with pytest.raises(Exception, match="ceph-7/whoami"):
        take(node)
    whoami.rmdir()
    whoami.parent.rmdir()
    listed = os.listdir
    for folder in ("osd", "mon"):

        def fails(place: str, folder: str = folder) -> list[str]:
            if str(place).endswith(f"/var/lib/ceph/{folder}"):
                raise OSError(5, "Input/output error")
            return listed(place)

        with monkeypatch.context() as patch, pytest.raises(Exception, match=f"/var/lib/ceph/{folder}"):
            patch.setattr(os, "listdir", fails)
            take(node)
    assert take(node) == ""


@pytest.mark.parametrize("quorate", [True, False])
def test_destroy_ends_a_turn_or_says_that_it_cant(
    node: Host, quorate: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(node) == ""
    if not quorate:
        node.without_quorum(monkeypatch)
    system = node.working_system()
    system.changing(lambda: turn.give_back(system))
    said = f"could not be told that this node doesn't restart: rm {TURN}" in capsys.readouterr().err
    assert (said, node.exists(TURN)) == (not quorate, not quorate)


def test_nobody_ends_a_turn_while_its_restart_is_ordered(node: Host) -> None:
    """Another stack may verify this boot."""
    assert take(node) == ""
    turn.note_restart(node.working_system())
    assert not end(node) and node.exists(TURN)
    boot, since = node.read("/run/homelab/ordered").split()
    for other in (f"{boot} {int(since) - 901}\n", f"other {since}\n", f"{boot} {int(since) + 10**6}\n", f"{boot} x\n"):
        node.write("/run/homelab/ordered", other)
        assert end(node) and not node.exists(TURN)
        assert take(node) == ""
