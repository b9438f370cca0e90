"""Nodes of one cluster: never two of them restart at a time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lab.api.guests import Guest
from lab.cluster import LabCluster
from lab.engine import install
from lab.host.cluster import Cluster
from lab.host.state import HostState
from tests.engine_stack import EngineStack, name_of
from tests.lab.stack_kit import TEMPLATE, host_settings, put_template

NODES = ("pve1", "pve2")
ALL = ("pve1", "pve2", "pve3")
TURN = "homelab/turn"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LabCluster]:
    with LabCluster.start("three", tmp_path / "cluster") as started:
        yield started


def stack_of(folder: Path, engine: install.Engine, config: dict[str, Any]) -> EngineStack:
    folder.mkdir()
    made = EngineStack(folder, engine, config)
    made.create()
    return made


Seen = TypeVar("Seen")


@contextmanager
def sampled(look: Callable[[], Seen]) -> Iterator[set[Seen]]:
    """What ``look`` finds meanwhile, every 10 ms."""
    seen: set[Seen] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            seen.add(look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def watched(cluster: LabCluster) -> AbstractContextManager[set[tuple[bool, frozenset[str]]]]:
    """What the third node sees meanwhile: whether it has a quorum, and which of the others are away."""
    shared = Cluster(cluster.folder)
    return sampled(lambda: (shared.is_quorate("pve3"), frozenset(NODES) - shared.seen_by("pve3")))


def one_at_a_time(*names: str) -> set[tuple[bool, frozenset[str]]]:
    return {(True, frozenset()), *((True, frozenset({name})) for name in names)}


def boots(cluster: LabCluster) -> list[int]:
    return [len(cluster[name].boots()) for name in ALL]


def started(cluster: LabCluster, node: str, vmid: int) -> float | None:
    """When a VM that runs on a node was started."""
    return Guest(HostState(cluster.folder / "nodes" / node), "qemu", vmid).started_at


def given_back(cluster: LabCluster, stock: dict[str, Any]) -> bool:
    """Has every node, and what they share, all that it had at first, and nothing else?"""
    after = cluster.snapshot()
    assert {name: set(now.items()) ^ set(stock[name].items()) for name, now in after.items()} == dict.fromkeys(
        stock, set()
    )
    return True


@pytest.mark.one_of("a cluster")
def test_three_nodes_from_stock_to_a_vm_and_a_container_with_cards_in_one_up(
    tmp_path: Path, engine: install.Engine, cluster: LabCluster
) -> None:
    """Proxmox VE 9 with a card for a VM, 8 with another one for a container, 9 without a card, for which alone nothing has to restart.

    The settings say nothing of a cluster, so that the engine changes the nodes at once, as several stacks would: one's script waits for the
    other's.
    """
    hosts = {name: host_settings(cluster[name]) for name in ALL}
    hosts["pve1"]["gpus"] = {"gpu": {"match": "10de:2b85"}}
    hosts["pve2"]["gpus"] = hosts["pve1"]["gpus"] | {"igpu": {"match": "1002:13c0", "use": "lxc"}}
    put_template(cluster["pve2"])
    create = {"ostemplate": f"local:vztmpl/{TEMPLATE}", "rootfs": "local-lvm:32"}
    made = stack_of(
        tmp_path / "stack",
        engine,
        {
            "homelab:hosts": hosts,
            "homelab:vms": {"sandbox": {"host": "pve1", "vmid": 103, "gpus": ["gpu"], "power": "running"}},
            "homelab:containers": {"ai": {"host": "pve2", "ctid": 300, "gpus": ["igpu"], "create": create}},
        },
    )
    stock = cluster.snapshot()
    with watched(cluster) as seen:
        made.up()
    assert boots(cluster) == [2, 2, 1] and seen == one_at_a_time(*NODES)
    assert "status: running" in cluster["pve1"].run("qm status 103").stdout
    assert "hostpci0: mapping=gpu,pcie=1" in conf(cluster, "pve1")
    node = made.output()["containers"]["ai"]["cards"]["igpu"][0]
    cluster["pve2"].run(f"pct exec 300 -- dd if={node} of={node} count=0 conv=notrunc")
    made.destroy_as_left()
    assert given_back(cluster, stock)


@pytest.mark.one_of("a cluster")
def test_nodes_restart_in_turn_and_guests_go_on_or_move_with_the_settings(
    tmp_path: Path, engine: install.Engine, subtests: pytest.Subtests
) -> None:
    """Guests are shut down, and started again. A VM with a card of its own and a container with the processor's
    that somebody has moved are refused until the settings name their host: on the second node the same, behind other lines.

    The roll stops where a node isn't restarted. Whose turn it is while one doesn't come back, and afterwards: tests/agent/test_cluster_turn.py.
    """

    def move(cluster: LabCluster, here: str, there: str, file: str) -> None:
        """As a migration of a guest that is off leaves it, its disks on a storage that both have."""
        to = cluster.folder / f"pve/nodes/{there}/{file}"
        to.parent.mkdir(exist_ok=True)
        (cluster.folder / f"pve/nodes/{here}/{file}").rename(to)

    def with_a_card(cluster: LabCluster, *names: str) -> dict[str, Any]:
        """Hosts with their cards for VMs: each needs a restart."""
        return {name: host_settings(cluster[name]) | {"gpus": {"gpu": {"match": "10de:2b85"}}} for name in names}

    with LabCluster.start("three", tmp_path / "cluster") as cluster:
        stack = stack_of(tmp_path / "stack", engine, {"homelab:hosts": with_a_card(cluster, *NODES)})
        for host in stack.config["homelab:hosts"].values():
            host["cluster"] = "home"
            host["gpus"]["igpu"] = {"match": "1002:13c0", "use": "lxc"}
        stack.config["homelab:vms"] = {"sandbox": {"host": "pve1", "vmid": 103, "gpus": ["gpu"]}}
        stack.config["homelab:containers"] = {"ai": {"host": "pve1", "ctid": 901, "gpus": ["igpu"]}}

        # One that ran without `onboot`, and two that get cards.
        cluster["pve2"].run("qm create 105 --name web --memory 512 && qm set 105 --onboot 0 && qm start 105")
        made = cluster.folder / "pve/nodes/pve1/lxc"
        made.mkdir(exist_ok=True)
        (made / "901.conf").write_text(CONTAINER)
        (made / "901.conf").chmod(0o640)
        cluster["pve1"].run(
            f"pvesh create /cluster/mapping/pci --id gpu --description theirs --map {THEIRS[0]} --map {THEIRS[1]}"
        )

        began, stock = started(cluster, "pve2", 105), cluster.snapshot()

        # Nodes restart one after another while their guests go on.
        stack.config["homelab:hosts"]["pve1"]["reboot"] = "manual"
        with subtests.test("the roll stops at a node that waits for its owner"):
            assert "reboot pve1 when it suits you" in stack.up(ok=False).message
            assert boots(cluster) == [1, 1, 1]
        del stack.config["homelab:hosts"]["pve1"]["reboot"]
        with watched(cluster) as seen:
            done = stack.up()
        with subtests.test("one node after the other"):
            assert boots(cluster) == [2, 2, 1] and seen == one_at_a_time(*NODES)
            assert "it stops VM 105 (web)" in done.output
            assert "status: running" in cluster["pve2"].run("qm status 105").stdout
            assert began and (started(cluster, "pve2", 105) or 0) > began
            named = [name for _, name in done.steps]
            assert named.index("pve1-booted") < [name for _, name in done.planned].index("pve2-reboot")
            assert not (cluster.folder / "pve" / TURN).exists()
        # Whoever forgets a node (`pulumi state delete --target-dependents`) keeps the others.
        with subtests.test("no node depends on another one"):
            needed = {
                one
                for resource in stack.resources()
                if name_of(resource["urn"]).startswith("pve2")
                for one in resource.get("dependencies", [])
            }
            assert needed and not [one for one in needed if name_of(one).startswith("pve1")]
        with subtests.test("the cards, and the lines of others"):
            assert "hostpci0: mapping=gpu,pcie=1" in conf(cluster, "pve1")
            assert "dev/dri/renderD" in lxc_conf(cluster, "pve1")
            mapping = (cluster.folder / "pve/mapping/pci.cfg").read_text()
            assert [line.split("node=")[1][:4] for line in mapping.splitlines() if "map " in line] == [
                "pve1",
                "pve3",
                "pve2",
            ]
            assert THEIRS[1] in mapping and THEIRS[0] not in mapping

        # Guests move with the settings.
        cluster["pve1"].run("qm stop 103")
        for file in (VM, LXC):
            move(cluster, "pve1", "pve2", file)
        refused = stack.up("--refresh", ok=False).message
        with subtests.test("guests that somebody has moved"):
            assert re.search("VM 103 .*pve2.* pve1", refused) and re.search("container 901 .*pve2.* pve1", refused)
        for section, guest in (("vms", "sandbox"), ("containers", "ai")):
            stack.config[f"homelab:{section}"][guest]["host"] = "pve2"
        assert "sandbox-cards" in stack.up().changed
        with subtests.test("guests that move with the settings"):
            assert "hostpci0: mapping=gpu,pcie=1" in conf(cluster, "pve2")
            assert lxc_conf(cluster, "pve2").count("dev/dri/renderD") == 1
            assert stack.up().changed == set()

        stack.destroy()
        for file in (VM, LXC):
            move(cluster, "pve2", "pve1", file)
        assert given_back(cluster, stock)


# Somebody else's mapping: an entry of the third node, and one of the first that has another group.
THEIRS = (
    "id=10de:2b85,iommugroup=7,node=pve1,path=0000:01:00,subsystem-id=1043:89e3",
    "id=10de:2b85,iommugroup=7,node=pve3,path=0000:01:00,subsystem-id=1043:89e3",
)


VM, LXC = "qemu-server/103.conf", "lxc/901.conf"
CONTAINER = "arch: amd64\ncores: 2\nhostname: ai\nmemory: 2048\nostype: debian\nrootfs: local-lvm:vm-901-disk-0,size=8G\nunprivileged: 1\n"


def lxc_conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/{LXC}").read_text()


def conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/qemu-server/103.conf").read_text()
