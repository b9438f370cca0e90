"""A VM or a created container that is on another node than before: what is noted of it is found where it was noted, or the run says which node it couldn't ask."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.errors import HomelabError, UnreachableError
from homelab.provider import peers, vm_cards
from homelab.provider.base import GoneError
from homelab.provider.card_mapping import CardMappingWork
from homelab.provider.gpu_lease import GpuLeaseWork
from homelab.provider.new_container import NewContainerWork
from homelab.provider.virtual_machine import VirtualMachineWork
from homelab.provider.vm_cards import VmCardsWork
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.card_mapping import CardMapping
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.new_container import NewContainer
from homelab.resources.virtual_machine import DiskInputs, VirtualMachine
from homelab.resources.vm_cards import VmCards
from homelab.shapes import BootSeen, Record, ShutdownInputs
from homelab.vm.config import Change
from lab.cluster import LabCluster
from tests import forked_agent
from tests.lab.killed_kit import KilledError, killed_after
from tests.lab.test_proxmox_api import Quick, Remembering, host_of
from tests.sampling import sample

VM = 103
SHUTDOWN = ShutdownInputs(timeout=5, otherwise="stop")
CARD = {"gpu": "gpu", "mapping": "gpu", "slot": "0000:01:00"}
GIVEN = "mapping=gpu,pcie=1"
RECORD, POWER = f"ledger/vm/{VM}", f"ledger/power/{VM}"


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster.start("three", tmp_path_factory.mktemp("moved") / "three") as started:
        yield started


@pytest.fixture
def cluster(shared_cluster: LabCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabCluster]:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    forked_agent.in_place_of_what_is_sent(monkeypatch, *shared_cluster.nodes.values())
    shared_cluster["pve1"].run(f"qm stop {VM}")
    yield shared_cluster
    for name in ("pve2", "pve3"):
        (shared_cluster.folder / f"pve/nodes/{name}/qemu-server/{VM}.conf").unlink(missing_ok=True)
        shared_cluster[name].run("rm -rf $ROOT/var/lib/homelab")
    shared_cluster["pve1"].reset()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(peers, "tell", lines.append)
    return lines


def texts(cluster: LabCluster, *, off: str = "", **more: dict[str, Any]) -> dict[str, str]:
    """The stack's configuration; ``off``: of the nodes at whose addresses nobody answers."""
    hosts: dict[str, Any] = {}
    for name, lab in cluster.nodes.items():
        about = host_of(lab).model_dump(mode="json", by_alias=True)
        hosts[name] = about | {"cluster": "home", "gpus": {"gpu": {"match": "10de:2b85"}}}
    for name in off.split():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            hosts[name]["ssh"]["port"] = unused.getsockname()[1]
        hosts[name]["timeouts"]["connect"] = 1
    made = {key: json.dumps(value) for key, value in more.items()}
    return {"hosts": json.dumps(hosts), **made}


def cards_of(node: str, **more: Any) -> VmCards.Inputs:
    about: dict[str, Any] = {
        "cards": [CARD],
        "display": "keep",
        "shared_onboot": False,
        "power": "keep",
        "instance": "",
        "goes_away": False,
    }
    about |= {"boot": BootSeen(id="b", stopped=[], at=0), "machine": "q35", "cluster": "home", **more}
    return VmCards.Inputs(host=node, node=node, vm="sandbox", vmid=VM, shutdown=SHUTDOWN, **about)  # fmt: skip


def lease_of(node: str) -> GpuLease.Inputs:
    about: dict[str, Any] = {"mapping": "gpu", "slot": "0000:01:00", "vm": "sandbox", "vmid": VM}
    return GpuLease.Inputs(host=node, node=node, shutdown=SHUTDOWN, **about)


def conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/qemu-server/{VM}.conf").read_text()


