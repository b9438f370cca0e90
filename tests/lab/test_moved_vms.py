"""A VM or a created container that is on another node than before: it is changed, and given back what it had, where it is."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.cards.resource import CardMapping
from homelab.cards.work import CardMappingWork
from homelab.errors import GoneError, HomelabError, UnreachableError
from homelab.guest.resource import Guest
from homelab.guest.work import GuestWork
from homelab.remote.proxmox import api as api_module
from homelab.resources.work.vm_transaction import VmTransaction
from homelab.shapes import ShutdownInputs
from homelab.vm.cards import VmCard
from homelab.vm.resource import VmCards
from homelab.vm.work import VmCardsWork
from lab.cluster import LabCluster
from tests import forked_agent, sampling
from tests.lab.stack_kit import CARDS_URN, ID, VM, as_text, given_card, host_of, made_guest

CARD = VmCard("gpu", "gpu", "0000:01:00")
GIVEN = "hostpci0: mapping=gpu,pcie=1"


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
        shared_cluster[name].run("rm -rf $HOMELAB_ROOT/var/lib/homelab")
    (shared_cluster.folder / f"pve/homelab/qemu-{VM}").unlink(missing_ok=True)
    shared_cluster["pve1"].reset()


def texts(cluster: LabCluster, *, off: str = "", **more: dict[str, Any]) -> dict[str, str]:
    """The stack's configuration; ``off``: of the nodes at whose addresses nobody answers."""
    hosts: dict[str, Any] = {}
    for name, lab in cluster.nodes.items():
        about = as_text(host_of(lab))
        hosts[name] = about | {"cluster": "home", "gpus": {"gpu": {"match": "10de:2b85"}}}
    for name in off.split():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            hosts[name]["ssh"]["port"] = unused.getsockname()[1]
        hosts[name]["timeouts"]["connect"] = 1
    made = {key: json.dumps(value) for key, value in more.items()}
    return {"hosts": json.dumps(hosts), **made}


def cards_of(node: str, **more: Any) -> VmCards.Inputs:
    return given_card(node, **{"cards": [CARD], "machine": "q35", **more})


def conf(cluster: LabCluster, node: str) -> str:
    return (cluster.folder / f"pve/nodes/{node}/qemu-server/{VM}.conf").read_text()


def move(cluster: LabCluster, here: str, there: str, vmid: int = VM) -> None:
    """As a migration of a VM that is off leaves it, its disks on a storage that both have."""
    to = cluster.folder / f"pve/nodes/{there}/qemu-server"
    to.mkdir(exist_ok=True)
    (cluster.folder / f"pve/nodes/{here}/qemu-server/{vmid}.conf").rename(to / f"{vmid}.conf")


def works(cluster: LabCluster, **settings: Any) -> VmCardsWork:
    return VmCardsWork(texts(cluster, **settings), CARDS_URN)


def given_and_moved(cluster: LabCluster, **more: Any) -> VmCards.Outputs:
    """The VM has its card from this program, on pve1; then it moves."""
    made = works(cluster).create(cards_of("pve1", **more))
    assert GIVEN in conf(cluster, "pve1")
    move(cluster, "pve1", "pve2")
    return made


def is_noted(cluster: LabCluster) -> bool:
    return (cluster.folder / f"pve/homelab/qemu-{VM}").exists()


def at(node: str, name: str = "sandbox") -> dict[str, Any]:
    """The VM's entry in the settings."""
    return {name: {"host": node, "vmid": VM, "gpus": ["gpu"]}}


