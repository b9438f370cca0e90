"""The lab's API answers as a real node's did: every recorded exchange, sent again.

api_not_held.txt lists the lines that are treated otherwise, and why. With PVE_TEST_URL (`http://127.0.0.1:8585`, from where
`ssh -L 8585:127.0.0.1:85` leads to a node), PVE_TEST_TICKET (of root@pam) and PVE_TEST_NODE the reads and the refusals are sent to that
node instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from lab.api.auth import ROOT, ticket
from lab.host.state import HostState
from tests.lab.host_kit import Host
from tests.simulator.api_replay import Client, Replay, recorded
from tests.simulator.recordings import Node, path_of, replay
from tests.simulator.test_api_recordings import GPU0, GPU1

NAMES = (
    "auth_and_mapping",
    "qemu_config",
    "qemu_start_and_pending",
    "qemu_start_with_gpu",
    "lxc_config",
    "lxc_start_with_devices",
    "reads",
)
CONTAINER = """\
arch: amd64
cmode: shell
features: nesting=1
hostname: ct201
memory: 64
ostype: unmanaged
rootfs: local:201/subvol-201-disk-0.subvol,size=0T
swap: 512
unprivileged: 1
"""


def prepare(node: Node, name: str) -> dict[int, Callable[[], object]]:
    """Bring the node to the state in which a transcript begins; return what is to be done before some of its lines."""
    if name in ("qemu_start_and_pending", "qemu_start_with_gpu", "reads"):
        node.done("POST", "/cluster/mapping/pci", id="gpu0", map=GPU0)
    if name in ("qemu_start_with_gpu", "reads"):
        node.done("POST", "/cluster/mapping/pci", id="pool", map=[GPU0, GPU1])
    if name in ("lxc_start_with_devices", "reads"):
        node.write("/dev/dri/renderD128", "")
        node.write("/etc/pve/lxc/201.conf", CONTAINER)
    if name == "reads":
        prepare_reads(node)
    if name == "qemu_config":
        return {70: lambda: node.done("PUT", "/nodes/pve1/qemu/100/config", cores=3)}
    if name == "qemu_start_and_pending":
        return {44: lambda: node.shell("rm -r $HOMELAB_ROOT/sys/class/iommu/*")}
    if name == "lxc_config":
        failure = "vzstart=command 'systemctl start pve-container@200' failed: exit code 1"
        return {65: lambda: node.fault("task-fails", failure)}
    return {}


def prepare_reads(node: Node) -> None:
    """What the recording node held in the end."""
    node.done("PUT", "/storage/local", content="images,rootdir,vztmpl,iso,backup,snippets")
    disk = "scsi0: local:100/vm-100-disk-0.raw,size=1G"
    vms = {100: f"cores: 2\nmemory: 4096\nname: renamed\n{disk}\ntags: a;b\n", 105: "hostpci0: 0000:01:00\n"}
    for vmid, text in (vms | {vmid: f"memory: 128\nname: v{vmid}\n" for vmid in (110, 111, 112)}).items():
        node.write(f"/etc/pve/qemu-server/{vmid}.conf", text)
    node.write("/etc/pve/lxc/200.conf", "memory: 301\nrootfs: local:200/subvol-200-disk-0.subvol,size=0T\n")
    node.power(110, "stop")


@pytest.mark.parametrize("name", NAMES)
def test_the_lab_answers_as_the_recorded_node(tmp_path: Path, name: str) -> None:
    node = Node(Host(tmp_path / "lab", "recorded-node", running=True))
    replay(node, name, prepare(node, name)).check()


def real_node() -> tuple[Client, str] | None:
    url, its_ticket, node = (os.environ.get(f"PVE_TEST_{name}") for name in ("URL", "TICKET", "NODE"))
    return (Client(url, its_ticket), node or "pve") if url and its_ticket else None


def harmless_differences(client: Client, node: str) -> list[str]:
    """Send what changes nothing: it reads, or is refused for its parameters before anything is done."""
    one, sent, found = Replay(client), 0, list[str]()
    for name in ("reads", "auth_and_mapping", "qemu_config", "lxc_config"):
        for number, line in recorded(path_of(name)):
            if not is_harmless(name, line):
                continue
            asked = json.loads(json.dumps(line).replace("pve1", node))
            treatment = "another installation" if asked["status"] == 200 else ""
            found += [f"{name}:{number}: {text}" for text in one.compare(asked, treatment)]
            sent += 1
    assert sent > 20
    return found


def is_harmless(name: str, line: dict[str, Any]) -> bool:
    """Whether a recorded request can't change a node, and doesn't depend on what was done before it."""
    if not line or "shell" in line:
        return False
    if re.search(r"/(?:qemu|lxc)/\d+/", line["path"] + "/") or line.get("method") == "DELETE":
        return False  # a guest of that number may be somebody's
    return name == "reads" or line["status"] == 501 or line["reason"] == "Parameter verification failed."


@pytest.mark.skipif(real_node() is None, reason="PVE_TEST_URL and PVE_TEST_TICKET name no real node")
def test_a_real_node_answers_reads_and_refusals_as_recorded() -> None:
    found = real_node()
    assert found is not None
    client, node = found
    try:
        differences = harmless_differences(client, node)
    finally:
        client.close()
    assert not differences, "\n".join(differences)


def test_what_is_sent_to_a_real_node_is_answered_by_a_lab_and_changes_nothing(tmp_path: Path) -> None:
    with Lab.start("recorded-node", state=tmp_path / "lab") as lab:
        before = lab.snapshot("etc/pve")
        with closing(Client(lab.api["url"], ticket(HostState(lab.state), ROOT))) as client:
            differences = harmless_differences(client, "pve1")
        assert not differences, "\n".join(differences)
        assert lab.snapshot("etc/pve") == before