def move(cluster: LabCluster, here: str, there: str, vmid: int = VM) -> None:
    """As a migration of a VM that is off leaves it, its disks on a storage that both have."""
    to = cluster.folder / f"pve/nodes/{there}/qemu-server"
    to.mkdir(exist_ok=True)
    (cluster.folder / f"pve/nodes/{here}/qemu-server/{vmid}.conf").rename(to / f"{vmid}.conf")


def noted(cluster: LabCluster, what: str) -> list[str]:
    """The nodes that have noted it."""
    return [name for name, lab in cluster.nodes.items() if (lab.root / "var/lib/homelab" / what).exists()]


def given_and_moved(cluster: LabCluster) -> VmCards.Outputs:
    """The VM has its card from this program, on pve1; then it moves to pve2, and the state is lost."""
    made = VmCardsWork(texts(cluster)).create(cards_of("pve1"))
    move(cluster, "pve1", "pve2")
    return made


def test_what_was_noted_of_a_vm_on_the_node_that_it_has_left_is_found_after_the_state_was_lost(
    cluster: LabCluster,
) -> None:
    first = given_and_moved(cluster)
    assert first.record["hostpci0"] == {"ours": GIVEN, "before": None, "slot": "0000:01:00"}
    assert GpuLeaseWork(texts(cluster)).create(lease_of("pve2")).by_hand is False
    again = VmCardsWork(texts(cluster)).create(cards_of("pve2"))
    assert again.record == first.record and noted(cluster, RECORD) == ["pve2"]
    assert GpuLeaseWork(texts(cluster)).create(lease_of("pve2")).by_hand is False


def test_a_node_that_doesnt_answer_has_not_said_that_it_noted_nothing(cluster: LabCluster) -> None:
    given_and_moved(cluster)
    off = texts(cluster, off="pve1")
    for do in (
        lambda: VmCardsWork(off).create(cards_of("pve2")),
        lambda: GpuLeaseWork(off).create(lease_of("pve2")),
    ):
        with pytest.raises(HomelabError) as raised:
            do()
        assert raised.value.wanted.startswith("to know what pve1 noted about VM 103")
        assert "take it out of homelab:hosts" in raised.value.next
    assert noted(cluster, RECORD) == ["pve1"]


def test_a_vm_that_has_nothing_of_this_program_needs_no_other_node(cluster: LabCluster) -> None:
    move(cluster, "pve1", "pve2")
    off = texts(cluster, off="pve1")
    assert GpuLeaseWork(off).create(lease_of("pve2")).by_hand is False
    assert VmCardsWork(off).create(cards_of("pve2")).record["hostpci0"]["before"] is None


def test_a_node_that_is_off_while_a_vm_leaves_it_holds_nothing_up_and_is_told_later(
    cluster: LabCluster, said: list[str]
) -> None:
    on, off = texts(cluster), texts(cluster, off="pve1")
    first = given_and_moved(cluster)
    moved = VmCardsWork(off).update(cards_of("pve2"), cards_of("pve1"), first)
    assert moved.record == first.record and noted(cluster, RECORD) == ["pve1", "pve2"]
    assert len(said) == 1 and said[0].startswith("sandbox: note: pve1 couldn't forget it (")

    VmCardsWork(off).delete(cards_of("pve2"), moved)
    assert "hostpci0" not in conf(cluster, "pve2") and noted(cluster, RECORD) == ["pve1"] and len(said) == 2
    VmCardsWork(on).delete(cards_of("pve2"), moved)
    assert noted(cluster, RECORD) == []


@pytest.mark.parametrize(
    ("number", "lost"), sample([(number, lost) for number in (0, 1, 2) for lost in ("", "pve1")], 2, "a killed update")
)
def test_a_destroy_after_a_killed_update_of_a_vm_that_moved_gives_all_back(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch, number: int, lost: str
) -> None:
    before = conf(cluster, "pve1")
    made = given_and_moved(cluster)
    with monkeypatch.context() as once, pytest.raises(KilledError):
        killed_after(once, number)
        VmCardsWork(texts(cluster)).update(cards_of("pve2", display="none"), cards_of("pve1"), made)
    assert "pve2" in noted(cluster, RECORD)
    VmCardsWork(texts(cluster, off=lost)).delete(cards_of("pve1"), made)
    assert conf(cluster, "pve2") == before and (lost or noted(cluster, RECORD) == [])