def test_a_vm_that_has_moved_is_refused_until_the_settings_name_its_host(cluster: LabCluster) -> None:
    made = given_and_moved(cluster)
    before, work = conf(cluster, "pve2"), works(cluster, vms=at("pve1"))
    assert work.read(cards_of("pve1"), made).drift == ["VM 103 is on the node pve2, not on pve1"]
    for refused in (
        lambda: work.update(cards_of("pve1", display="none"), cards_of("pve1"), made),
        lambda: work.delete(cards_of("pve1"), made),
    ):
        with pytest.raises(HomelabError, match="VM 103 is on the node pve2, not on pve1"):
            refused()
    assert conf(cluster, "pve2") == before and is_noted(cluster)
    # The resource is made anew for the other host, after this one is gone.
    work = works(cluster, vms=at("pve2"))
    work.delete(cards_of("pve1"), made)
    made = work.create(cards_of("pve2"))
    assert conf(cluster, "pve2") == before
    work.update(cards_of("pve2", cards=[]), cards_of("pve2"), made)
    assert "hostpci" not in conf(cluster, "pve2") and "machine: q35" in conf(cluster, "pve2")


def test_a_destroy_that_cant_reach_its_host_leaves_all_of_it_noted(cluster: LabCluster) -> None:
    made = given_and_moved(cluster)
    with pytest.raises(UnreachableError):
        works(cluster, off="pve1", vms=at("pve1")).delete(cards_of("pve1"), made)
    assert GIVEN in conf(cluster, "pve2") and is_noted(cluster)


