"""What a node answers in states that are hard to bring about on a real one, and what the lab does to bring them about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.scenario import load_scenario, scenario_from
from tests.lab.host_kit import Host
from tests.simulator.recordings import Node

VM = "/nodes/pve1/qemu/100"
ENTRY = "node=pve1,path=0000:01:00,id=10de:2684,iommugroup=16,subsystem-id=1043:88e2"
HELD = "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(Host(tmp_path_factory.mktemp("node") / "lab", "recorded-node", running=True))


@pytest.fixture
def node(shared_node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node with VM 100, off, that waits for nothing."""
    monkeypatch.setattr("lab.api.guests.BOOT_SECONDS", 0.0)
    monkeypatch.setattr("lab.api.hooks.time.sleep", lambda _: None)
    shared_node.vm(100)
    yield shared_node
    shared_node.host.machine.clear_faults()
    for line in shared_node.shell("qm list")[0].splitlines()[1:]:
        vmid = line.split()[0]
        for command in (f"qm stop {vmid} --skiplock 1", f"qm unlock {vmid}", f"qm destroy {vmid}"):
            shared_node.shell(command)
    for mapping in shared_node.data("GET", "/cluster/mapping/pci"):
        shared_node.done("DELETE", f"/cluster/mapping/pci/{mapping['id']}")


def refused(node: Node, method: str, path: str, **params: Any) -> str:
    """A refusal's status and reason; of a task that was begun, its exit status."""
    reply = node.send(method, path, {name.replace("_", "-"): value for name, value in params.items()})
    if reply.status == 200 and str(reply.body["data"]).startswith("UPID:"):
        return str(node.data("GET", f"/nodes/pve1/tasks/{reply.body['data']}/status")["exitstatus"])
    return f"{reply.status} {reply.reason}"


# -- a configuration's lock ----------------------------------------------------------------------------------------
def test_a_change_that_finds_the_lock_held_is_refused_and_the_next_one_isnt(node: Node) -> None:
    node.fault("config-lock", 2)
    assert [refused(node, "PUT", f"{VM}/config", cores=n) for n in (2, 3, 4)] == [f"500 {HELD}"] * 2 + ["200 OK"]
    assert node.data("GET", f"{VM}/config")["cores"] == 4


def test_a_task_that_finds_the_lock_held_says_that_it_tried(node: Node) -> None:
    node.fault("config-lock", 1)
    upid = node.data("POST", f"{VM}/status/start")
    log = node.data("GET", f"/nodes/pve1/tasks/{upid}/log")
    assert [entry["t"] for entry in log] == ["trying to acquire lock...", f"TASK ERROR: {HELD}"]


def test_reads_arent_held_up_by_the_lock(node: Node) -> None:
    node.fault("config-lock", 1)
    assert node.data("GET", f"{VM}/config")["name"] == "v100"
    assert node.data("GET", f"{VM}/status/current")["status"] == "stopped"
    assert node.host.machine.faults["config-lock"] == 1


def test_a_script_that_holds_the_lock_file_keeps_others_out(node: Node) -> None:
    command = "mkdir -p $HOMELAB_ROOT/run/lock/qemu-server; exec 9>$HOMELAB_ROOT/run/lock/qemu-server/lock-100.conf; flock 9; qm set 100 --tags a"
    done = node.host.run(command)
    assert (done.returncode, done.stderr.strip()) == (255, HELD)


# -- no quorum -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "path", "params", "answer"),
    [
        ("PUT", f"{VM}/config", {"cores": 2}, r"500 unable to open file '.*/100\.conf\.tmp\.\d+' - Permission denied"),
        (
            "PUT",
            "/cluster/mapping/pci/gpu9",
            {"map": ENTRY},
            "500 .* cfs-lock 'file-mapping_pci_cfg' error: no quorum!",
        ),
        ("POST", f"{VM}/status/start", {}, r"500 cluster not ready - no quorum\?"),
        ("DELETE", VM, {}, r"unable to open file '.*/100\.conf\.tmp\.\d+' - Permission denied"),
        ("POST", f"{VM}/status/stop", {}, "OK"),
        ("GET", f"{VM}/config", {}, "200 OK"),
    ],
)
def test_a_node_without_a_quorum_writes_nothing(
    node: Node, method: str, path: str, params: dict[str, Any], answer: str
) -> None:
    before = node.host.run("cd $HOMELAB_ROOT/etc/pve && find . -type f | sort | xargs cat | md5sum").stdout
    node.fault("no-quorum")
    found = refused(node, method, path, **params)
    assert re.fullmatch(answer, found), found
    assert node.host.run("cd $HOMELAB_ROOT/etc/pve && find . -type f | sort | xargs cat | md5sum").stdout == before


# -- what was refused at once, and is a task that fails --------------------------------------------------------------
def test_the_removal_of_a_locked_vm_is_a_task_that_fails(node: Node) -> None:
    node.done("PUT", f"{VM}/config", lock="backup")
    assert refused(node, "DELETE", VM) == "VM is locked (backup)"
    assert node.data("GET", f"{VM}/config")["lock"] == "backup"


def test_the_resizing_of_a_vm_that_isnt_there_is_a_task_that_fails(node: Node) -> None:
    found = refused(node, "PUT", "/nodes/pve1/qemu/999/resize", disk="scsi0", size="+1G")
    assert found == "Configuration file 'nodes/pve1/qemu-server/999.conf' does not exist"


@pytest.mark.parametrize("text", ["two\nlines", "two\rlines"])
def test_a_mappings_description_has_one_line(node: Node, text: str) -> None:
    answer = refused(node, "POST", "/cluster/mapping/pci", id="gpu0", map=ENTRY, description=text)
    assert answer == "500 create hardware mapping failed: property 'description' contains a line feed"
    node.done("POST", "/cluster/mapping/pci", id="gpu0", map=ENTRY)
    answer = refused(node, "PUT", "/cluster/mapping/pci/gpu0", map=ENTRY, description=text)
    assert answer == "500 update hardware mapping failed: property 'description' contains a line feed"


def test_a_container_that_is_off_isnt_stopped_twice(node: Node) -> None:
    node.write("/etc/pve/lxc/200.conf", "arch: amd64\nhostname: c\nmemory: 64\nostype: unmanaged\n")
    for verb in ("stop", "shutdown"):
        assert node.shell(f"pct {verb} 200") == ("CT 200 not running\n", 255)


def test_a_paused_vm_is_resumed_before_it_shuts_down(node: Node) -> None:
    node.power(100, "start")
    node.power(100, "suspend")
    assert node.data("GET", f"{VM}/status/current")["qmpstatus"] == "paused"
    assert refused(node, "POST", f"{VM}/status/shutdown") == "500 VM is paused - cannot shutdown"
    assert node.shell("qm status 100")[0] == "status: paused\n"  # QMP's word, as PVE::CLI::qm prints it
    node.power(100, "resume")
    assert refused(node, "POST", f"{VM}/status/shutdown") == "OK"


# -- Proxmox VE 8 ----------------------------------------------------------------------------------------------------
def test_proxmox_ve_8_has_fewer_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.api.guests.BOOT_SECONDS", 0.0)
    data = load_scenario("recorded-node").model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    old = scenario_from({**data, "pve": "8.4", "kernels": ["6.8.12-9-pve"]}, "recorded-node-8", "recorded-node")
    node = Node(Host(tmp_path / "lab", old, running=True))
    node.vm(100, running=True)
    status = node.data("GET", f"{VM}/status/current")
    assert {"proxmox-support", "running-qemu"} <= set(status)
    assert not [key for key in status if key == "memhost" or key.startswith("pressure")]