@pytest.mark.parametrize("by", ["its lease", "the mapping"])
def test_a_vm_whose_first_run_was_killed_is_given_back_what_it_had_on_the_node_where_it_is(
    cluster: LabCluster, by: str
) -> None:
    """No state has its VmCards; the note is on the node that it has left. Its lease goes as it leaves the settings, the mapping with `destroy`."""
    before, lease = conf(cluster, "pve1"), lease_of("pve1")
    mapping = CardMapping.Inputs(host="pve1", node="pve1", gpu="gpu", mapping="gpu", entry={"path": "0000:01:00"})
    leased = GpuLeaseWork(texts(cluster)).create(lease)
    given_and_moved(cluster)
    assert conf(cluster, "pve2") != before
    if by == "its lease":
        GpuLeaseWork(texts(cluster)).delete(lease, leased)
    else:
        CardMappingWork(texts(cluster)).delete(mapping, CardMapping.Outputs(before="", had_flag=False))
    assert conf(cluster, "pve2") == before and noted(cluster, RECORD) == []


@pytest.mark.parametrize("made_by", ["this program", "its owner"])
@pytest.mark.parametrize("named", ["pve2", "home"])
def test_a_vm_that_the_settings_have_on_another_node_keeps_its_card_as_its_first_lease_goes(
    cluster: LabCluster, made_by: str, named: str
) -> None:
    """The engine deletes the lease before it updates the VM's cards."""
    vm: dict[str, Any] = {"host": named, "vmid": VM, "gpus": [{"gpu": "gpu"}]}
    if made_by == "this program":
        image, disk = "local:import/a.qcow2", {"storage": "local", "size": 32}
        vm["create"] = {"disk": disk, "image": image, "cloudInit": {"user": "ubuntu"}}
    stack, lease = texts(cluster, vms={"sandbox": vm}), lease_of("pve1")
    leased = GpuLeaseWork(stack).create(lease)
    given_and_moved(cluster)
    before = conf(cluster, "pve2")
    GpuLeaseWork(stack).delete(lease, leased)
    assert conf(cluster, "pve2") == before and "hostpci0" in before and noted(cluster, RECORD) == ["pve1"]


def test_a_note_that_a_node_kept_takes_nothing_from_the_entry_that_has_the_vm_where_it_is(cluster: LabCluster) -> None:
    """The node was off when the VM left it."""
    made = given_and_moved(cluster)
    VmCardsWork(texts(cluster, off="pve1")).update(cards_of("pve2"), cards_of("pve1"), made)
    before = conf(cluster, "pve2")
    assert "hostpci0" in before and noted(cluster, RECORD) == ["pve1", "pve2"]
    mapping = CardMapping.Inputs(host="pve1", node="pve1", gpu="gpu", mapping="gpu", entry={"path": "0000:01:00"})
    CardMappingWork(texts(cluster)).delete(mapping, CardMapping.Outputs(before="", had_flag=False))
    assert conf(cluster, "pve2") == before and noted(cluster, RECORD) == ["pve2"]


def test_a_destroy_leaves_a_vm_that_moved_to_the_entry_that_keeps_it_there(cluster: LabCluster) -> None:
    made = given_and_moved(cluster)
    VmCardsWork(texts(cluster)).create(dataclasses.replace(cards_of("pve2"), vm="renamed"))
    before = conf(cluster, "pve2")
    VmCardsWork(texts(cluster)).delete(cards_of("pve1"), made)
    assert conf(cluster, "pve2") == before and "hostpci0" in before and noted(cluster, RECORD) == ["pve2"]


