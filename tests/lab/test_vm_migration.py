"""A VM on a node without its card: it is shut down, migrated while it is off, and started with the card; or why not is said, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider.vm_change import VmChangeWork
from homelab.provider.vm_migration import VmMigrationWork, VmPlaceWork
from homelab.provider.vm_record import VmRecordWork
from homelab.remote.proxmox import migration, places
from homelab.remote.proxmox.api import Api
from homelab.resources.vm_migration import VmMigration, VmPlace
from homelab.settings import parse
from homelab.vm.migration import OfflineMigration, described
from lab.cluster import LabCluster
from tests.lab.test_moved_vms import (  # noqa: F401
    CARD,
    POWER,
    SHUTDOWN,
    VM,
    KilledError,
    change_of,
    cluster,
    conf,
    move,
    noted,
    record_of,
    runs,
    shared_cluster,
    texts,
)
from tests.waiting import wait_until

MOVE = f"ledger/move/{VM}"


MAPPED = "id=10de:2b85,node=pve1,path=0000:01:00,iommugroup=14,subsystem-id=1043:89e3"


@pytest.fixture
def away(cluster: LabCluster) -> Iterator[LabCluster]:  # noqa: F811
    """The VM runs on pve3, which has no card in the settings. Its disks are on storages that each node has of its own."""
    cluster["pve1"].run("pvesh set /storage/local --content iso,vztmpl,backup,images")
    move(cluster, "pve1", "pve3")
    path = cluster.folder / f"pve/nodes/pve3/qemu-server/{VM}.conf"
    path.write_text(path.read_text().replace("size=128G", "size=32G"))
    cluster["pve3"].run(f"qm set {VM} --scsi3 local:1,ssd=1; qm start {VM}")
    cluster["pve1"].run(f"pvesh create /cluster/mapping/pci --id gpu --map {MAPPED}")
    stock = (cluster.folder / "pve/storage.cfg").read_text()
    yield cluster
    (cluster.folder / "pve/storage.cfg").write_text(stock)
    cluster["pve1"].run("pvesh delete /cluster/mapping/pci/gpu")
    for name in ("pve1", "pve3"):
        cluster[name].run(f"qm stop {VM}; rm -rf $ROOT/var/lib/vz/images/{VM}", check=False)


def place_of(**more: Any) -> VmPlace.Inputs:
    about: dict[str, Any] = {"leaves": "pve3", "storage": "", "cards": [CARD], "machine": "q35", "display": "keep"}
    about |= {"shared_onboot": False, "cluster": "home", "shutdown": SHUTDOWN, **more}
    return VmPlace.Inputs(host="pve1", node="pve1", vm="sandbox", vmid=VM, **about)


def migration_of(place: VmPlace.Outputs, **more: Any) -> VmMigration.Inputs:
    about: dict[str, Any] = {"storage": "", "cluster": "home", "shutdown": SHUTDOWN, **more}
    about |= {"moves": place.moves, "came_from": place.came_from}
    return VmMigration.Inputs(host="pve1", node="pve1", vm="sandbox", vmid=VM, **about)


def settings(cluster: LabCluster) -> dict[str, str]:  # noqa: F811
    vms = {"sandbox": {"host": "home", "vmid": VM, "gpus": ["gpu"], "migrate": "offline"}}
    found = texts(cluster, vms=vms)
    hosts = json.loads(found["hosts"])
    del hosts["pve3"]["gpus"]
    return found | {"hosts": json.dumps(hosts)}


def storage(cluster: LabCluster, old: str, new: str) -> None:  # noqa: F811
    path = cluster.folder / "pve/storage.cfg"
    path.write_text(path.read_text().replace(old, new))


def where(cluster: LabCluster) -> str:  # noqa: F811
    return next(name for name in cluster.nodes if (cluster.folder / f"pve/nodes/{name}/qemu-server/{VM}.conf").exists())


def brought(cluster: LabCluster, known: VmPlace.Outputs | None = None) -> VmPlace.Outputs:  # noqa: F811
    """One `up`, as far as the VM goes; ``known``: the state of VmPlace."""
    on = settings(cluster)
    at = where(cluster)
    work, inputs = VmPlaceWork(on), place_of(leaves="" if at == "pve1" else at)
    place = work.create(inputs) if known is None else work.update(inputs, inputs, known)
    try:
        VmMigrationWork(on).create(migration_of(place))
        record = VmRecordWork(on).create(record_of("pve1", moves=place.moves))
        VmChangeWork(on).create(change_of("pve1", record.record, restore=record.restore))
    except KilledError as error:
        error.args = (place,)
        raise
    return place


def test_a_vm_is_brought_to_its_card_and_runs_there(away: LabCluster) -> None:
    place = brought(away)
    assert place == VmPlace.Outputs(moves=1, came_from="pve3")
    assert runs(away) and "hostpci0: mapping=gpu,pcie=1" in conf(away, "pve1")
    assert "scsi3: local:103/vm-103-disk-0.raw,size=1G,ssd=1" in conf(away, "pve1")
    images = [away[name].root / "var/lib/vz/images/103/vm-103-disk-0.raw" for name in ("pve1", "pve3")]
    assert [one.exists() for one in images] == [True, False]
    assert noted(away, MOVE) == noted(away, POWER) == []
    # It is where it is to be: nothing is done, and one that is off stays off.
    away["pve1"].run(f"qm stop {VM}")
    assert brought(away, place) == place and not runs(away)
    # Moved by hand since, while it was off: it is brought back, and stays off.
    move(away, "pve1", "pve3")
    assert brought(away, place).moves == 2 and not runs(away) and noted(away, MOVE) == []


def test_disks_go_where_the_settings_say(away: LabCluster) -> None:
    on = settings(away)
    place = VmPlaceWork(on).create(place_of(storage="local"))
    VmMigrationWork(on).create(migration_of(place, storage="local"))
    text = conf(away, "pve1")
    assert "scsi0: local:" in text and "local-lvm" not in text and "lock" not in text


def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is killed once it has done that much; what Proxmox VE was told goes on by itself."""
    done = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **more: Any) -> Any:
            nonlocal done
            if done >= step:
                raise KilledError
            found = work(*arguments, **more)
            done += 1
            return found

        return counting

    for name in ("_note", "_runs_again"):
        monkeypatch.setattr(VmMigrationWork, name, counted(getattr(VmMigrationWork, name)))
    monkeypatch.setattr(Api, "_started", counted(Api._started))
    monkeypatch.setattr(VmChangeWork, "create", counted(VmChangeWork.create))


