"""Several labs as the nodes of one cluster: what they share, who answers for whom, what is left when one of them is gone.

What a node says is held to the recording of a real cluster of three (tests/simulator/test_api_recordings.py, as far as one node can say it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException

from homelab.remote import ssh
from lab.api.guests import Guest
from lab.cluster import LabCluster
from lab.host.state import HostState
from tests.lab.test_proxmox_api import host_of
from tests.simulator.test_api import connect
from tests.simulator.test_pvedaemon import session

CARD = "node={},path=0000:01:00,id=10de:2b85"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster.start("three", tmp_path_factory.mktemp("cluster") / "three") as started:
        yield started


@pytest.fixture(autouse=True)
def whole(cluster: LabCluster) -> Iterator[None]:
    yield
    for lab in cluster.nodes.values():
        lab.fault("cut-off", None)


def api(cluster: LabCluster, name: str = "pve1", **changes: Any) -> ProxmoxAPI:
    return connect(cluster[name], **changes)


def quorate(cluster: LabCluster, name: str) -> tuple[int, set[str]]:
    """Whether a node has a quorum, and the nodes that it calls online."""
    found = api(cluster, name).cluster.status.get()
    return found[0]["quorate"], {one["name"] for one in found[1:] if one["online"]}


def test_each_node_knows_all_of_them_and_which_it_is(cluster: LabCluster) -> None:
    for name in cluster.nodes:
        first, *nodes = api(cluster, name).cluster.status.get()
        assert first == {"id": "cluster", "type": "cluster", "name": "homelab", "nodes": 3, "quorate": 1, "version": 3}
        assert {one["name"]: (one["nodeid"], one["ip"], one["online"], one["local"]) for one in nodes} == {
            other: (number, f"192.168.0.20{number}", 1, int(other == name))
            for number, other in enumerate(("pve1", "pve2", "pve3"), 1)
        }


def test_pvedaemon_answers_for_its_own_node_alone(cluster: LabCluster) -> None:
    with session(cluster["pve1"]) as ssh:
        assert ssh.api.nodes("pve1").qemu.get() is not None
        for path in ("/nodes/pve2/qemu", "/cluster/mapping/pci?check-node=pve2"):
            answer = ssh.ask("GET", f"/api2/json{path}")
            assert (answer.status_code, answer.reason) == (500, "proxy not allowed")
        assert "hostname lookup 'pve9' failed" in ssh.ask("GET", "/api2/json/nodes/pve9/qemu").reason
        ticket = ssh.ticket
    with session(cluster["pve2"]) as other:
        other.ticket = ticket
        assert other.ask("GET", "/api2/json/nodes/pve2/qemu").status_code == 200


def test_a_mapping_that_one_node_makes_is_the_others_and_each_checks_its_own_hardware(cluster: LabCluster) -> None:
    api(cluster, "pve2").cluster.mapping.pci.post(id="gpu", map=[CARD.format("pve1"), CARD.format("pve3")])
    try:
        assert api(cluster, "pve3").cluster.mapping.pci("gpu").get()["map"] == [
            CARD.format("pve1"),
            CARD.format("pve3"),
        ]
        assert "pve2" in api(cluster).cluster.mapping.pci.get(**{"check-node": "pve2"})[0]["checks"][0]["message"]
    finally:
        api(cluster, "pve3").cluster.mapping.pci("gpu").delete()
    assert api(cluster).cluster.mapping.pci.get() == []


def test_a_vm_that_somebody_migrates_goes_on_or_is_kept_by_its_card(cluster: LabCluster) -> None:
    """Words as recorded of a real cluster."""
    here, there = api(cluster, "pve1").nodes("pve1"), api(cluster, "pve2")
    cluster["pve1"].run("qm create 150 --memory 512 && qm start 150")
    began = Guest(HostState(cluster.folder / "nodes/pve1"), "qemu", 150).started_at
    cluster["pve1"].run("qm migrate 150 pve2 --online 1")
    assert there.nodes("pve2").qemu(150).status.current.get()["status"] == "running"
    assert Guest(HostState(cluster.folder / "nodes/pve2"), "qemu", 150).started_at == began
    cluster["pve1"].run("pvesh create /nodes/pve2/qemu/150/migrate --target pve1 --online 1")  # by that node, over SSH
    assert (
        here.qemu(150).status.current.get()["status"] == "running" and here.qemu(150).config.get().get("lock") is None
    )
    cluster["pve1"].run("qm stop 150; qm set 150 --hostpci0 0000:01:00")
    refused = cluster["pve1"].run("qm migrate 150 pve2", check=False)
    assert refused.returncode != 0 and "can't migrate VM which uses local devices: hostpci0" in refused.stderr
    cluster["pve1"].run("qm destroy 150")


def test_a_token_and_a_ticket_of_one_node_are_good_at_every_node(cluster: LabCluster) -> None:
    api(cluster, "pve1").access.users.post(userid="ops@pve", password="correct horse")
    assert api(cluster, "pve3", user="ops@pve", password="correct horse").version.get()
    assert len({cluster[name].api["tokenSecret"] for name in cluster.nodes}) == 1


def test_all_certificates_are_of_one_authority_and_no_two_are_the_same(cluster: LabCluster) -> None:
    for name in cluster.nodes:
        assert api(cluster, name, verify_ssl=cluster["pve1"].api["caFile"]).version.get()
    assert len({cluster[name].api["fingerprint"] for name in cluster.nodes}) == 3


def test_a_guest_of_another_node_is_made_asked_started_and_removed_through_any_node(cluster: LabCluster) -> None:
    here = api(cluster, "pve1")
    done(here, "pve3", here.nodes("pve3").qemu.post(vmid=300, name="far", memory=512))
    assert (cluster["pve1"].root / "etc/pve/nodes/pve3/qemu-server/300.conf").exists()
    assert here.nodes("pve3").qemu(300).config.get()["name"] == "far"
    done(here, "pve3", here.nodes("pve3").qemu(300).status.start.post())
    for name in cluster.nodes:
        (found,) = [one for one in api(cluster, name).cluster.resources.get(type="vm") if one["vmid"] == 300]
        assert (found["node"], found["status"]) == ("pve3", "running")
    assert [one for one in cluster["pve3"].commands()] == [], "it was the API that was asked"
    with pytest.raises(ResourceException, match="VM 300 already exists on node 'pve3'"):
        api(cluster, "pve2").nodes("pve2").qemu.post(vmid=300)
    done(here, "pve3", here.nodes("pve3").qemu(300).status.stop.post())
    done(here, "pve3", here.nodes("pve3").qemu(300).delete())


def done(at: ProxmoxAPI, node: str, upid: str) -> None:
    """Wait for a task's good end."""
    assert upid.startswith(f"UPID:{node}:")
    while (found := at.nodes(node).tasks(upid).status.get())["status"] == "running":
        pass
    assert found["exitstatus"] == "OK", found