def test_a_note_that_a_node_kept_when_the_vm_left_counts_no_more_when_it_returns(cluster: LabCluster) -> None:
    on, off = texts(cluster), texts(cluster, off="pve1")
    made = VmCardsWork(on).create(cards_of("pve1", display="none"))
    move(cluster, "pve1", "pve2")
    made = VmCardsWork(off).update(cards_of("pve2"), cards_of("pve1", display="none"), made)
    assert "vga" not in conf(cluster, "pve2") and noted(cluster, RECORD) == ["pve1", "pve2"]
    cluster["pve2"].run(f"qm set {VM} --vga none")
    move(cluster, "pve2", "pve1")
    made = VmCardsWork(on).update(cards_of("pve1"), cards_of("pve2"), made)
    assert "vga: none" in conf(cluster, "pve1") and "vga" not in {**made.record, **made.restore}


@pytest.mark.parametrize("now_on", ["pve1", "pve2", "another one on pve2"])
def test_a_destroy_gives_a_vm_back_what_it_had_where_it_is_also_if_the_node_that_it_left_is_dead(
    cluster: LabCluster, now_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    made = given_and_moved(cluster)
    before = conf(cluster, "pve2")
    monkeypatch.setattr(vm_cards, "tell", lines.append)
    if now_on == "pve1":
        move(cluster, "pve2", "pve1")
    identity = "uuid=cccccccc-0000-4000-8000-000000000000" if now_on.startswith("another") else made.identity
    work = VmCardsWork(texts(cluster, off="pve1"))
    if now_on == "pve1":
        with pytest.raises(UnreachableError):
            work.delete(cards_of("pve1"), made)
        assert conf(cluster, "pve1") == before and lines == []
        return
    work.delete(cards_of("pve1"), dataclasses.replace(made, identity=identity))
    assert "hostpci0" in before and len(lines) == 1 and "ledger on pve1 has of it" in lines[0]
    if now_on.startswith("another"):
        assert conf(cluster, "pve2") == before
        assert "VM 103 on pve2 is another one" in lines[0] and "given back" not in lines[0]
    else:
        assert "hostpci0" not in conf(cluster, "pve2") and "given back what it had" in lines[0]


@pytest.mark.parametrize("there", ["another entry's", "silent", "not in the settings"])
def test_a_destroy_beside_a_dead_node_asks_the_node_that_the_vm_is_on_who_keeps_it(
    cluster: LabCluster, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    made = given_and_moved(cluster)
    move(cluster, "pve2", "pve3")
    VmCardsWork(texts(cluster)).create(dataclasses.replace(cards_of("pve3"), vm="renamed"))
    assert "pve3" in noted(cluster, RECORD) and "pve2" not in noted(cluster, RECORD)
    before, settings = conf(cluster, "pve3"), texts(cluster, off="pve1 pve3" if there == "silent" else "pve1")
    if there == "not in the settings":
        hosts = json.loads(settings["hosts"])
        del hosts["pve3"]
        settings["hosts"] = json.dumps(hosts)
    monkeypatch.setattr(vm_cards, "tell", lines.append)
    if there == "another entry's":
        VmCardsWork(settings).delete(cards_of("pve1"), made)
        assert lines == ["sandbox: VM 103 is vms.renamed now, and keeps what it was given"]
    else:
        with pytest.raises(UnreachableError):
            VmCardsWork(settings).delete(cards_of("pve1"), made)
        assert len(lines) == (there == "not in the settings")
        assert all(line.endswith("no host of the settings is that node") for line in lines)
    assert conf(cluster, "pve3") == before and "hostpci0" in before


def test_what_another_entry_keeps_on_another_node_stays_noted(cluster: LabCluster) -> None:
    first = given_and_moved(cluster)
    VmCardsWork(texts(cluster)).delete(dataclasses.replace(cards_of("pve2"), vm="another"), first)
    assert noted(cluster, RECORD) == ["pve1"]


# -- power --------------------------------------------------------------------------------------------------------------------
def given_on(cluster: LabCluster, node: str, record: Record, **more: Any) -> None:
    """It is to have what is recorded, and has it."""
    inputs = cards_of(node, **{**CARDS, **more})
    planned = VmCards.Outputs(record=record, restore={}, guest_name="Sandbox", identity="")
    VmCardsWork(texts(cluster)).bring_into_force(inputs, planned)


def to_four_cores(config: dict[str, str]) -> Change:
    return Change({} if config.get("cores") == "4" else {"cores": "4"})


@pytest.mark.parametrize("starts", [True, False], ids=["it starts there", "it doesn't start there either"])
def test_a_vm_that_ha_starts_on_another_node_counts_there_and_what_is_taken_back_is_taken_back_there(
    cluster: LabCluster, starts: bool
) -> None:
    """The test is the HA manager: it moves the VM while the run waits for it to start."""
    shared = cluster.folder / "pve/ha/resources.cfg"
    shared.parent.mkdir(exist_ok=True)
    shared.write_text(f"vm: {VM}\n\tstate stopped\n\n")
    cluster["pve1"].fault("ha-idle", True)

    def relocate() -> None:
        move(cluster, "pve1", "pve2")
        if starts:
            cluster["pve2"].run(f"qm start {VM}")
        else:
            cluster["pve2"].fault("ha-error", VM)

    before = conf(cluster, "pve1")
    nodes = {name: host_of(lab) for name, lab in cluster.nodes.items()}
    api = Api(nodes["pve1"], "pve1", clock=Quick({3: relocate}, real=0.02), host_at=nodes.get)
    machine = Machine(api, VM, "sandbox", memory=Remembering(False))
    try:
        if starts:
            assert (
                machine.converge(to_four_cores, ["cores"], ShutdownInputs(timeout=5, otherwise="fail"), "running")
                is True
            )
            assert machine.node == "pve2" and machine.running() and "cores: 4" in conf(cluster, "pve2")
        else:
            with pytest.raises(ApiError, match="VM 103 .* has its old configuration back") as raised:
                machine.converge(to_four_cores, ["cores"], ShutdownInputs(timeout=5, otherwise="fail"), "running")
            assert "HA has it in the state error" in raised.value.found
            assert sorted(conf(cluster, "pve2").split()) == sorted(before.split())
        assert not (cluster.folder / f"pve/nodes/pve1/qemu-server/{VM}.conf").exists()
    finally:
        shared.unlink()
        cluster["pve2"].reset()


CARDS: dict[str, Any] = {"cards": [], "machine": None}
BALLOON: Record = {"balloon": {"ours": "0", "before": None}}


def runs(cluster: LabCluster, node: str = "pve1") -> bool:
    return "running" in cluster[node].run(f"qm status {VM}").stdout


def left_off(cluster: LabCluster, monkeypatch: pytest.MonkeyPatch) -> VmCards.Outputs:
    """A run is killed between the VM's shutdown and its start."""

    def killed(*_: Any) -> None:
        raise KilledError

    uuid = "aaaaaaaa-0000-4000-8000-000000000000"
    # A stop by hand in the note's own second would count as a later one.
    off = f"qm stop {VM}; rm -f $ROOT/var/log/pve/tasks/index"
    cluster["pve1"].run(f"{off}; qm set {VM} --balloon 1024 --memory 2048 --smbios1 uuid={uuid}; qm start {VM}")
    first = VmCardsWork(texts(cluster)).create(cards_of("pve1", **CARDS))
    with monkeypatch.context() as once:
        once.setattr(Machine, "start", killed)
        with pytest.raises(KilledError):
            given_on(cluster, "pve1", BALLOON)
    assert not runs(cluster) and noted(cluster, POWER) == ["pve1"]
    return dataclasses.replace(first, record=BALLOON)


def noted_earlier(cluster: LabCluster, node: str, **more: Any) -> None:
    """A start of the note's own second isn't a later one: the note is of some seconds ago."""
    path = cluster[node].root / "var/lib/homelab" / POWER
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "at": about["at"] - 5, **more}))


