"""The lab's API, asked from this machine: one truth with the SSH side, power, faults. test_pvedaemon.py has the way through SSH."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lab import Lab, LabError
from lab.api.guests import Guest
from lab.api.tasks import Tasks
from lab.control import request
from lab.host.state import HostState
from tests.waiting import wait_until

#: Its host is stock: VM 103 runs, nothing else is there.
SCENARIO = "rtx5090"
GPU = "0000:01:00"
NODE = "pve"
VM = 103
QEMU = f"/nodes/{NODE}/qemu/{VM}"
CONFIG = f"{QEMU}/config"


def finish(lab: Lab, upid: str) -> str:
    """Wait for a task; its exit status."""
    wait_until(lambda: lab.ask_api("GET", f"/nodes/{NODE}/tasks/{upid}/status")["status"] != "running")
    return str(lab.ask_api("GET", f"/nodes/{NODE}/tasks/{upid}/status")["exitstatus"])


def log_of(lab: Lab, upid: str) -> list[str]:
    return [entry["t"] for entry in lab.ask_api("GET", f"/nodes/{NODE}/tasks/{upid}/log")]


def stop(lab: Lab, vmid: int = VM) -> None:
    assert finish(lab, lab.ask_api("POST", f"/nodes/{NODE}/qemu/{vmid}/status/stop")) == "OK"


def start(lab: Lab, vmid: int = VM) -> str:
    return finish(lab, lab.ask_api("POST", f"/nodes/{NODE}/qemu/{vmid}/status/start"))


def map_gpu(lab: Lab) -> None:
    entry = f"node={NODE},path={GPU},id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3"
    lab.ask_api("POST", "/cluster/mapping/pci", id="gpu0", map=entry)


def drivers(lab: Lab) -> list[str]:
    text = lab.run(
        f"for f in 0 1; do basename $(readlink $HOMELAB_ROOT/sys/bus/pci/devices/{GPU}.$f/driver); done"
    ).stdout
    return text.split()


# -- reaching it ---------------------------------------------------------------------------------------------------
def test_while_the_host_is_down_nobody_answers(lab: Lab) -> None:
    boots = len(lab.boots())
    request(lab.state, "poweroff")
    lab.wait_settled()
    with pytest.raises(ConnectionRefusedError):
        lab.ask_api("GET", "/version")
    lab.power_cycle()
    assert len(lab.boots()) == boots + 1
    assert lab.ask_api("GET", "/version")


def test_a_reboot_ends_the_tasks_that_run(lab: Lab) -> None:
    lab.fault("task-seconds", 300)
    upid = lab.ask_api("POST", f"{QEMU}/status/stop")
    boots = len(lab.boots())
    request(lab.state, "reboot")
    lab.wait_settled(boots=boots + 1)
    assert finish(lab, upid) == "received interrupt"


def switched(lab: Lab) -> list[tuple[str, str, str]]:
    """Type, guest and status of all tasks but those that a test has begun as somebody else, the latest first."""
    found = lab.ask_api("GET", f"/nodes/{NODE}/tasks", source="all", userfilter="root@pam")
    return [(task["type"], task["id"], task["status"]) for task in found]


BOOTED = [("startall", "", "OK"), ("qmstart", str(VM), "OK")]


@pytest.mark.parametrize("cut", [False, True])
def test_the_guests_of_a_host_go_down_and_come_up_by_tasks_of_roots_but_for_a_power_cut(lab: Lab, cut: bool) -> None:
    assert switched(lab) == BOOTED
    lab.fault("power-cut", cut or None)
    lab.fault("task-seconds", 300)
    upid = lab.ask_api("POST", f"{QEMU}/status/stop", user="ann@pve")
    lab.reboot()
    assert switched(lab)[:2] == BOOTED
    assert switched(lab)[2:-2] == ([] if cut else [("stopall", "", "OK"), ("qmshutdown", str(VM), "OK")])
    assert finish(lab, upid) == ("unexpected status" if cut else "received interrupt")
    [broken] = lab.ask_api("GET", f"/nodes/{NODE}/tasks", userfilter="ann")
    assert (broken["upid"], broken["status"]) == (upid, finish(lab, upid))


def test_a_bulk_shutdown_has_the_tasks_of_a_host_that_goes_down_in_the_name_of_whoever_asks(lab: Lab) -> None:
    lab.run(
        f"qm create 104 --name second --memory 512 --startup order=1 && qm start 104; qm set {VM} --startup order=2,down=1"
    )
    lab.fault("guest-ignores-shutdown", VM)
    boot, mark = lab.run("cat $HOMELAB_ROOT/proc/sys/kernel/random/boot_id").stdout, len(switched(lab))
    lab.run("pvesh create /nodes/pve/stopall --force-stop 0")
    failed = ("qmshutdown", str(VM), "VM quit/powerdown failed - got timeout")
    assert switched(lab)[:-mark] == [("stopall", "", "OK"), ("qmshutdown", "104", "OK"), failed]
    upid = lab.ask_api("POST", f"/nodes/{NODE}/stopall", "ops@pam", vms=str(VM))
    assert finish(lab, upid) == "OK" and log_of(lab, upid)[0] == f"Stopping VM {VM} (timeout = 1 seconds)"
    all_of_them, one = lab.ask_api("GET", f"/nodes/{NODE}/tasks", userfilter="ops@pam")
    assert (one["type"], one["status"], one["pstart"] >= all_of_them["pstart"]) == ("qmshutdown", "OK", True)
    assert lab.run("cat $HOMELAB_ROOT/proc/sys/kernel/random/boot_id").stdout == boot, "the host goes on"


@pytest.mark.parametrize("ahead", [7200, -7200])
def test_tasks_have_the_times_of_the_hosts_own_clock_and_the_order_in_which_they_ended(lab: Lab, ahead: int) -> None:
    lab.fault("clock-ahead", ahead)
    lab.reboot()
    real = time.time()
    stop(lab)
    lab.fault("clock-ahead", None)  # NTP sets it
    assert start(lab) == "OK"
    last, before = lab.ask_api("GET", f"/nodes/{NODE}/tasks", limit=2)
    assert [last["type"], before["type"]] == ["qmstart", "qmstop"] and last["pstart"] > before["pstart"]
    for task, clock in ((last, real), (before, real + ahead)):
        assert all(clock - 2 < task[time] < clock + 60 for time in ("starttime", "endtime"))
    assert lab.ask_api("GET", f"{QEMU}/status/current")["uptime"] < 7200


def test_of_the_tasks_that_have_ended_only_those_of_two_index_files_are_known(lab: Lab) -> None:
    tasks, index = f"/nodes/{NODE}/tasks", lab.root / "var/log/pve/tasks/index"
    stop(lab)
    filler = f"UPID:{NODE}:00001000:00001000:00001000:qmstopped:104:root@pam: 00001000 OK\n" * 700
    for known in (["qmstop"], []):
        with index.open("a") as file:
            file.write(filler)
        assert start(lab, 999).startswith("Configuration file")
        assert not index.exists() and index.with_name("index.1").exists(), "a node moves it, once it has 50,000 bytes"
        assert lab.ask_api("GET", tasks, limit=1)[0]["id"] == "999"
        assert [task["type"] for task in lab.ask_api("GET", tasks, typefilter="qmstop")] == known


def test_requests_are_logged_without_their_secrets(lab: Lab) -> None:
    mark = lab.mark()
    lab.ask_api("PUT", CONFIG, user="ann@pve", cipassword="geheim-geheim")
    [call] = lab.api_calls(mark)
    assert (call["who"], call["method"], call["path"], call["status"]) == ("ann@pve", "PUT", CONFIG, 200)
    assert "geheim" not in str(call)


def test_a_task_has_the_name_of_its_user_whoever_that_is(lab: Lab) -> None:
    upid = lab.ask_api("POST", f"{QEMU}/status/shutdown", user="ann@pve")
    assert finish(lab, upid) == "OK" and upid.endswith(":qmshutdown:103:ann@pve:")
    [task] = lab.ask_api("GET", f"/nodes/{NODE}/tasks", userfilter="ann")
    assert (task["user"], task["upid"]) == ("ann@pve", upid)


# -- one truth -----------------------------------------------------------------------------------------------------
def test_what_qm_does_is_what_the_api_sees(lab: Lab) -> None:
    lab.run(f"qm stop {VM} && qm set {VM} --cores 3 --description 'set by hand'")
    config = lab.ask_api("GET", CONFIG)
    assert (config["cores"], config["description"]) == (3, "set by hand")
    assert lab.ask_api("GET", f"{QEMU}/status/current")["status"] == "stopped"
    assert lab.ask_api("GET", f"/nodes/{NODE}/tasks")[0]["type"] == "qmstop"


def test_what_the_api_does_is_what_qm_and_pct_see(lab: Lab) -> None:
    made = lab.ask_api(
        "POST",
        f"/nodes/{NODE}/qemu",
        vmid=200,
        name="made",
        memory=512,
        scsi0="local-lvm:8",
        net0="virtio,bridge=vmbr0",
    )
    assert finish(lab, made) == "OK"
    assert start(lab, 200) == "OK"
    assert "made                 running" in lab.run("qm list").stdout
    config = lab.run("cat $HOMELAB_ROOT/etc/pve/qemu-server/200.conf").stdout
    assert "scsi0: local-lvm:vm-200-disk-0,size=8G\n" in config
    assert lab.run("qm status 200").stdout == "status: running\n"
    assert (lab.root / "run/qemu-server/200.pid").exists()


def test_a_configuration_edited_by_hand_has_another_digest(lab: Lab) -> None:
    before = lab.ask_api("GET", CONFIG)["digest"]
    lab.run(f"echo 'tags: mine' >>$HOMELAB_ROOT/etc/pve/qemu-server/{VM}.conf")
    with pytest.raises(LabError) as refused:
        lab.ask_api("PUT", CONFIG, digest=before, cores=2)
    assert str(refused.value) == "500 checksum mismatch (file change by other user?)"
    assert lab.ask_api("GET", CONFIG)["tags"] == "mine"


def test_an_untouched_key_keeps_its_bytes(lab: Lab) -> None:
    stop(lab)
    before = lab.run(f"cat $HOMELAB_ROOT/etc/pve/qemu-server/{VM}.conf").stdout
    lab.ask_api("PUT", CONFIG, balloon=0)
    lab.ask_api("PUT", CONFIG, delete="balloon")
    assert lab.run(f"cat $HOMELAB_ROOT/etc/pve/qemu-server/{VM}.conf").stdout == before


def test_pvesh_asks_the_same_api(lab: Lab) -> None:
    lab.run(f"pvesh create /cluster/mapping/pci --id gpu0 --map node={NODE},path={GPU},id=10de:2b85,iommugroup=14")
    assert [mapping["id"] for mapping in lab.ask_api("GET", "/cluster/mapping/pci")] == ["gpu0"]
    done = lab.run("pvesh get /cluster/mapping/pci/none --output-format json", check=False)
    assert (done.returncode, done.stderr.strip()) == (255, "mapping 'none' not found")


def test_a_lock_that_was_left_goes_with_qm_unlock(lab: Lab) -> None:
    lab.run(f"echo 'lock: backup' >>$HOMELAB_ROOT/etc/pve/qemu-server/{VM}.conf")
    with pytest.raises(LabError) as refused:
        lab.ask_api("PUT", CONFIG, cores=3)
    assert str(refused.value) == "500 VM is locked (backup)"
    lab.run(f"qm unlock {VM}")
    lab.ask_api("PUT", CONFIG, cores=3)
    assert "lock" not in lab.ask_api("GET", CONFIG)
    lab.run(f"qm unlock {VM}")  # that there is none is no error
    done = lab.run("qm unlock 999", check=False)
    assert (done.returncode, "Configuration file" in done.stderr) == (2, True)


# -- a GPU -----------------------------------------------------------------------------------------------------------
def test_a_start_binds_the_cards_whole_group_to_vfio(lab: Lab) -> None:
    map_gpu(lab)
    stop(lab)
    lab.ask_api("PUT", CONFIG, hostpci0="mapping=gpu0,pcie=1")
    assert drivers(lab) != ["vfio-pci", "vfio-pci"]
    assert start(lab) == "OK"
    assert drivers(lab) == ["vfio-pci", "vfio-pci"]
    stop(lab)
    assert drivers(lab) == ["vfio-pci", "vfio-pci"], "a real host leaves them there too"


def test_a_card_that_a_running_vm_has_is_refused_to_another_also_by_qm(lab: Lab) -> None:
    map_gpu(lab)
    stop(lab)
    lab.ask_api("PUT", CONFIG, hostpci0="mapping=gpu0,pcie=1")
    assert start(lab) == "OK"
    other = lab.ask_api("POST", f"/nodes/{NODE}/qemu", vmid=200, machine="q35", hostpci0="mapping=gpu0,pcie=1")
    assert finish(lab, other) == "OK"
    message = f"PCI device '{GPU}.0' already in use by VMID '{VM}'"
    assert start(lab, 200) == message
    done = lab.run("qm start 200", check=False)
    assert done.returncode == 255 and message in done.stderr
    stop(lab)
    assert start(lab, 200) == "OK"


def test_a_pending_gpu_comes_with_the_next_start(lab: Lab) -> None:
    map_gpu(lab)
    lab.ask_api("PUT", CONFIG, hostpci0="mapping=gpu0,pcie=1")
    pending = {entry["key"]: entry for entry in lab.ask_api("GET", f"{QEMU}/pending")}
    assert pending["hostpci0"] == {"key": "hostpci0", "pending": "mapping=gpu0,pcie=1"}
    assert "hostpci0" not in lab.ask_api("GET", CONFIG, current=1)
    assert finish(lab, lab.ask_api("POST", f"{QEMU}/status/reboot")) == "OK"
    assert lab.ask_api("GET", CONFIG, current=1)["hostpci0"] == "mapping=gpu0,pcie=1"


def test_without_an_iommu_a_card_cant_be_passed(tmp_path: Path) -> None:
    with Lab.start("iommu-off", state=tmp_path / "lab") as lab:
        gpu, *_ = [
            device
            for device in lab.ask_api("GET", f"/nodes/{lab.api['node']}/hardware/pci")
            if device["vendor"] == "0x10de" and device["class"] == "0x030000"
        ]
        assert gpu["iommugroup"] == -1
        lab.run(f"qm create 300 --machine q35 --hostpci0 {gpu['id']},pcie=1")
        done = lab.run("qm start 300", check=False)
        assert done.returncode == 255
        assert "cannot prepare PCI pass-through, IOMMU not present" in done.stderr
        ids = f"{gpu['vendor'][2:]}:{gpu['device'][2:]}"
        lab.run(
            f"pvesh create /cluster/mapping/pci --id gpu0 --map node={lab.api['node']},path={gpu['id']},id={ids},iommugroup=14"
        )
        lab.run("qm set 300 --hostpci0 mapping=gpu0")
        assert "'iommugroup' does not match for 'gpu0' (-1 != 14)" in lab.run("qm start 300", check=False).stderr


def test_a_vm_that_starts_with_the_host_gets_its_card_or_doesnt_run(lab: Lab) -> None:
    map_gpu(lab)
    stop(lab)
    lab.ask_api("PUT", CONFIG, hostpci0="mapping=gpu0,pcie=1")
    lab.reboot()
    assert lab.ask_api("GET", f"{QEMU}/status/current")["status"] == "running"
    assert drivers(lab) == ["vfio-pci", "vfio-pci"]
    lab.ask_api("PUT", "/cluster/mapping/pci/gpu0", map=f"node={NODE},path={GPU},id=10de:9999,iommugroup=14")
    lab.reboot()
    assert lab.ask_api("GET", f"{QEMU}/status/current")["status"] == "stopped"
    _, task = lab.ask_api("GET", f"/nodes/{NODE}/tasks", limit=2)
    assert task["type"] == "qmstart" and "'id' does not match for 'gpu0'" in task["status"]


# -- faults --------------------------------------------------------------------------------------------------------------
def test_a_task_fails_with_the_faults_status(lab: Lab) -> None:
    lab.fault("task-fails", "qmstop=out of luck")
    upid = lab.ask_api("POST", f"{QEMU}/status/stop")
    assert finish(lab, upid) == "out of luck"
    assert log_of(lab, upid) == ["TASK ERROR: out of luck"]
    assert lab.ask_api("GET", f"{QEMU}/status/current")["status"] == "running"


def test_a_task_can_be_seen_running(lab: Lab) -> None:
    lab.fault("task-seconds", 1)
    upid = lab.ask_api("POST", f"{QEMU}/status/stop")
    assert lab.ask_api("GET", f"/nodes/{NODE}/tasks/{upid}/status")["status"] == "running"
    assert [task["upid"] for task in lab.ask_api("GET", f"/nodes/{NODE}/tasks", source="active")] == [upid]
    assert finish(lab, upid) == "OK"


def test_what_the_lab_cant_do_is_a_task_of_whoever_does_it_for_a_test(lab: Lab) -> None:
    host = HostState(lab.state)
    begun = Tasks(host).begin("qmrestore", str(VM))
    assert switched(lab)[0] == ("qmrestore", str(VM), "RUNNING")
    Guest(host, "qemu", VM).set_running(False)
    Tasks(host).end(*begun)
    assert switched(lab)[0] == ("qmrestore", str(VM), "OK")
    assert lab.run(f"qm status {VM}").stdout == "status: stopped\n"


def test_an_answer_can_be_replaced(lab: Lab) -> None:
    lab.fault("api-answers", f"PUT /nodes/{NODE}/qemu=595 No route to host")
    with pytest.raises(LabError, match="^595 No route to host$"):
        lab.ask_api("PUT", CONFIG, cores=2)
    assert lab.ask_api("GET", CONFIG)["cores"] == 8


def test_an_answer_can_be_lost_though_the_request_was_carried_out(lab: Lab) -> None:
    stop(lab)
    lab.fault("api-drops", f"PUT /nodes/{NODE}/qemu/{VM}/config")
    with pytest.raises(ConnectionError):
        lab.ask_api("PUT", CONFIG, cores=2)
    assert lab.ask_api("GET", CONFIG)["cores"] == 2


def test_a_request_can_be_lost_before_it_is_carried_out(lab: Lab) -> None:
    lab.fault("api-loses", f"PUT /nodes/{NODE}/qemu/{VM}/config=1")
    with pytest.raises(ConnectionError):
        lab.ask_api("PUT", CONFIG, cores=2)
    assert lab.ask_api("GET", CONFIG)["cores"] == 8
    lab.ask_api("PUT", CONFIG, cores=2)
    assert lab.ask_api("GET", CONFIG)["cores"] == 2


def test_the_api_can_be_too_slow(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.fault("api-seconds", 600)
    with monkeypatch.context() as impatient, pytest.raises(TimeoutError):
        impatient.setattr("lab.client.WAIT_SECONDS", 1.0)
        lab.ask_api("GET", "/version")
    began = time.monotonic()
    lab.reset()
    assert time.monotonic() - began < 60, "a host that goes down waits for no request"


def test_a_foreign_change_comes_in_between_once(lab: Lab) -> None:
    lab.fault("foreign-change", 1)
    with pytest.raises(LabError, match="checksum mismatch"):
        lab.ask_api("PUT", CONFIG, digest=lab.ask_api("GET", CONFIG)["digest"], onboot=0)
    lab.ask_api("PUT", CONFIG, digest=lab.ask_api("GET", CONFIG)["digest"], onboot=0)
    assert "changed by somebody else" in lab.ask_api("GET", CONFIG)["description"]


def test_a_vm_that_ignores_a_shutdown_is_stopped_only_by_force(lab: Lab) -> None:
    lab.fault("guest-ignores-shutdown", VM)
    power = f"{QEMU}/status"
    assert finish(lab, lab.ask_api("POST", f"{power}/shutdown", timeout=0)) == "VM quit/powerdown failed - got timeout"
    assert lab.ask_api("GET", f"{power}/current")["status"] == "running"
    assert finish(lab, lab.ask_api("POST", f"{power}/shutdown", timeout=0, forceStop=1)) == "OK"
    assert lab.ask_api("GET", f"{power}/current")["status"] == "stopped"


def test_a_node_of_the_cluster_that_is_down_is_offline_and_pvesh_doesnt_reach_it(lab: Lab) -> None:
    members = '{"cluster":{"name":"c","quorate":1},"nodelist":{"pve":{"id":1,"online":1,"ip":"192.168.0.202"},"pve2":{"id":2,"online":0,"ip":"192.168.0.203"}}}'
    lab.run("cat >$HOMELAB_ROOT/etc/pve/.members", stdin=members)
    assert {n["node"]: n["status"] for n in lab.ask_api("GET", "/nodes")} == {"pve": "online", "pve2": "offline"}
    with pytest.raises(LabError, match="^500 proxy not allowed$"):
        lab.ask_api("GET", "/nodes/pve2/tasks")
    done = lab.run("pvesh get /nodes/pve2/tasks", check=False)
    assert "ssh: connect to host 192.168.0.203 port 22: No route to host" in done.stderr
    lab.run("cat >$HOMELAB_ROOT/etc/pve/.members", stdin=members.replace('"quorate":1', '"quorate":0'))
    with pytest.raises(LabError) as unwritten:
        lab.ask_api("PUT", CONFIG, cores=2)
    unwritable = rf"500 unable to open file '/etc/pve/nodes/{NODE}/qemu-server/{VM}.conf.tmp.\d+' - Permission denied"
    assert re.fullmatch(unwritable, str(unwritten.value))


# -- guests' life --------------------------------------------------------------------------------------------------------
def test_a_snapshot_is_taken_and_gone_back_to(lab: Lab) -> None:
    stop(lab)
    vm = QEMU
    assert finish(lab, lab.ask_api("POST", f"{vm}/snapshot", snapname="before", description="all well")) == "OK"
    lab.ask_api("PUT", f"{vm}/config", cores=2)
    assert lab.ask_api("GET", f"{vm}/config", snapshot="before")["cores"] == 8
    assert finish(lab, lab.ask_api("POST", f"{vm}/snapshot/before/rollback")) == "OK"
    assert lab.ask_api("GET", f"{vm}/config")["cores"] == 8


@pytest.mark.parametrize(("begun", "tasks", "runs"), [(0, ["qmrollback"], False), (1, ["qmstart", "qmrollback"], True)])
def test_a_rollback_stops_a_vm_and_starts_it_by_a_task_of_its_own_where_that_is_asked_for(
    lab: Lab, begun: int, tasks: list[str], runs: bool
) -> None:
    assert finish(lab, lab.ask_api("POST", f"{QEMU}/snapshot", snapname="before")) == "OK"
    before = len(switched(lab))
    assert finish(lab, lab.ask_api("POST", f"{QEMU}/snapshot/before/rollback", start=begun)) == "OK"
    wait_until(lambda: not lab.ask_api("GET", f"/nodes/{NODE}/tasks", source="active"))
    assert switched(lab)[:-before] == [(kind, str(VM), "OK") for kind in tasks]
    assert lab.run(f"qm status {VM}").stdout == f"status: {'running' if runs else 'stopped'}\n"


def test_no_memory_is_put_on_a_disk_and_a_vm_that_is_said_to_sleep_there_is_off_until_it_is_resumed(lab: Lab) -> None:
    for path, asked in (("snapshot", {"snapname": "before", "vmstate": 1}), ("status/suspend", {"todisk": 1})):
        with pytest.raises(LabError, match="^501 the lab does nothing for"):
            lab.ask_api("POST", f"{QEMU}/{path}", **asked)
    lab.run(f"qm stop {VM}; echo 'lock: suspended' >>$HOMELAB_ROOT/etc/pve/qemu-server/{VM}.conf; qm resume {VM}")
    assert lab.run(f"qm status {VM}").stdout == "status: running\n"
    assert "lock" not in lab.ask_api("GET", CONFIG)
    assert switched(lab)[0][0] == "qmresume"


def test_what_is_started_once_it_was_made_is_started_by_a_task_of_its_own(lab: Lab) -> None:
    lab.run("qm create 200 --memory 512 --start 1")
    assert switched(lab)[:2] == [("qmstart", "200", "OK"), ("qmcreate", "200", "OK")]
    assert lab.run("qm status 200").stdout == "status: running\n"


def test_a_clone_gets_disks_and_addresses_of_its_own(lab: Lab) -> None:
    stop(lab)
    assert finish(lab, lab.ask_api("POST", f"{QEMU}/clone", newid=200, name="copy")) == "OK"
    old, new = (lab.ask_api("GET", f"/nodes/{NODE}/qemu/{vmid}/config") for vmid in (VM, 200))
    assert new["name"] == "copy" and new["cores"] == old["cores"]
    assert "vm-200-disk-" in new["scsi0"] and new["net0"] != old["net0"]
    assert finish(lab, lab.ask_api("PUT", f"/nodes/{NODE}/qemu/200/resize", disk="scsi0", size="+8G")) == "OK"
    assert lab.ask_api("GET", f"/nodes/{NODE}/qemu/200/config")["scsi0"].endswith("size=136G")


def test_an_id_that_is_taken_is_refused_and_the_next_free_one_is_told(lab: Lab) -> None:
    with pytest.raises(LabError) as refused:
        lab.ask_api("POST", f"/nodes/{NODE}/lxc", vmid=VM, ostemplate="local:vztmpl/x.tar.gz")
    assert str(refused.value) == f"500 VM {VM} already exists on node 'pve'"
    assert lab.ask_api("GET", "/cluster/nextid") == "100"
    with pytest.raises(LabError):
        lab.ask_api("GET", "/cluster/nextid", vmid=VM)


def test_a_vm_that_is_removed_leaves_nothing(lab: Lab) -> None:
    made = lab.ask_api(
        "POST", f"/nodes/{NODE}/qemu", vmid=200, efidisk0="local-lvm:1,efitype=4m", ide2="none,media=cdrom"
    )
    assert finish(lab, made) == "OK"
    assert (
        lab.ask_api("GET", f"/nodes/{NODE}/qemu/200/config")["efidisk0"] == "local-lvm:vm-200-disk-0,efitype=4m,size=4M"
    )
    assert finish(lab, lab.ask_api("DELETE", f"/nodes/{NODE}/qemu/200", purge=1)) == "OK"
    assert [vm["vmid"] for vm in lab.ask_api("GET", f"/nodes/{NODE}/qemu")] == [VM]
    assert not (lab.root / "etc/pve/qemu-server/200.conf").exists()


def test_a_vm_that_couldnt_be_made_leaves_nothing(lab: Lab) -> None:
    made = lab.ask_api("POST", f"/nodes/{NODE}/qemu", vmid=200, scsi0="local:8")
    assert finish(lab, made) == "unable to create VM 200 - storage 'local' does not support content-type 'images'"
    assert [vm["vmid"] for vm in lab.ask_api("GET", f"/nodes/{NODE}/qemu")] == [VM]