def test_a_vm_that_moved_is_left_to_the_entry_that_keeps_it_there(
    cluster: LabCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    made, vms = given_and_moved(cluster), at("pve2", "renamed")
    works(cluster).create(dataclasses.replace(cards_of("pve2"), vm="renamed"))
    before = conf(cluster, "pve2")
    works(cluster, vms=vms).delete(cards_of("pve1"), made)
    assert conf(cluster, "pve2") == before and GIVEN in before and is_noted(cluster)
    # By the settings of an up that has failed before it came there, no resource is to take it over.
    works(cluster, vms=at("pve2")).delete(cards_of("pve1"), made)
    assert "sandbox: note: VM 103 is on the node pve2, not on pve1: it keeps what it has" in capsys.readouterr().out


def test_another_vm_of_its_id_on_another_node_stays_as_it_is_and_holds_up_nothing(cluster: LabCluster) -> None:
    made, theirs = given_and_moved(cluster), cluster.folder / f"pve/nodes/pve2/qemu-server/{VM}.conf"
    theirs.write_text("name: precious\nsmbios1: uuid=00000000-0000-4000-8000-000000000001\n")
    before, work = theirs.read_text(), works(cluster, vms=at("pve1"))
    assert work.read(cards_of("pve1"), made).drift == ["VM 103 isn't there"]
    work.delete(cards_of("pve1"), made)
    assert theirs.read_text() == before and not is_noted(cluster)


def test_a_mapping_that_goes_on_the_node_that_a_vm_has_left_takes_nothing_from_it(cluster: LabCluster) -> None:
    given_and_moved(cluster)
    before = conf(cluster, "pve2")
    mapping = CardMapping.Inputs(host="pve1", node="pve1", gpu="gpu", mapping="gpu", entry={"path": "0000:01:00"})
    CardMappingWork(texts(cluster), CARDS_URN).delete(mapping, CardMapping.Outputs(before="", had_flag=False))
    assert conf(cluster, "pve2") == before and is_noted(cluster)


def test_a_vm_whose_first_run_was_killed_is_given_back_what_it_had_by_the_mapping_of_the_node_where_it_is(
    cluster: LabCluster,
) -> None:
    """No state has its VmCards."""
    before, work = conf(cluster, "pve1"), CardMappingWork(texts(cluster), CARDS_URN)
    given_and_moved(cluster)
    assert conf(cluster, "pve2") != before
    mapping = CardMapping.Inputs(host="pve2", node="pve2", gpu="gpu", mapping="gpu", entry={"path": "0000:01:00"})
    work.delete(mapping, CardMapping.Outputs(before="", had_flag=False))
    assert conf(cluster, "pve2") == before and not is_noted(cluster)


@pytest.mark.parametrize(
    ("node", "state"), sampling.sample([("pve1", "running"), ("pve2", "stopped")], 1, "left off by a killed run")
)
def test_one_that_a_killed_run_has_left_off_stays_off_where_it_has_moved(
    cluster: LabCluster, node: str, state: str
) -> None:
    """That node doesn't tell who has switched it on the other one."""
    cards: dict[str, Any] = {"cards": [], "display": "none"}
    cluster["pve1"].run(f"qm start {VM}")
    works(cluster).create(cards_of("pve1", **cards))
    known = [task["upid"] for task in cluster["pve1"].ask_api("GET", "/nodes/pve1/tasks", vmid=VM)]
    cluster["pve1"].run(f"qm shutdown {VM}")
    noted = json.loads((cluster.folder / f"pve/homelab/qemu-{VM}").read_text())
    debt = {
        "program": "qm",
        "guest": VM,
        "name": "VM",
        "identity": noted["identity"],
        "why": "change",
        "boot": "",
        "known": known,
    }
    tasks = cluster["pve1"].ask_api("GET", "/nodes/pve1/tasks", vmid=VM)
    debt["ours"] = [task["upid"] for task in tasks if task["upid"] not in known]
    (cluster["pve1"].root / "var/lib/homelab/owed").write_text(json.dumps({"debts": [debt]}))
    if node != "pve1":
        move(cluster, "pve1", node)
    made = works(cluster).create(cards_of(node, **cards))
    assert made.state == state and works(cluster).read(cards_of(node, **cards), made).drift == []


def test_what_was_given_is_given_back_where_the_vm_is_but_no_address_of_another_node(cluster: LabCluster) -> None:
    """The address on pve1 is another device's on pve2."""
    cluster["pve1"].run(f"qm set {VM} --hostpci0 0000:01:00,pcie=1,romfile=a.rom --machine q35")
    works(cluster).create(cards_of("pve1", cards=[dataclasses.replace(CARD, take_over=True)]))
    assert f"{GIVEN},romfile=a.rom" in conf(cluster, "pve1")
    move(cluster, "pve1", "pve2")
    cluster["pve2"].machine.exchange("0000:01:00.0", "10de:2684", "1458:40bf")
    works(cluster).create(cards_of("pve2", cards=[]))
    assert "hostpci0" not in conf(cluster, "pve2")


# -- a VM that was made here ---------------------------------------------------------------------------------------------------
MARK = "Created by Pulumi: project/stack/mine"


def made_of(node: str, **more: Any) -> Guest.Inputs:
    config = {"name": "mine", "memory": "512", **more.pop("config", {})}
    return made_guest("qemu", "mine", config, host=node, node=node, **more)


@pytest.mark.parametrize("who", ["a stranger's", "made anew", "a container"])
def test_another_guest_of_a_made_vms_id_on_another_node_is_never_changed_or_removed(
    cluster: LabCluster, who: str
) -> None:
    """The VM is gone, and its id was used again: wherever the settings send this program, that guest isn't the one that was made."""
    vms = {"mine": {"host": "pve2", "vmid": ID, "create": {"scsi0": "local-lvm:8"}, "gpus": ["gpu"]}}
    work = GuestWork(texts(cluster, vms=vms))
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
        if who != "made anew":  # which is this stack's own
            with pytest.raises(HomelabError):
                work.create(made_of("pve2"))
        for node in ("pve1", "pve2"):
            work.delete(made_of(node), made)
        assert theirs.read_text() == text
    finally:
        theirs.unlink()


def test_a_made_vm_that_moved_is_refused_until_the_settings_name_its_host(cluster: LabCluster) -> None:

    def made_at(node: str) -> dict[str, Any]:
        """Its entry in the settings."""
        return {"mine": {"host": node, "vmid": ID, "create": {"scsi0": "local-lvm:8"}, "gpus": ["gpu"]}}

    work = GuestWork(texts(cluster, vms=made_at("pve1")))
    made = work.create(made_of("pve1"))
    move(cluster, "pve1", "pve2", ID)
    moved = work.read(made_of("pve1"), made)
    assert moved.drift == ["node"]
    for refused in (
        lambda: work.update(made_of("pve1"), made_of("pve1"), moved),
        lambda: work.delete(made_of("pve1"), made),
    ):
        with pytest.raises(HomelabError, match="VM 300 is on the node pve2, not on pve1"):
            refused()
    # It is found there by the resource that replaces its own.
    work = GuestWork(texts(cluster, vms=made_at("pve2")))
    again = work.create(made_of("pve2"))
    work.delete(made_of("pve1"), made)
    assert list(cluster.folder.glob(f"pve/nodes/pve2/qemu-server/{ID}.conf"))
    work.delete(made_of("pve2"), again)
    assert not list(cluster.folder.glob(f"pve/nodes/*/qemu-server/{ID}.conf"))


def test_a_made_vm_that_wasnt_removed_can_lose_its_card_again(
    cluster: LabCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest has ignored the shutdown: what is noted of it goes with it, and no sooner."""
    shutdown, note = ShutdownInputs(timeout=1, otherwise="fail"), cluster.folder / f"pve/homelab/qemu-{ID}"
    config = {"name": "mine", "memory": "512", "machine": "q35"}
    vm = dataclasses.replace(made_of("pve1", config=config), shutdown=shutdown)
    cards = dataclasses.replace(cards_of("pve1", goes_away=True, power="running"), vm="mine", vmid=ID)
    cards = dataclasses.replace(cards, shutdown=shutdown, cards=[dataclasses.replace(CARD, by_address=True)])
    machine, work = GuestWork(texts(cluster, vms={}), CARDS_URN), works(cluster)
    made, given = machine.create(vm), work.create(cards)
    cluster["pve1"].fault("guest-ignores-shutdown", ID)
    work.delete(cards, given)
    with pytest.raises(HomelabError, match=f"VM {ID}"):
        machine.delete(vm, made)
    cluster["pve1"].fault("guest-ignores-shutdown", None)
    given = work.create(cards)
    work.update(dataclasses.replace(cards, cards=[]), cards, given)
    assert "hostpci" not in (cluster.folder / f"pve/nodes/pve1/qemu-server/{ID}.conf").read_text()
    given = work.create(cards)
    work.delete(cards, given)
    with monkeypatch.context() as killed:
        killed.setattr(VmTransaction, "revert", lambda *_: pytest.fail("killed, when the VM was removed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            machine.delete(vm, made)
    assert note.exists()
    machine.delete(vm, made)
    assert not note.exists()


@pytest.fixture
def guest(cluster: LabCluster) -> Iterator[tuple[Path, str]]:
    """A container on pve2 that was made on pve1; and what its description says of it."""
    folder = cluster.folder / "pve/nodes/pve2/lxc"
    folder.mkdir(exist_ok=True)
    path = folder / f"{ID}.conf"
    path.write_text(f"#Mine.\n#{MARK.replace(':', '%3A')} {'a' * 16}\narch: amd64\nhostname: mine\nmemory: 512\n")
    yield path, "a" * 16
    path.unlink(missing_ok=True)


def test_a_made_container_that_moved_is_found_where_the_settings_have_it_now(
    cluster: LabCluster, guest: tuple[Path, str]
) -> None:
    def container_of(node: str) -> Guest.Inputs:
        return made_guest("lxc", "mine", {"hostname": "mine", "memory": "512"}, host=node, node=node)

    path, instance = guest
    create = {"ostemplate": "local:vztmpl/x.tar.zst"}
    containers = {"mine": {"host": "pve2", "ctid": ID, "gpus": [], "create": create}}
    work = GuestWork(texts(cluster, containers=containers))
    made = work.create(container_of("pve2"))
    text = path.read_text()
    assert made.instance in text and instance not in text and text.startswith("#Mine.\n")
    work.delete(container_of("pve1"), Guest.Outputs(instance=instance))
    assert path.read_text() == text
    work.delete(container_of("pve2"), made)
    assert not path.exists()