@pytest.mark.parametrize("ends", ["up", "destroy"])
def test_a_vm_that_a_killed_run_has_left_off_runs_again_after_the_next_one_or_after_destroy(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    given, record = left_off(cluster, monkeypatch), cards_of("pve1", **CARDS)
    if ends == "up":
        assert VmCardsWork(texts(cluster)).update(record, record, given).state == "running"
    else:
        VmCardsWork(texts(cluster)).delete(record, given)
    assert runs(cluster) and noted(cluster, POWER) == []


@pytest.mark.parametrize(
    "off",
    [
        "by hand, after a start",
        "power: stopped",
        "another VM",
        "moved, and off there",
        "by hand, and the run was killed before",
    ],
)
def test_a_vm_that_somebody_has_switched_off_since_stays_off(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    given, node = left_off(cluster, monkeypatch), "pve1"
    if off == "by hand, after a start":
        noted_earlier(cluster, "pve1")
        cluster["pve1"].run(f"qm start {VM}; qm stop {VM}")
    elif off == "by hand, and the run was killed before":
        noted_earlier(cluster, "pve1", off=False)
        cluster["pve1"].run(
            f"rm -f $ROOT/var/log/pve/tasks/index; qm start {VM}; rm -f $ROOT/var/log/pve/tasks/index; qm stop {VM}"
        )
    elif off == "power: stopped":
        given_on(cluster, "pve1", BALLOON, power="stopped")
        assert noted(cluster, POWER) == []
    elif off == "another VM":
        path = cluster.folder / f"pve/nodes/pve1/qemu-server/{VM}.conf"
        path.write_text(path.read_text().replace("uuid=aaaaaaaa", "uuid=bbbbbbbb"))
        GpuLeaseWork(texts(cluster)).delete(lease_of("pve1"), GpuLease.Outputs(by_hand=False))
    else:
        move(cluster, "pve1", node := "pve2")
        noted_earlier(cluster, "pve1")
        cluster["pve2"].run(f"qm start {VM}; qm stop {VM}")
        had, has = cards_of("pve1", **CARDS), cards_of("pve2", **CARDS)
        VmCardsWork(texts(cluster)).update(has, had, given)
    given_on(cluster, node, BALLOON)
    assert not runs(cluster, node) and noted(cluster, POWER) == []


def test_that_a_killed_run_has_left_a_vm_off_goes_along_when_it_moves(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = left_off(cluster, monkeypatch)
    move(cluster, "pve1", "pve2")
    again = VmCardsWork(texts(cluster)).update(cards_of("pve2", **CARDS), cards_of("pve1", **CARDS), given)
    assert again.state == "running" and runs(cluster, "pve2") and noted(cluster, POWER) == []


# -- a VM that was made here ---------------------------------------------------------------------------------------------------
ID, MARK = 300, "Created by Pulumi: project/stack/mine"


def made_of(node: str, **more: Any) -> VirtualMachine.Inputs:
    about: dict[str, Any] = {"vm": "mine", "vmid": ID, "config": {"name": "mine", "memory": "512"}, "protect": False}
    about |= {"disk": DiskInputs(storage="local-lvm", size=8), "mark": MARK, "cluster": "home", **more}
    return VirtualMachine.Inputs(host=node, node=node, shutdown=SHUTDOWN, **about)


@pytest.mark.parametrize("who", ["a stranger's", "made anew", "a container"])
def test_another_guest_of_a_made_vms_id_on_another_node_is_never_changed_or_removed(
    cluster: LabCluster, who: str
) -> None:
    """The VM is gone, and its id was used again: wherever the settings send this program, that guest isn't the one that was made."""
    vms = {
        "mine": {"host": "home", "vmid": ID, "create": {"disk": {"storage": "local-lvm", "size": 8}}, "gpus": ["gpu"]}
    }
    work = VirtualMachineWork(texts(cluster, vms=vms))
    made = work.create(made_of("pve1"))
    cluster["pve1"].run(f"qm destroy {ID}")
    what = {"a stranger's": f"{MARK}2 {'a' * 16}", "made anew": f"{MARK} {'a' * 16}"}.get(who)
    folder = cluster.folder / f"pve/nodes/pve2/{'lxc' if what is None else 'qemu-server'}"
    folder.mkdir(exist_ok=True)
    theirs = folder / f"{ID}.conf"
    theirs.write_text(f"#{what}\nname: precious\nmemory: 512\n" if what else "arch: amd64\nhostname: precious\n")
    text = theirs.read_text()
    try:
        with pytest.raises(GoneError):
            work.read(made_of("pve1"), made)
        with pytest.raises(HomelabError) as raised:
            work.update(made_of("pve2", config={"name": "mine", "memory": "1024"}), made_of("pve1"), made)
        assert what is None or "VM 300 on pve2 is another one: precious" in raised.value.found
        if who != "made anew":  # which is this stack's own
            with pytest.raises(HomelabError):
                work.create(made_of("pve2"))
        for node in ("pve1", "pve2"):
            work.delete(made_of(node), made)
        assert theirs.read_text() == text
    finally:
        theirs.unlink()


def test_a_made_vm_that_has_moved_is_removed_where_it_is(cluster: LabCluster) -> None:
    work = VirtualMachineWork(texts(cluster, vms={}))
    made = work.create(made_of("pve1"))
    move(cluster, "pve1", "pve2", ID)
    assert work.update(made_of("pve2"), made_of("pve1"), made) == made
    work.delete(made_of("pve1"), made)
    assert not list(cluster.folder.glob(f"pve/nodes/*/qemu-server/{ID}.conf"))


def container_of(node: str, **more: Any) -> NewContainer.Inputs:
    about: dict[str, Any] = {"container": "mine", "ctid": ID, "config": {"hostname": "mine", "memory": "512"}}
    about |= {"protect": False, "mark": MARK, "cluster": "home", **more}
    return NewContainer.Inputs(host=node, node=node, shutdown=SHUTDOWN, **about)


@pytest.fixture
def guest(cluster: LabCluster) -> Iterator[tuple[Path, str]]:
    """A container on pve2 that was made on pve1; and what its description says of it."""
    folder = cluster.folder / "pve/nodes/pve2/lxc"
    folder.mkdir(exist_ok=True)
    path = folder / f"{ID}.conf"
    path.write_text(f"#Mine.\n#{MARK.replace(':', '%3A')} {'a' * 16}\narch: amd64\nhostname: mine\nmemory: 512\n")
    yield path, "a" * 16
    path.unlink(missing_ok=True)


def test_a_made_container_that_moved_is_kept_by_the_resource_that_replaces_its_own(
    cluster: LabCluster, guest: tuple[Path, str]
) -> None:
    """The state names no cluster: the resource is made anew, which finds the container, and the former one is deleted after that."""
    path, instance = guest
    before = {"host": "pve1", "node": "pve1", "ctid": ID, "cluster": ""}
    assert (
        NewContainer.replacing(before, dict.fromkeys(("host", "node", "cluster")))
        and not NewContainer.delete_before_replace
    )
    work = NewContainerWork(texts(cluster))
    made = work.create(container_of("pve2"))
    text = path.read_text()
    assert made.instance in text and instance not in text and text.startswith("#Mine.\n")
    work.delete(container_of("pve1", cluster=""), NewContainer.Outputs(instance=instance))
    assert path.read_text() == text
    work.delete(container_of("pve1"), made)  # it is this one's, wherever it is
    assert not path.exists()


@pytest.mark.parametrize("description", ["", f" {'b' * 16}"], ids=["names none", "names another"])
def test_a_container_of_that_id_on_another_node_is_removed_only_if_it_is_the_one_that_was_made(
    cluster: LabCluster, guest: tuple[Path, str], description: str
) -> None:
    path, instance = guest
    path.write_text(path.read_text().replace(f" {instance}", description))
    text = path.read_text()
    NewContainerWork(texts(cluster)).delete(container_of("pve1"), NewContainer.Outputs(instance=instance))
    assert path.read_text() == text


def test_a_made_vm_that_moved_is_kept_by_the_resource_that_replaces_its_own(cluster: LabCluster) -> None:
    work = VirtualMachineWork(texts(cluster, vms={}))
    made = work.create(made_of("pve1", cluster=""))
    move(cluster, "pve1", "pve2", ID)
    again = work.create(made_of("pve2"))
    work.delete(made_of("pve1", cluster=""), made)
    assert list(cluster.folder.glob(f"pve/nodes/pve2/qemu-server/{ID}.conf"))
    work.delete(made_of("pve2"), again)
    assert not list(cluster.folder.glob(f"pve/nodes/*/qemu-server/{ID}.conf"))


@pytest.mark.parametrize("who", ["a stranger's", "made anew", "a VM"])
def test_another_guest_of_a_made_containers_id_on_another_node_is_never_changed(
    cluster: LabCluster, guest: tuple[Path, str], who: str
) -> None:
    path, instance = guest
    if who == "a stranger's":
        path.write_text("arch: amd64\nhostname: precious\nmemory: 512\n")
    elif who == "made anew":
        path.write_text(path.read_text().replace(instance, "b" * 16).replace("hostname: mine", "hostname: precious"))
    else:
        path.unlink()
        path = cluster.folder / f"pve/nodes/pve2/qemu-server/{ID}.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text("name: precious\nmemory: 512\n")
    text, made = path.read_text(), NewContainer.Outputs(instance=instance)
    containers = {
        "mine": {
            "host": "home",
            "ctid": ID,
            "gpus": ["gpu"],
            "create": {"template": "local:vztmpl/x.tar.zst", "disk": {"storage": "local-lvm", "size": 4}},
        }
    }
    work = NewContainerWork(texts(cluster, containers=containers))
    try:
        with pytest.raises(GoneError):
            work.read(container_of("pve1"), made)
        more = container_of("pve2", config={"hostname": "mine", "memory": "1024"})
        with pytest.raises(HomelabError) as raised:
            work.update(more, container_of("pve1"), made)
        assert who == "a VM" or "container 300 on pve2 is another one: precious" in raised.value.found
        assert path.read_text() == text
    finally:
        path.unlink(missing_ok=True)


def test_a_made_container_that_has_moved_is_changed_where_it_is(cluster: LabCluster, guest: tuple[Path, str]) -> None:
    path, instance = guest
    more = container_of("pve2", config={"hostname": "mine", "memory": "1024"})
    NewContainerWork(texts(cluster)).update(more, container_of("pve1"), NewContainer.Outputs(instance=instance))
    assert "memory: 1024\n" in path.read_text()


@pytest.mark.parametrize("act", ["delete", "update"])
def test_what_was_given_is_given_back_where_the_vm_is_but_no_address_of_another_node(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """The address on pve1 is another device's on pve2."""
    lines: list[str] = []
    monkeypatch.setattr(vm_cards, "tell", lines.append)
    by_hand = "0000:01:00,pcie=1,romfile=a.rom"
    cluster["pve1"].run(f"qm set {VM} --hostpci0 {by_hand} --machine q35")
    inputs = cards_of("pve1", cards=[{**CARD, "take_over": True}])
    made = VmCardsWork(texts(cluster)).create(inputs)
    assert made.record["hostpci0"] == {"ours": f"{GIVEN},romfile=a.rom", "before": by_hand, "slot": "0000:01:00"}
    cluster["pve1"].run(f"qm set {VM} --hostpci0 '{made.record['hostpci0']['ours']}'")
    move(cluster, "pve1", "pve2")
    if act == "delete":
        VmCardsWork(texts(cluster)).delete(inputs, made)
    else:
        VmCardsWork(texts(cluster)).update(cards_of("pve2", cards=[]), inputs, made)
    assert "hostpci0" not in conf(cluster, "pve2")
    assert any(by_hand in line and "isn't put back" in line for line in lines), lines
