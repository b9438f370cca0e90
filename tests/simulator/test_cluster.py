"""Several labs as the nodes of one cluster: what they share, who answers for whom, what is left when one of them is gone.

What a node says is held to the recording of a real cluster of three (tests/simulator/test_api_recordings.py, as far as one node can say it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from homelab.remote import ssh
from lab import LabError
from lab.cluster import LabCluster
from lab.control import request
from tests.lab.stack_kit import host_of
from tests.simulator.test_pvedaemon import session

CARD = "node={},path=0000:01:00,id=10de:2b85"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster.start("three", tmp_path_factory.mktemp("cluster") / "three") as started:
        yield started


def quorate(cluster: LabCluster, name: str) -> tuple[int, set[str]]:
    """Whether a node has a quorum, and the nodes that it sees."""
    said = cluster[name].run("pvecm status", check=False).stdout
    return int(re.search(r"(?m)^Quorate: +Yes$", said) is not None), {
        f"pve{one}" for one in re.findall(r"192\.168\.0\.20(\d)", said)
    }


def test_each_node_knows_all_of_them_and_which_it_is(cluster: LabCluster) -> None:
    for name in cluster.nodes:
        said = cluster[name].run("pvecm status").stdout
        assert "Name:             homelab\n" in said and "Nodes:            3\n" in said
        assert re.findall(r"(?m)^0x0000000\d .*", said) == [
            f"0x0000000{number}          1 192.168.0.20{number}{' (local)' if other == name else ''}"
            for number, other in enumerate(("pve1", "pve2", "pve3"), 1)
        ]


def test_pvedaemon_answers_for_its_own_node_alone(cluster: LabCluster) -> None:
    with session(cluster["pve1"]) as ssh:
        assert ssh.ask("GET", "/api2/json/nodes/pve1/qemu").status_code == 200
        for path in ("/nodes/pve2/qemu", "/nodes/pve2/tasks"):
            answer = ssh.ask("GET", f"/api2/json{path}")
            assert (answer.status_code, answer.reason) == (500, "proxy not allowed")
        assert "hostname lookup 'pve9' failed" in ssh.ask("GET", "/api2/json/nodes/pve9/qemu").reason
        ticket = ssh.ticket
    with session(cluster["pve2"]) as other:
        other.ticket = ticket
        assert other.ask("GET", "/api2/json/nodes/pve2/qemu").status_code == 200


def test_a_mapping_that_one_node_makes_is_the_others(cluster: LabCluster) -> None:
    mappings, cards = "/cluster/mapping/pci", [CARD.format("pve1"), CARD.format("pve3")]
    cluster["pve2"].ask_api("POST", mappings, id="gpu", map=cards)
    try:
        assert cluster["pve3"].ask_api("GET", f"{mappings}/gpu")["map"] == cards
    finally:
        cluster["pve3"].ask_api("DELETE", f"{mappings}/gpu")
    assert cluster["pve1"].ask_api("GET", mappings) == []


def test_a_file_in_place_of_the_link_to_all_nodes_keys_is_made_the_link_again_and_takes_no_key_away(
    cluster: LabCluster,
) -> None:
    lab, keys = cluster["pve2"], cluster["pve1"].root / "root/.ssh/authorized_keys"
    before = keys.read_text()
    assert [line.rpartition("@")[2] for line in before.splitlines()] == ["pve1", "pve2", "pve3"]
    lab.run("sed -i d ~/.ssh/authorized_keys; echo mine >>~/.ssh/authorized_keys; pvecm updatecerts")
    assert (lab.root / "root/.ssh/authorized_keys").is_symlink() and keys.read_text() == f"{before}mine\n"
    assert [path.name for path in (lab.root / "root/.ssh").iterdir() if path.suffix == ".org"] == []


def test_a_guest_of_another_node_is_known_everywhere_and_its_id_is_taken(cluster: LabCluster) -> None:
    there = cluster["pve3"]
    there.run("qm create 300 --name far --memory 512 && qm start 300")
    assert (cluster["pve1"].root / "etc/pve/nodes/pve3/qemu-server/300.conf").exists()
    for lab in cluster.nodes.values():
        (found,) = [one for one in lab.ask_api("GET", "/cluster/resources", type="vm") if one["vmid"] == 300]
        assert (found["node"], found["status"]) == ("pve3", "running")
    with pytest.raises(LabError, match="VM 300 already exists on node 'pve3'"):
        cluster["pve2"].ask_api("POST", "/nodes/pve2/qemu", vmid=300)
    there.run("qm stop 300 && qm destroy 300")


def test_a_node_that_is_off_is_out_of_reach_and_two_of_three_go_on_but_not_one(cluster: LabCluster) -> None:
    request(cluster["pve3"].state, "poweroff")
    cluster["pve3"].wait_settled()
    try:
        assert quorate(cluster, "pve1") == (1, {"pve1", "pve2"})
        done = cluster["pve1"].run("pvesh get /nodes/pve3/tasks", check=False)
        assert "ssh: connect to host 192.168.0.203 port 22: No route to host" in done.stderr
        nodes = {one["node"]: one["status"] for one in cluster["pve1"].ask_api("GET", "/nodes")}
        assert nodes == {"pve1": "online", "pve2": "online", "pve3": "offline"}
        read = ssh.read(host_of(cluster["pve1"]), guests=True).cluster
        assert read.quorate and read.described == ", node of the cluster homelab"
        request(cluster["pve2"].state, "poweroff")
        cluster["pve2"].wait_settled()
        assert quorate(cluster, "pve1") == (0, {"pve1"})
        with pytest.raises(LabError, match="cluster not ready - no quorum"):
            cluster["pve1"].ask_api("POST", "/nodes/pve1/qemu", vmid=301)
        assert not ssh.read(host_of(cluster["pve1"]), guests=True).cluster.quorate
    finally:
        for name in ("pve2", "pve3"):
            cluster[name].power_cycle()
    assert quorate(cluster, "pve1") == (1, {"pve1", "pve2", "pve3"})
