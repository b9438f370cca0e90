"""The lab answers as the later recordings have it: states, rights, command lines, other paths, a cluster, Proxmox VE 8.

api_not_held.txt lists the exchanges to which the lab isn't held, each with the reason; whatever isn't in it is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.scenario import load_scenario, scenario_from
from tests.lab.host_kit import Host
from tests.simulator.api_replay import Replay, recorded
from tests.simulator.recordings import Node, not_held, path_of, replay

GPU0 = "node=pve1,path=0000:01:00,id=10de:2684,iommugroup=16,subsystem-id=1043:88e2"
GPU1 = "node=pve1,path=0000:41:00,id=10de:2684,iommugroup=42,subsystem-id=1043:88e2"
TEMPLATE = "/var/lib/vz/template/cache/debian-12-standard_12.7-1_amd64.tar.gz"


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.api.guests.BOOT_SECONDS", 0.0)
    monkeypatch.setattr("lab.api.hooks.time.sleep", lambda _: None)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return a_node(tmp_path)


def a_node(folder: Path, **changes: Any) -> Node:
    """The recorded node, with what its storage held."""
    data = load_scenario("recorded-node").model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    made = Node(
        Host(folder / "lab", scenario_from({**data, **changes}, "recorded-node", "recorded-node"), running=True)
    )
    made.done("PUT", "/storage/local", content="images,rootdir,vztmpl,iso,backup,snippets,import")
    made.write("/var/lib/vz/import/noble.qcow2", "")
    for name, script in (("h", "true"), ("ok", 'echo "GUEST HOOK: $*"'), ("no", "echo says no; exit 3")):
        made.write(f"/var/lib/vz/snippets/{name}.sh", f"#!/bin/sh\n{script}\n", 0o755)
    made.write(TEMPLATE, "a container's root file system\n")
    return made


# -- what the recordings' makers did between two lines without writing it down -------------------------------------------
def then(*steps: Callable[[], object]) -> Callable[[], object]:
    return lambda: [step() for step in steps]


def before_qemu_states(node: Node) -> dict[int, Callable[[], object]]:
    def off(vmid: int) -> Callable[[], object]:
        return lambda: node.power(vmid, "stop")

    def on(vmid: int) -> Callable[[], object]:
        return lambda: node.power(vmid, "start")

    def fault(name: str, value: Any) -> Callable[[], object]:
        return lambda: node.fault(name, value)

    def made(vmid: int, **options: Any) -> Callable[[], object]:
        return lambda: node.vm(vmid, **options)

    def change(vmid: int, **options: Any) -> Callable[[], object]:
        return lambda: node.done("PUT", f"/nodes/pve1/qemu/{vmid}/config", skiplock=1, **options)

    def without_snapshots(vmid: int) -> None:
        path = node.state.rooted(f"/etc/pve/qemu-server/{vmid}.conf")
        path.write_text(re.sub(r"(?m)^parent: .*\n|^\[(?s:.*)", "", path.read_text()))

    node.vm(100)
    node.vm(101)
    held, gpu0 = fault("config-lock", 1), {"hostpci0": "mapping=gpu0,pcie=1"}
    relocked = {number: change(100, delete="lock") for number in (136, 146, 156, 166, 176, 186, 196, 206)}
    return {
        **relocked,
        28: change(101, delete="hostpci0"),
        32: off(101),
        53: change(100, agent=1),
        49: off(101),
        56: on(100),
        58: held,
        77: on(101),
        89: off(100),
        104: on(100),
        219: then(made(100, **gpu0), change(100, lock="backup")),
        225: on(100),
        135: lambda: without_snapshots(100),
        230: then(made(109), change(109, template=1)),
        271: off(100),
        300: fault("guest-ignores-shutdown", True),
        309: held,
        321: then(on(100), held),
        329: held,
        330: held,
        333: held,
        337: change(100, **gpu0),
        344: then(off(100), made(103, running=True, **gpu0), change(103, lock="backup")),
        361: change(103, lock="snapshot"),
        377: change(103, lock="migrate"),
        393: change(103, lock="suspended"),
        410: then(change(103, delete="lock"), fault("guest-ignores-shutdown", None)),
        433: off(103),
        437: then(off(103), lambda: node.remove("/var/lib/vz/snippets/no.sh")),
        442: change(103, delete="hookscript"),
        446: then(off(103), change(103, **gpu0)),
        467: then(fault("guest-ignores-shutdown", True), on(103)),
        474: lambda: without_snapshots(103),
        475: then(fault("guest-ignores-shutdown", None), off(103)),
        486: then(off(101), made(104, running=True, hostpci0="mapping=gpu1,pcie=1")),
        498: then(made(105), made(106, scsi0="local:1")),
        500: on(105),
    }


def before_cli(node: Node) -> dict[int, Callable[[], object]]:
    others = (100, 101, 103, 109)
    for vmid in others:
        node.vm(vmid)
    node.done("POST", "/cluster/mapping/pci", id="gpu0", map=GPU0)

    def remove_others() -> None:
        for vmid in others:
            node.done("DELETE", f"/nodes/pve1/qemu/{vmid}")

    return {45: remove_others}


_DISK_AND_NET = (
    "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:18:87:5B,ip=dhcp,type=veth",
    "rootfs: local:110/subvol-110-disk-0.subvol,size=0T",
)
MEMBERS = {f"pve{n}": {"id": n, "online": 1, "ip": f"10.219.77.{n + 1}"} for n in (1, 2, 3)}
GUEST = "boot:  \nmachine: q35\nmemory: 512\nname: {}\nostype: l26\n"


def before_cluster(node: Node) -> dict[int, Callable[[], object]]:
    def members(**changes: Any) -> Callable[[], object]:
        nodes = {name: {**about, "online": int(name not in changes.get("down", ()))} for name, about in MEMBERS.items()}
        text = json.dumps(
            {"cluster": {"name": "bench", "version": 3, "quorate": changes.get("quorate", 1)}, "nodelist": nodes}
        )
        return lambda: node.write("/etc/pve/.members", text)

    def remote(name: str, vmid: int) -> Callable[[], object]:
        return lambda: node.write(f"/etc/pve/nodes/{name}/qemu-server/{vmid}.conf", GUEST.format(f"on{name}"))

    def gone(name: str, vmid: int) -> Callable[[], object]:
        return lambda: node.state.rooted(f"/etc/pve/nodes/{name}/qemu-server/{vmid}.conf").unlink()

    def container() -> None:
        lines = ("arch: amd64", "hostname: c110", "memory: 256", "ostype: debian", "swap: 0", *_DISK_AND_NET)
        node.write("/etc/pve/lxc/110.conf", "".join(f"{line}\n" for line in lines))

    def start_container() -> None:
        node.done("POST", "/nodes/pve1/lxc/110/status/start")

    def guests() -> None:
        node.vm(100, name="onnode1", balloon=0, ostype=None)
        node.vm(101, name="running1", running=True)
        node.vm(102, name="running2", running=True)
        container()

    members()()
    return {
        59: remote("pve2", 200),
        105: gone("pve2", 200),
        228: then(remote("pve2", 200), remote("pve3", 300), guests, members(down=("pve3",))),
        256: members(),
        258: members(down=("pve2", "pve3"), quorate=0),
        340: members(),
        368: then(lambda: node.power(101, "start"), start_container, members(quorate=0)),
        389: members(),
    }


BEFORE: dict[str, Callable[[Node], dict[int, Callable[[], object]]]] = {
    "qemu_states": before_qemu_states,
    "cli": before_cli,
    "cluster": before_cluster,
    "absent": lambda _: {},
}


@pytest.mark.parametrize("name", BEFORE)
def test_the_lab_answers_as_it_was_recorded_later(node: Node, name: str) -> None:
    replay(node, name, BEFORE[name](node)).check()


# -- Proxmox VE 8 and 9 ---------------------------------------------------------------------------------------------------
#: Values that are each node's own; a list of which one entry was written down.
TREATMENTS = {8: "guests alone", 12: "types alone"}


def before_versions(node: Node) -> dict[int, Callable[[], object]]:
    """What there was before a line; a task's id where a line asks for a log whose id wasn't written down."""

    def task_of(vmid: int, verb: str, **options: Any) -> str:
        return str(node.data("POST", f"/nodes/pve1/qemu/{vmid}/{verb}", **options))

    def fails_with(device: str) -> Callable[[], object]:
        def start() -> str:
            node.done("PUT", "/nodes/pve1/qemu/161/config", hostpci0=device)
            return task_of(161, "status/start")

        return start

    def cloned() -> str:
        return task_of(161, "clone", newid=162)

    def alone() -> None:
        node.power(160, "stop")
        for vmid in (160, 162):
            node.done("DELETE", f"/nodes/pve1/qemu/{vmid}")
        node.done("PUT", "/nodes/pve1/qemu/161/config", delete="hostpci0")

    lines = ("arch: amd64", "dev1: /dev/nvidia1,deny-write=1", "hostname: c165", "memory: 256", "ostype: debian")
    node.write("/etc/pve/lxc/165.conf", "\n".join((*lines, "rootfs: local:165/subvol-165-disk-0.subvol,size=0T\n")))
    plain: dict[str, Any] = {"machine": None, "ostype": None}
    node.vm(160, name="a", **plain)
    node.vm(161, name="b", **plain)
    return {
        3: lambda: node.power(160, "start"),
        5: fails_with("mapping=nope"),
        6: fails_with("0000:99:00"),
        7: cloned,
        8: then(alone, lambda: node.state.rooted("/etc/pve/lxc/165.conf").rename(node.state.root / "165")),
        25: lambda: (node.state.root / "165").rename(node.state.rooted("/etc/pve/lxc/165.conf")),
        40: lambda: "UPID:pve1:00000001:00000001:6B010FFF:qmstart:100:root@pam:",
    }


@pytest.mark.parametrize(("key", "changes"), [("v8", {"pve": "8.4", "kernels": ["6.8.12-9-pve"]}), ("v9", {})])
def test_what_differs_between_the_versions_differs_here(tmp_path: Path, key: str, changes: dict[str, Any]) -> None:
    node = a_node(tmp_path, **changes)
    before, listed, one, wrong, compared = before_versions(node), not_held(), Replay(node), [], 0
    for number, line in recorded(path_of("v8_differences")):
        made = before[number]() if number in before else None
        held = listed.get(("v8_differences", number))
        if not line.get(key) or held == "skipped":
            continue
        found = one.version_differences(line, key, str(made), TREATMENTS.get(number, ""), node.shell)
        if held is None:
            compared += 1
            wrong += [f"{number}: {text}" for text in found]
    assert not wrong, f"{len(wrong)} of {compared} differ:\n" + "\n".join(wrong)
    assert compared > 10
