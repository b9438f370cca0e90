"""Nodes of one cluster: never two of them restart at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import install
from lab.cluster import LabCluster
from lab.host.cluster import Cluster
from tests.e2e.conftest import host_settings
from tests.engine_stack import EngineStack, name_of

NODES = ("pve1", "pve2")
TURN = "priv/homelab-reboot"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LabCluster]:
    with LabCluster.start("three", tmp_path / "cluster") as started:
        yield started


@pytest.fixture
def stack(tmp_path: Path, engine: install.Engine, cluster: LabCluster) -> EngineStack:
    """Two nodes' cards for VMs: each node needs a restart."""
    cards = {"gpus": {"gpu": {"match": "10de:2b85"}}}
    hosts = {name: host_settings(cluster[name]) | cards for name in NODES}
    (tmp_path / "stack").mkdir()
    made = EngineStack(tmp_path / "stack", engine, {"homelab:hosts": hosts})
    made.create()
    return made


def in_the_cluster(stack: EngineStack, **more: Any) -> None:
    for host in stack.config["homelab:hosts"].values():
        host |= {"cluster": "home", **more}


@contextmanager
def watched(cluster: LabCluster) -> Iterator[set[tuple[bool, frozenset[str]]]]:
    """What the third node sees meanwhile: whether it has a quorum, and which of the others are away."""
    seen: set[tuple[bool, frozenset[str]]] = set()
    ended = threading.Event()

    def look() -> None:
        shared = Cluster(cluster.folder)
        while not ended.wait(0.01):
            seen.add((shared.is_quorate("pve3"), frozenset(NODES) - shared.seen_by("pve3")))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def boots(cluster: LabCluster) -> list[int]:
    return [len(cluster[name].boots()) for name in ("pve1", "pve2", "pve3")]


@pytest.mark.parametrize("told", [True, False], ids=["of one cluster in the settings", "nothing said"])
def test_nodes_restart_one_after_another_and_the_quorum_stays(
    stack: EngineStack, cluster: LabCluster, told: bool
) -> None:
    if told:
        in_the_cluster(stack)
    stock = cluster.snapshot()
    with watched(cluster) as seen:
        done = stack.up()
    assert boots(cluster) == [2, 2, 1]
    assert seen == {(True, frozenset()), (True, frozenset({"pve1"})), (True, frozenset({"pve2"}))}
    if told:  # otherwise the second one waits in its script, on the host
        named = [name for _, name in done.steps]
        assert named.index("pve1-booted") < [name for _, name in done.planned].index("pve2-reboot")
        assert stack.up().changed == set()
    # Whoever forgets a node (`pulumi state delete --target-dependents`) keeps the others.
    needed = {
        one
        for resource in stack.resources()
        if name_of(resource["urn"]).startswith("pve2")
        for one in resource.get("dependencies", [])
    }
    assert needed and not [one for one in needed if name_of(one).startswith("pve1")]
    assert not (cluster.folder / "pve" / TURN).exists()
    stack.destroy()
    after = cluster.snapshot()
    assert {name: set(now.items()) ^ set(stock[name].items()) for name, now in after.items()} == dict.fromkeys(
        stock, set()
    )


def test_a_node_that_doesnt_come_back_stops_the_roll(stack: EngineStack, cluster: LabCluster) -> None:
    in_the_cluster(stack, timeouts={"connect": 2, "reboot": 2, "rollback": 30})
    cluster["pve1"].fault("never-comes-back", True)
    failed = stack.up(ok=False)
    assert "not back" in failed.message or "back after its reboot" in failed.message
    assert boots(cluster)[1:] == [1, 1]
    assert (cluster.folder / "pve" / TURN).read_text().startswith("node pve1\n")