def test_a_node_that_is_off_is_out_of_reach_and_two_of_three_go_on(cluster: LabCluster) -> None:
    api(cluster, "pve3").nodes("pve3").status.post(command="shutdown")
    cluster["pve3"].wait_settled()
    try:
        assert quorate(cluster, "pve1") == (1, {"pve1", "pve2"})
        with pytest.raises(ResourceException, match="595"):
            api(cluster).nodes("pve3").status.get()
        assert {one["node"]: one["status"] for one in api(cluster).nodes.get()}["pve3"] == "offline"
    finally:
        cluster["pve3"].power_cycle()
    assert quorate(cluster, "pve1") == (1, {"pve1", "pve2", "pve3"})


def test_a_node_that_is_cut_off_has_no_quorum_and_may_write_nothing(cluster: LabCluster) -> None:
    cluster["pve1"].fault("cut-off")
    assert quorate(cluster, "pve1") == (0, {"pve1"}) and quorate(cluster, "pve2") == (1, {"pve2", "pve3"})
    with pytest.raises(ResourceException, match="cluster not ready - no quorum"):
        api(cluster, "pve1").nodes("pve1").qemu.post(vmid=301)
    api(cluster, "pve2").access.users.post(userid="late@pve")
    cluster["pve1"].fault("cut-off", None)
    assert "late@pve" in {one["userid"] for one in api(cluster, "pve1").access.users.get()}


def test_when_two_are_gone_the_third_has_no_quorum(cluster: LabCluster) -> None:
    cluster["pve2"].fault("cut-off")
    cluster["pve3"].fault("cut-off")
    assert [quorate(cluster, name)[0] for name in cluster.nodes] == [0, 0, 0]


def test_a_reading_says_whether_a_node_has_a_quorum(cluster: LabCluster) -> None:
    host = host_of(cluster["pve1"])
    read = ssh.read(host, guests=True).cluster
    assert read.quorate and read.described == ", node of the cluster homelab"
    cluster["pve1"].fault("cut-off")
    assert not ssh.read(host, guests=True).cluster.quorate
