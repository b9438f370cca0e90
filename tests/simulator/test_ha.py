"""HA and Ceph of a lab's cluster: `ha-manager` and `ceph` say and do what the real programs do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import LabCluster
from tests.conftest import shared
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster.start("ceph", tmp_path_factory.mktemp("cluster") / "ceph") as cluster:
        cluster["pve1"].run("ha-manager add vm:200")
        yield cluster


@pytest.fixture
def cluster(started: LabCluster) -> Iterator[LabCluster]:
    """VM 200 is HA's, and runs on pve1."""
    started["pve1"].run("ha-manager set vm:200 --state started")
    wait_until(lambda: service(started, "vm:200") == ("pve1", "started") and agents(started) == ["pve1"])
    yield started
    started["pve1"].run("ha-manager set vm:200 --state ignored")
    wait_until(lambda: not started.ha["services"])


def said(cluster: LabCluster, words: str, node: str = "pve1") -> str:
    return cluster[node].run(f"ha-manager {words}").stdout


def agents(cluster: LabCluster) -> list[str]:
    """The nodes whose agent has something to do, once each has taken part."""
    return [name for name, about in cluster.ha["nodes"].items() if about["state"] != "wait_for_agent_lock"]


def refused(cluster: LabCluster, command: str, node: str = "pve1") -> str:
    done = cluster[node].run(command, check=False)
    assert done.returncode != 0 and done.stdout == "", done
    return done.stderr.strip().splitlines()[-1]


def service(cluster: LabCluster, sid: str, node: str = "pve1") -> tuple[str, str] | None:
    found = re.search(rf"(?m)^service {sid} \((.+), (.+)\)$", said(cluster, "status", node))
    return (found[1], found[2]) if found else None


def shape(text: str) -> list[str]:
    """Lines of a status without names of nodes, states and times."""
    text = re.sub(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}", "TIME", text)
    return sorted(set(re.sub(r"pve\d|vm:\d+", "NAME", text).splitlines()))


def test_a_status_has_the_lines_of_a_real_cluster(cluster: LabCluster) -> None:
    """A recording of three nodes of Proxmox VE 9; 8 has no line of the fencing, and no word of the watchdog."""
    lines = [json.loads(line) for line in shared("pve_api", "transcripts", "cluster.jsonl").read_text().splitlines()]
    recorded = [one["out"] for one in lines if one.get("shell") == "ha-manager status"]
    assert shape(said(cluster, "status")) == shape(next(text for text in recorded if "(pve2, started)" in text))
    of_8 = "".join(
        re.sub(r", watchdog \w+", "", line)
        for line in said(cluster, "status").splitlines(True)
        if "fencing" not in line
    )
    assert shape(said(cluster, "status", "pve2")) == shape(of_8)


def test_what_it_is_asked_for_wrongly_is_refused_in_its_words(cluster: LabCluster) -> None:
    for command, words in {
        "add vm:999": "resource 'vm:999' does not exist in cluster",
        "add vm:200": "create resource failed: resource ID 'vm:200' already defined",
        "set vm:201 --state disabled": "update resources config failed: no such resource 'vm:201'",
    }.items():
        assert refused(cluster, f"ha-manager {command}") == words


def test_a_node_that_restarts_freezes_its_guests_and_starts_them_again(cluster: LabCluster) -> None:
    boots = len(cluster["pve1"].boots())
    cluster["pve1"].fault("never-comes-back", True)  # for as long as the test looks
    cluster["pve1"].run("reboot")
    wait_until(lambda: cluster.ha["services"]["vm:200"]["state"] == "freeze")
    cluster["pve1"].fault("never-comes-back", None)
    cluster["pve1"].power_cycle()
    cluster["pve1"].wait_settled(boots=boots + 1)
    wait_until(lambda: service(cluster, "vm:200", "pve2") == ("pve1", "started"))
    assert "status: running" in cluster["pve1"].run("qm status 200").stdout


def test_ceph_wants_its_monitors_and_its_disks(started: LabCluster) -> None:
    ceph = started["pve1"].run
    wait_until(lambda: may_stop(started))  # the nodes have found one another
    assert "quorum should be preserved (pve2,pve3)" in ceph("ceph mon ok-to-stop pve1").stderr
    boots = len(started["pve3"].boots())
    started["pve3"].run("poweroff")
    started["pve3"].wait_settled()
    assert refused(started, "ceph osd ok-to-stop 0").endswith("(33 PGs are or would become offline)")
    assert "not enough monitors would be available (pve2)" in refused(started, "ceph mon ok-to-stop pve1")
    started["pve3"].power_cycle()
    started["pve3"].wait_settled(boots=boots + 1)
    wait_until(lambda: may_stop(started))


def may_stop(cluster: LabCluster) -> bool:
    """Can Ceph do without pve1's disk?"""
    said = cluster["pve1"].run("ceph osd ok-to-stop 0", check=False).stdout
    return bool(said) and json.loads(said)["ok_to_stop"] is True


def test_a_description_without_ceph_has_none(tmp_path: Path) -> None:
    from tests.lab.host_kit import Host

    done = Host(tmp_path / "lab", "rtx5090", running=True).run("ceph osd ok-to-stop 0; echo $?; ha-manager status")
    assert "RADOS object not found" in done.stderr
    assert done.stdout == "1\nquorum OK\nfencing standby (CRM watchdog standby)\n"
