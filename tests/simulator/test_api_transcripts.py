"""The lab's API answers as a real node's did: every recorded exchange, sent again.

lab/api/COVERAGE.md lists the lines that are treated otherwise, and why. With PVE_TEST_URL (`https://host:8006`),
PVE_TEST_TOKEN (`root@pam!name=secret`) and PVE_TEST_NODE the reads and the refusals are sent to that node instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from tests.conftest import PROJECT, shared
from tests.simulator.api_replay import Client, Replay, coverage, recorded

NAMES = (
    "auth_and_mapping",
    "qemu_config",
    "qemu_start_and_pending",
    "qemu_start_with_gpu",
    "lxc_config",
    "lxc_start_with_devices",
    "reads",
)
#: Who answers: pvedaemon, on the host itself, as pveproxy does over the network, but for what a ticket needs beside it.
DOORS = (("auth_and_mapping", "https"), *((name, "inside") for name in NAMES))
GPU0 = "node=pve1,path=0000:01:00,id=10de:2684,iommugroup=16,subsystem-id=1043:88e2"
GPU1 = "node=pve1,path=0000:41:00,id=10de:2684,iommugroup=42,subsystem-id=1043:88e2"
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


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab.start("recorded-node", state=tmp_path / "lab") as started:
        yield started


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with closing(client_of(lab, "https")) as made:
        yield made


def client_of(lab: Lab, door: str) -> Client:
    """The recording's callers, on the lab: root by ticket, and root's token `bench`."""
    api = lab.api
    made = Client(api["url"] if door == "inside" else f"https://127.0.0.1:{api['port']}", api["caFile"])
    made.log_in(api["user"], api["password"])
    token = made.data("root", "POST", "/access/users/root@pam/token/bench", privsep=0)
    made.use_token("roottoken", token["full-tokenid"], token["value"])
    return made


def prepare(lab: Lab, client: Client, name: str) -> dict[int, Callable[[], object]]:
    """Bring the lab to the state in which a transcript begins; return what is to be done before some of its lines."""
    if name in ("qemu_start_and_pending", "qemu_start_with_gpu", "reads"):
        client.data("roottoken", "POST", "/cluster/mapping/pci", id="gpu0", map=GPU0)
    if name in ("qemu_start_with_gpu", "reads"):
        client.data("roottoken", "POST", "/cluster/mapping/pci", id="pool", map=[GPU0, GPU1])
    if name in ("lxc_start_with_devices", "reads"):
        lab.run("mkdir -p $ROOT/dev/dri && touch $ROOT/dev/dri/renderD128")
        lab.run("cat >$ROOT/etc/pve/lxc/201.conf", stdin=CONTAINER)
    if name == "reads":
        prepare_reads(lab, client)
    if name == "qemu_start_and_pending":
        return {44: lambda: lab.run("rm -r $ROOT/sys/class/iommu/*")}
    if name == "lxc_config":
        failure = "vzstart=command 'systemctl start pve-container@200' failed: exit code 1"
        return {65: lambda: lab.fault("task-fails", failure)}
    return {}


def prepare_reads(lab: Lab, client: Client) -> None:
    """What the recording node held in the end."""
    for user, path, roles in (
        ("ctops@pve", "/", "PVEVMAdmin,PVEDatastoreUser"),
        ("ops@pve", "/", "PVEVMAdmin,PVEDatastoreUser"),
        ("lim@pve", "/vms/100", "PVEVMUser"),
    ):
        client.data("roottoken", "POST", "/access/users", userid=user)
        client.data("roottoken", "PUT", "/access/acl", path=path, roles=roles, users=user)
    client.data("roottoken", "POST", "/access/roles", roleid="HW", privs="VM.Config.HWType VM.Audit")
    client.data("roottoken", "PUT", "/storage/local", content="images,rootdir,vztmpl,iso,backup,snippets")
    lab.run(
        "printf 'cores: 2\\nmemory: 4096\\nname: renamed\\nscsi0: local:100/vm-100-disk-0.raw,size=1G\\ntags: a;b\\n'"
        " >$ROOT/etc/pve/qemu-server/100.conf; printf 'hostpci0: 0000:01:00\\n' >$ROOT/etc/pve/qemu-server/105.conf;"
        "for id in 110 111 112; do printf 'memory: 128\\nname: v%s\\n' $id >$ROOT/etc/pve/qemu-server/$id.conf; done;"
        "printf 'memory: 301\\nrootfs: local:200/subvol-200-disk-0.subvol,size=0T\\n' >$ROOT/etc/pve/lxc/200.conf"
    )
    replay = Replay(client, "reads", {})
    replay.wait(client.data("roottoken", "POST", "/nodes/pve1/qemu/110/status/stop"))


@pytest.mark.parametrize(("name", "door"), DOORS)
def test_the_lab_answers_as_the_recorded_node(lab: Lab, name: str, door: str) -> None:
    path = shared("pve_api", "transcripts", f"{name}.jsonl")

    def shell(command: str) -> str:
        return lab.run(command.partition("; tail")[0].replace("/etc/pve", "$ROOT/etc/pve")).stdout

    treatments = coverage(PROJECT / "lab/api/COVERAGE.md")
    if door == "inside":
        treatments["auth_and_mapping", 9] = "not sent"  # pveproxy alone asks for a CSRF token
    with closing(client_of(lab, door)) as client:
        replay = Replay(client, name, treatments, shell)
        replay.before = prepare(lab, client, name)
        replay.run(path)
    assert replay.sent > 0
    assert not replay.differences, f"{len(replay.differences)} differences:\n" + "\n".join(replay.differences)


def test_the_coverage_page_counts_the_lines_that_are_sent() -> None:
    page = PROJECT / "lab/api/COVERAGE.md"
    treated = coverage(page)
    total = {name: len(shared("pve_api", "transcripts", f"{name}.jsonl").read_text().splitlines()) for name in NAMES}
    assert all(1 <= line <= total[name] for name, line in treated), "a line of the page is not in the transcript"
    left_out = sum(treatment == "not sent" for treatment in treated.values())
    text = page.read_text(encoding="utf-8")
    assert f"{sum(total.values()) - left_out} of {sum(total.values())} lines are sent" in text


def real_node() -> tuple[Client, str] | None:
    url, token, node = (os.environ.get(f"PVE_TEST_{name}") for name in ("URL", "TOKEN", "NODE"))
    if not (url and token):
        return None
    client = Client(url, os.environ.get("PVE_TEST_CA"), verify="PVE_TEST_CA" in os.environ)
    identity, _, secret = token.partition("=")
    client.use_token("roottoken", identity, secret)
    return client, node or "pve"


def harmless_differences(client: Client, node: str) -> list[str]:
    """Send what changes nothing: it reads, or is refused for its parameters before anything is done."""
    replay = Replay(client, "another node", {})
    for name in ("reads", "auth_and_mapping", "qemu_config", "lxc_config"):
        for number, line in recorded(shared("pve_api", "transcripts", f"{name}.jsonl")):
            if not is_harmless(name, line):
                continue
            asked = json.loads(json.dumps(line).replace("pve1", node))
            treatment = "another installation" if asked["status"] == 200 else ""
            replay.differences += [f"{name}:{number}: {text}" for text in replay.compare(asked, treatment)]
            replay.sent += 1
    assert replay.sent > 35
    return replay.differences


def is_harmless(name: str, line: dict[str, Any]) -> bool:
    """Whether a recorded request can't change a node, and doesn't depend on what was done before it."""
    if "shell" in line or line.get("who", "roottoken") not in (None, "bad", "bad2", "bad3", "roottoken"):
        return False
    if re.search(r"/(?:qemu|lxc)/\d+/", line["path"] + "/") or line.get("method") == "DELETE":
        return False  # a guest of that number may be somebody's
    if "password" in (line.get("params") or {}):
        return False  # a wrong password may get its sender locked out
    return name == "reads" or line["status"] in (401, 501) or line["reason"] == "Parameter verification failed."


@pytest.mark.skipif(real_node() is None, reason="PVE_TEST_URL and PVE_TEST_TOKEN name no real node")
def test_a_real_node_answers_reads_and_refusals_as_recorded() -> None:
    found = real_node()
    assert found is not None
    client, node = found
    try:
        differences = harmless_differences(client, node)
    finally:
        client.close()
    assert not differences, "\n".join(differences)


def test_what_is_sent_to_a_real_node_is_answered_by_a_lab_and_changes_nothing(lab: Lab, client: Client) -> None:
    before = lab.snapshot("etc/pve")
    differences = harmless_differences(client, "pve1")
    assert not differences, "\n".join(differences)
    assert lab.snapshot("etc/pve") == before