@pytest.mark.parametrize("step", range(6))
def test_a_run_that_is_killed_at_any_step_is_finished_by_the_next_one(
    away: LabCluster, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as once:
        killed_after(step, once)
        with pytest.raises(KilledError) as killed:
            brought(away)
    place = brought(away, killed.value.args[0])
    assert runs(away) and "hostpci0: mapping=gpu,pcie=1" in conf(away, "pve1") and place.moves in (1, 2)
    assert noted(away, MOVE) == noted(away, POWER) == []


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_that_is_killed_and_a_destroy_leave_the_vm_running(
    away: LabCluster, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as once:
        killed_after(step, once)
        with pytest.raises(KilledError) as killed:
            brought(away)
    wait_until(lambda: "lock" not in conf(away, where(away)))
    on, place = settings(away), killed.value.args[0]
    VmMigrationWork(on).delete(migration_of(place), VmMigration.Outputs(done=0))
    VmPlaceWork(on).delete(place_of(), place)
    wait_until(lambda: runs(away, where(away)))
    assert noted(away, MOVE) == []


def test_one_that_somebody_shuts_down_meanwhile_stays_off(away: LabCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as once:
        killed_after(1, once)
        with pytest.raises(KilledError) as killed:
            brought(away)
    away["pve3"].run(f"qm stop {VM}")
    brought(away, killed.value.args[0])
    assert not runs(away) and "hostpci0" in conf(away, "pve1") and noted(away, MOVE) == noted(away, POWER) == []


def test_a_migration_that_fails_leaves_it_running_where_it_was(away: LabCluster) -> None:
    on = settings(away)
    place = VmPlaceWork(on).create(place_of())
    before = conf(away, "pve3")
    storage(away, "lvmthin: local-lvm\n", "lvmthin: local-lvm\n\tnodes pve3\n")
    with pytest.raises(HomelabError) as raised:
        VmMigrationWork(on).create(migration_of(place))
    assert "storage 'local-lvm' is not available on node 'pve1'" in raised.value.found
    assert "VM 103 (sandbox) runs again on pve3, as before" in raised.value.found
    assert runs(away, "pve3") and conf(away, "pve3") == before and noted(away, MOVE) == []


def test_one_that_has_moved_on_meanwhile_is_left_there(away: LabCluster) -> None:
    on = settings(away)
    place = VmPlaceWork(on).create(place_of())
    away["pve3"].run(f"qm stop {VM}")
    move(away, "pve3", "pve2")
    with pytest.raises(HomelabError, match="it is on pve2 by now"):
        VmMigrationWork(on).create(migration_of(place))
    assert noted(away, MOVE) == []


def test_one_under_ha_is_stopped_and_moved_through_ha(away: LabCluster) -> None:
    """Its disks are on a storage that all nodes have: HA moves the configuration."""
    for header in ("lvmthin: local-lvm\n", "dir: local\n"):
        storage(away, header, f"{header}\tshared 1\n")
    away["pve3"].run(f"ha-manager add vm:{VM}")
    try:
        brought(away)
        assert runs(away) and "hostpci0" in conf(away, "pve1")
        asked = away["pve3"].run("pvenode task list").stdout
        assert "hamigrate" in asked and "hastop" in asked and "hastart" in away["pve1"].run("pvenode task list").stdout
    finally:
        away["pve1"].run(f"ha-manager remove vm:{VM}")


def test_what_stands_against_it_is_said_all_at_once_before_anything_is_changed(away: LabCluster) -> None:
    """What Proxmox VE says of it is read as it is; tests/unit/test_vm_migration.py has each reason."""
    storage(away, "lvmthin: local-lvm\n", "lvmthin: local-lvm\n\tnodes pve3\n")
    interfaces, path = (
        away["pve3"].root / "etc/network/interfaces",
        away.folder / f"pve/nodes/pve3/qemu-server/{VM}.conf",
    )
    kept, jobs = interfaces.read_text(), away.folder / "pve/replication.cfg"
    away["pve3"].run(f"qm stop {VM}; qm set {VM} --usb0 host=1234:5678; ha-manager add vm:{VM}")
    path.write_text(path.read_text().replace("memory: 32768", "memory: 99999").replace("vmbr0", "vmbr7"))
    interfaces.write_text(kept.replace("vmbr0", "vmbr7"))
    jobs.write_text(f"local: {VM}-0\n\ttarget pve2\n")
    before = conf(away, "pve3")
    try:
        with pytest.raises(HomelabError) as raised:
            VmPlaceWork(settings(away)).create(place_of())
        for found in (
            "it has devices of pve3: usb0: host=1234:5678",
            "local-lvm:vm-103-disk-1 lies on a storage of pve3 alone, and local-lvm is not enabled on pve1",
            "net0 is on the bridge vmbr7, which pve1 doesn't have",
            "it is replicated (job 103-0)",
            "it is under HA, with disks on storages of pve3 alone: local-lvm:vm-103-disk-0, local-lvm:vm-103-disk-1, local:103/vm-103-disk-0.raw",
            "it has 97.7 GiB of memory, and pve1 has 64 GiB in all",
        ):
            assert found in str(raised.value)
        assert conf(away, "pve3") == before and noted(away, MOVE) == []
        away["pve3"].run(f"qm set {VM} --delete usb0; ha-manager remove vm:{VM}")
        with pytest.raises(HomelabError) as raised:
            VmPlaceWork(settings(away)).create(place_of())
        assert "usb0" not in str(raised.value) and "under HA" not in str(raised.value)
    finally:
        interfaces.write_text(kept)
        jobs.unlink()
        (away.folder / "pve/ha/resources.cfg").unlink(missing_ok=True)


def test_a_preview_says_the_way_and_what_is_copied(away: LabCluster) -> None:
    on = parse({key: text for key, text in settings(away).items() if key != "allowPlainSecrets"})
    placed = places.placed(on, {"home": {VM: "pve3"}})
    read = migration.read_all("pve1", placed.hosts["pve1"], placed.vms)
    move_of = read["sandbox"]
    assert isinstance(move_of, OfflineMigration)
    said = described(move_of)
    assert said[0] == (
        "  VM 103 (Sandbox) is on pve3, which has none of its cards: shut down, migrated to pve1 while it is off, started there with its cards"
    )
    assert "    32 GiB of disks of pve3 alone are copied to local-lvm on pve1; the VM is off meanwhile" in said
