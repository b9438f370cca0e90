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
from tests.e2e.conftest import api_token, host_settings
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


def test_a_vm_that_is_moved_by_hand_is_found_where_it_is_and_destroy_gives_every_node_back(
    stack: EngineStack, cluster: LabCluster
) -> None:
    in_the_cluster(stack)
    for name, host in stack.config["homelab:hosts"].items():
        host["api"] = api_token(cluster[name])
    stack.config["homelab:allowPlainSecrets"] = True
    stack.config["homelab:vms"] = {"sandbox": {"host": "home", "vmid": 103, "gpus": ["gpu"]}}
    # Somebody else's mapping: an entry of the third node, and one of the first that has another group.
    theirs = (
        "id=10de:2b85,iommugroup=7,node=pve1,path=0000:01:00,subsystem-id=1043:89e3",
        "id=10de:2b85,iommugroup=7,node=pve3,path=0000:01:00,subsystem-id=1043:89e3",
    )
    cluster["pve1"].run(
        f"qm stop 103; pvesh create /cluster/mapping/pci --id gpu --description theirs --map {theirs[0]} --map {theirs[1]}"
    )
    stock = cluster.snapshot()
    stack.up()
    assert "hostpci0: mapping=gpu,pcie=1" in conf(cluster, "pve1")
    mapping = (cluster.folder / "pve/mapping/pci.cfg").read_text()
    assert [line.split("node=")[1][:4] for line in mapping.splitlines() if "map " in line] == ["pve1", "pve3", "pve2"]
    assert theirs[1] in mapping and theirs[0] not in mapping

    move(cluster, "pve1", "pve3")
    refused = stack.preview(ok=False)
    assert "it is on pve3, which has no such card in the settings; pve1, pve2 have" in refused.message
    move(cluster, "pve3", "pve2")
    moved = stack.preview("--refresh")
    assert "drift" not in moved.output and "sandbox-record" in moved.changed
    stack.up("--refresh")
    assert "hostpci0: mapping=gpu,pcie=1" in conf(cluster, "pve2")
    assert [(cluster[name].root / "var/lib/homelab/ledger/vm/103").exists() for name in NODES] == [False, True]
    assert stack.up().changed == set()

    move(cluster, "pve2", "pve1")  # since the last `up`, too
    stack.destroy()
    after = cluster.snapshot()
    assert {name: set(now.items()) ^ set(stock[name].items()) for name, now in after.items()} == dict.fromkeys(
        stock, set()
    )


def test_a_container_that_is_moved_by_hand_is_found_where_it_is_and_destroy_gives_every_node_back(
    stack: EngineStack, cluster: LabCluster
) -> None:
    """Its card is the processor's own: on the second node the same, behind other lines."""
    in_the_cluster(stack)
    for name, host in stack.config["homelab:hosts"].items():
        host |= {
            "gpus": {"igpu": {"match": "1002:13c0", "use": "lxc"}},
            "iommu": {"enable": False, "passthrough": False},
        }
        host["api"] = api_token(cluster[name])
    stack.config["homelab:allowPlainSecrets"] = True
    stack.config["homelab:containers"] = {"ai": {"host": "home", "ctid": 901, "gpus": ["igpu"]}}
    made = cluster.folder / "pve/nodes/pve1/lxc"
    made.mkdir(exist_ok=True)
    (made / "901.conf").write_text(CONTAINER)
    (made / "901.conf").chmod(0o640)
    stock = cluster.snapshot()
    stack.up()
    assert "dev/dri/renderD" in lxc_conf(cluster, "pve1")

    move(cluster, "pve1", "pve3", LXC)
    refused = stack.preview(ok=False)
    assert "it is on pve3, which has no such card in the settings; pve1, pve2 have" in refused.message
    move(cluster, "pve3", "pve2", LXC)
    moved = stack.up("--refresh")
    assert "container 901 is on pve2 now" in moved.output and "drift" not in moved.output
    assert "what was noted of it goes along" in moved.output
    assert lxc_conf(cluster, "pve2").count("dev/dri/renderD") == 1
    record = "var/lib/homelab/containers/901"
    assert [(cluster[name].root / record).exists() for name in NODES] == [False, True]
    assert stack.up().changed == set()

    move(cluster, "pve2", "pve1", LXC)  # since the last `up`, too
    stack.destroy()
    after = cluster.snapshot()
    assert {name: set(now.items()) ^ set(stock[name].items()) for name, now in after.items()} == dict.fromkeys(
        stock, set()
    )


LXC = "lxc/901.conf"
CONTAINER = "arch: amd64\ncores: 2\nhostname: ai\nmemory: 2048\nostype: debian\nrootfs: local-lvm:vm-901-disk-0,size=8G\nunprivileged: 1\n"


def lxc_conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/{LXC}").read_text()


def conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/qemu-server/103.conf").read_text()


def move(cluster: LabCluster, here: str, there: str, file: str = "qemu-server/103.conf") -> None:
    """As a migration of a guest that is off leaves it, its disks on a storage that both have."""
    to = cluster.folder / f"pve/nodes/{there}/{file}"
    to.parent.mkdir(exist_ok=True)
    (cluster.folder / f"pve/nodes/{here}/{file}").rename(to)
