"""The lab's API, by the clients that the program uses: one truth with the SSH side, power, rights, faults."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException

from lab import Lab

GPU = "0000:01:00"
NODE = "pve"
VM = 103


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("rtx5090", state=tmp_path_factory.mktemp("api") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """A lab whose host is stock: VM 103 runs, nothing else is there."""
    yield shared_lab
    shared_lab.reset()


def connect(lab: Lab, **changes: Any) -> ProxmoxAPI:
    """proxmoxer, as root@pam with a password."""
    api = lab.api
    options = {"user": api["user"], "password": api["password"], "verify_ssl": api["caFile"], "timeout": 30, **changes}
    return ProxmoxAPI(api["host"], port=api["port"], **options)


def by_token(lab: Lab, identity: str, secret: str) -> ProxmoxAPI:
    user, _, name = identity.partition("!")
    return connect(lab, user=user, password=None, token_name=name, token_value=secret)


@pytest.fixture
def root(lab: Lab) -> ProxmoxAPI:
    return connect(lab)


@pytest.fixture
def token(lab: Lab) -> ProxmoxAPI:
    return by_token(lab, lab.api["tokenId"], lab.api["tokenSecret"])


def finish(api: ProxmoxAPI, upid: str) -> str:
    """Wait for a task; its exit status."""
    deadline = time.monotonic() + 60
    while (status := api.nodes(NODE).tasks(upid).status.get())["status"] == "running":
        assert time.monotonic() < deadline, f"{upid} didn't end"
        time.sleep(0.02)
    return str(status["exitstatus"])


def log_of(api: ProxmoxAPI, upid: str) -> list[str]:
    return [entry["t"] for entry in api.nodes(NODE).tasks(upid).log.get()]


def stop(api: ProxmoxAPI, vmid: int = VM) -> None:
    assert finish(api, api.nodes(NODE).qemu(vmid).status.stop.post()) == "OK"


def start(api: ProxmoxAPI, vmid: int = VM) -> str:
    return finish(api, api.nodes(NODE).qemu(vmid).status.start.post())


def map_gpu(api: ProxmoxAPI) -> None:
    entry = f"node={NODE},path={GPU},id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3"
    api.cluster.mapping.pci.post(id="gpu0", map=entry)


def drivers(lab: Lab) -> list[str]:
    text = lab.run(f"for f in 0 1; do basename $(readlink $ROOT/sys/bus/pci/devices/{GPU}.$f/driver); done").stdout
    return text.split()


def refusal(error: pytest.ExceptionInfo[ResourceException]) -> str:
    return f"{error.value.status_code} {error.value.content}"


# -- reaching it ---------------------------------------------------------------------------------------------------
def test_a_password_and_a_token_let_in(root: ProxmoxAPI, token: ProxmoxAPI) -> None:
    assert root.version.get()["release"] == token.version.get()["release"] == "9.1"
    root.cluster.options.put(keyboard="de")
    assert token.cluster.options.get()["keyboard"] == "de"


def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(AuthenticationError):
        connect(lab, password="wrong")


def test_a_client_that_doesnt_know_the_authority_refuses_the_certificate(lab: Lab) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        connect(lab, verify_ssl=True)


def test_the_certificate_has_the_fingerprint_that_lab_json_names(lab: Lab, root: ProxmoxAPI) -> None:
    text = ssl.get_server_certificate((lab.api["host"], lab.api["port"]))
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest().upper()
    assert lab.api["fingerprint"].replace(":", "") == fingerprint
    assert root.nodes.get()[0]["ssl_fingerprint"] == lab.api["fingerprint"]
    assert text.strip() == lab.run("cat $ROOT/etc/pve/local/pve-ssl.pem").stdout.strip()


def test_a_reset_keeps_port_certificate_and_secrets(lab: Lab) -> None:
    before = lab.api
    by_token(lab, before["tokenId"], before["tokenSecret"]).access.users.post(userid="somebody@pve")
    lab.reset()
    assert lab.api == before
    users = by_token(lab, before["tokenId"], before["tokenSecret"]).access.users.get()
    assert [user["userid"] for user in users] == ["root@pam"]


def test_while_the_host_is_down_nobody_answers(lab: Lab, root: ProxmoxAPI) -> None:
    boots = len(lab.boots())
    root.nodes(NODE).status.post(command="shutdown")
    lab.wait_settled()
    with socket.socket() as client:
        assert client.connect_ex((lab.api["host"], lab.api["port"])) != 0
    lab.power_cycle()
    assert len(lab.boots()) == boots + 1
    assert connect(lab).version.get()


def test_a_reboot_ends_the_tasks_that_run(lab: Lab, root: ProxmoxAPI) -> None:
    lab.fault("task-seconds", 300)
    upid = root.nodes(NODE).qemu(VM).status.stop.post()
    boots = len(lab.boots())
    root.nodes(NODE).status.post(command="reboot")
    lab.wait_settled(boots=boots + 1)
    assert finish(connect(lab), upid) == "interrupted by signal"


def test_requests_are_logged_without_their_secrets(lab: Lab) -> None:
    mark = lab.mark()
    connect(lab).access.users.post(userid="a@pve", password="geheim-geheim")
    calls = lab.api_calls(mark)
    assert [(call["method"], call["path"], call["status"]) for call in calls] == [
        ("POST", "/access/ticket", 200),
        ("POST", "/access/users", 200),
    ]
    assert calls[1]["who"] == "root@pam"
    assert "geheim" not in str(calls) and lab.api["password"] not in str(calls)


# -- one truth -----------------------------------------------------------------------------------------------------
def test_what_qm_does_is_what_the_api_sees(lab: Lab, token: ProxmoxAPI) -> None:
    lab.run(f"qm stop {VM} && qm set {VM} --cores 3 --description 'set by hand'")
    config = token.nodes(NODE).qemu(VM).config.get()
    assert (config["cores"], config["description"]) == (3, "set by hand")
    assert token.nodes(NODE).qemu(VM).status.current.get()["status"] == "stopped"
    assert token.nodes(NODE).tasks.get()[0]["type"] == "qmstop"


def test_what_the_api_does_is_what_qm_and_pct_see(lab: Lab, token: ProxmoxAPI) -> None:
    made = token.nodes(NODE).qemu.post(
        vmid=200, name="made", memory=512, scsi0="local-lvm:8", net0="virtio,bridge=vmbr0"
    )
    assert finish(token, made) == "OK"
    assert start(token, 200) == "OK"
    assert "made                 running" in lab.run("qm list").stdout
    config = lab.run("cat $ROOT/etc/pve/qemu-server/200.conf").stdout
    assert "scsi0: local-lvm:vm-200-disk-0,size=8G\n" in config
    assert lab.run("qm status 200").stdout == "status: running\n"
    assert (lab.root / "run/qemu-server/200.pid").exists()


def test_a_configuration_edited_by_hand_has_another_digest(lab: Lab, token: ProxmoxAPI) -> None:
    before = token.nodes(NODE).qemu(VM).config.get()["digest"]
    lab.run(f"echo 'tags: mine' >>$ROOT/etc/pve/qemu-server/{VM}.conf")
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).qemu(VM).config.put(digest=before, cores=2)
    assert refusal(refused) == "500 checksum mismatch (file change by other user?)"
    assert token.nodes(NODE).qemu(VM).config.get()["tags"] == "mine"


def test_an_untouched_key_keeps_its_bytes(lab: Lab, token: ProxmoxAPI) -> None:
    stop(token)
    before = lab.run(f"cat $ROOT/etc/pve/qemu-server/{VM}.conf").stdout
    token.nodes(NODE).qemu(VM).config.put(balloon=0)
    token.nodes(NODE).qemu(VM).config.put(delete="balloon")
    assert lab.run(f"cat $ROOT/etc/pve/qemu-server/{VM}.conf").stdout == before


def test_pvesh_asks_the_same_api(lab: Lab, token: ProxmoxAPI) -> None:
    lab.run(f"pvesh create /cluster/mapping/pci --id gpu0 --map node={NODE},path={GPU},id=10de:2b85,iommugroup=14")
    assert [mapping["id"] for mapping in token.cluster.mapping.pci.get()] == ["gpu0"]
    done = lab.run("pvesh get /cluster/mapping/pci/none --output-format json", check=False)
    assert (done.returncode, done.stderr.strip()) == (255, "mapping 'none' not found")


def test_pveum_makes_a_token_that_may_what_its_role_says(lab: Lab, root: ProxmoxAPI) -> None:
    lab.run('pveum role add Homelab --privs "VM.Audit VM.Config.Options"')
    lab.run("pveum role modify Homelab --privs VM.PowerMgmt,VM.Config.CPU --append 1")
    lab.run("pveum user add homelab@pve --comment 'of the program'")
    lab.run("pveum acl modify /vms --users homelab@pve --roles Homelab")
    done = lab.run("pveum user token add homelab@pve pulumi --privsep 1 --output-format json")
    made = json.loads(done.stdout)
    assert (made["full-tokenid"], made["info"]) == ("homelab@pve!pulumi", {"privsep": "1"})
    user = by_token(lab, made["full-tokenid"], made["value"])
    with pytest.raises(ResourceException) as refused:
        user.nodes(NODE).qemu(VM).config.get()
    assert refusal(refused) == f"403 Permission check failed (/vms/{VM}, VM.Audit)"
    lab.run("pveum acl modify /vms --tokens 'homelab@pve!pulumi' --roles Homelab --propagate 0")
    with pytest.raises(ResourceException):
        user.nodes(NODE).qemu(VM).config.get()
    lab.run("pveum acl modify /vms --tokens 'homelab@pve!pulumi' --roles Homelab --propagate 1")
    user.nodes(NODE).qemu(VM).config.put(cores=3)
    assert [role["privs"] for role in root.access.roles.get() if role["roleid"] == "Homelab"] == [
        "VM.Audit,VM.Config.CPU,VM.Config.Options,VM.PowerMgmt"
    ]
    listed = json.loads(lab.run("pveum acl list --output-format json").stdout)
    assert [entry["ugid"] for entry in listed if entry["roleid"] == "Homelab"] == ["homelab@pve", "homelab@pve!pulumi"]
    lab.run("pveum acl delete /vms --users homelab@pve --roles Homelab")
    with pytest.raises(ResourceException):
        user.nodes(NODE).qemu(VM).config.get()
    lab.run("pveum role delete Homelab && pveum user delete homelab@pve")
    with pytest.raises(ResourceException) as gone:
        user.version.get()
    assert gone.value.status_code == 401
    assert "homelab" not in lab.run("cat $ROOT/etc/pve/user.cfg").stdout.lower()


def test_pveum_prints_tables_for_people(lab: Lab) -> None:
    lab.run("pveum user add gpu@pve")
    made = lab.run("pveum user token add gpu@pve second --privsep=0").stdout
    secret = re.search(r"│ value +│ ([0-9a-f-]{36}) │\n", made)
    assert secret is not None
    assert made.splitlines() == [
        "┌──────────────┬──────────────────────────────────────┐",
        "│ key          │ value                                │",
        "╞══════════════╪══════════════════════════════════════╡",
        "│ full-tokenid │ gpu@pve!second                       │",
        "├──────────────┼──────────────────────────────────────┤",
        '│ info         │ {"privsep":"0"}                      │',
        "├──────────────┼──────────────────────────────────────┤",
        f"│ value        │ {secret[1]} │",
        "└──────────────┴──────────────────────────────────────┘",
    ]
    assert lab.run("pveum user token add gpu@pve first --comment 'the other' --quiet").stdout == ""
    listed = lab.run("pveum user token list gpu@pve").stdout
    assert listed.splitlines()[1::2] == [
        "│ tokenid │ comment   │ expire │ privsep │",
        "│ first   │ the other │      0 │ 1       │",
        "│ second  │           │      0 │ 0       │",
    ]
    lab.run("pveum user token delete gpu@pve first && pveum user token remove gpu@pve second")
    assert lab.run("pveum user token list gpu@pve").stdout == ""


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("pveum user token add nobody@pve pulumi", 255, "no such user ('nobody@pve')"),
        ("pveum role add Administrator", 255, "role 'Administrator' already exists"),
        (
            "pveum role add pveMine",
            255,
            "roleid: cannot use role ID starting with the (case-insensitive) 'PVE' namespace",
        ),
        ("pveum role add Homelab --privs 'VM.Everything'", 255, "invalid privilege 'VM.Everything'"),
        ("pveum acl modify / --users nobody@pve --roles PVEAdmin", 255, "user 'nobody@pve' does not exist"),
        ("pveum acl modify '/no where' --users root@pam --roles PVEAdmin", 255, "invalid ACL path '/no where'"),
        ("pveum user token add root@pam", 2, "wanted <userid> <tokenid>, found 'root@pam'"),
        ("pveum user token add root@pam --privsep 0", 2, "wanted <userid> <tokenid>"),
        ("pveum user add one@pve two@pve", 2, "unexpected argument 'two@pve'"),
        ("pveum realm list", 2, "the lab's pveum has no 'realm list'"),
        ("pveum user list --output-format yaml", 2, "not 'yaml'"),
    ],
)
def test_what_pveum_cant_do_it_refuses(lab: Lab, command: str, status: int, words: str) -> None:
    before = lab.run("cat $ROOT/etc/pve/user.cfg").stdout
    done = lab.run(command, check=False)
    assert done.returncode == status and words in done.stderr, done.stderr
    assert lab.run("cat $ROOT/etc/pve/user.cfg").stdout == before


def test_a_lock_that_was_left_goes_with_qm_unlock(lab: Lab, token: ProxmoxAPI) -> None:
    lab.run(f"echo 'lock: backup' >>$ROOT/etc/pve/qemu-server/{VM}.conf")
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).qemu(VM).config.put(cores=3)
    assert refusal(refused) == "500 VM is locked (backup)"
    lab.run(f"qm unlock {VM}")
    token.nodes(NODE).qemu(VM).config.put(cores=3)
    assert "lock" not in token.nodes(NODE).qemu(VM).config.get()
    lab.run(f"qm unlock {VM}")  # that there is none is no error
    done = lab.run("qm unlock 999", check=False)
    assert (done.returncode, "Configuration file" in done.stderr) == (2, True)


# -- a GPU -----------------------------------------------------------------------------------------------------------
def test_a_start_binds_the_cards_whole_group_to_vfio(lab: Lab, token: ProxmoxAPI) -> None:
    map_gpu(token)
    stop(token)
    token.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    assert drivers(lab) != ["vfio-pci", "vfio-pci"]
    assert start(token) == "OK"
    assert drivers(lab) == ["vfio-pci", "vfio-pci"]
    stop(token)
    assert drivers(lab) == ["vfio-pci", "vfio-pci"], "a real host leaves them there too"


@pytest.mark.parametrize("asked", ["hostpci0", "delete", "revert"])
def test_what_waits_doesnt_hide_from_a_token_that_a_raw_device_is_in_force(
    lab: Lab, token: ProxmoxAPI, asked: str
) -> None:
    """PVE::API2::Qemu, update_vm_api: `$conf->{$opt}` is looked at, not what waits; to revert is to set that value anew."""
    map_gpu(token)
    lab.run(
        f"qm stop {VM}; qm set {VM} --hostpci0 {GPU},pcie=1; qm start {VM}; qm set {VM} --hostpci0 mapping=gpu0,pcie=1"
    )
    with pytest.raises(ResourceException, match="only root can set 'hostpci0' config for non-mapped devices"):
        token.nodes(NODE).qemu(VM).config.put(**{asked: "mapping=gpu0" if asked == "hostpci0" else "hostpci0"})
    lab.run(f"qm set {VM} --revert hostpci0")
    assert token.nodes(NODE).qemu(VM).config.get()["hostpci0"] == f"{GPU},pcie=1"


def test_a_card_that_a_running_vm_has_is_refused_to_another_also_by_qm(lab: Lab, token: ProxmoxAPI) -> None:
    map_gpu(token)
    stop(token)
    token.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    assert start(token) == "OK"
    other = token.nodes(NODE).qemu.post(vmid=200, machine="q35", hostpci0="mapping=gpu0,pcie=1")
    assert finish(token, other) == "OK"
    message = f"PCI device '{GPU}.0' already in use by VMID '{VM}'"
    assert start(token, 200) == message
    done = lab.run("qm start 200", check=False)
    assert done.returncode == 255 and message in done.stderr
    stop(token)
    assert start(token, 200) == "OK"


def test_a_pending_gpu_comes_with_the_next_start(token: ProxmoxAPI) -> None:
    map_gpu(token)
    token.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    pending = {entry["key"]: entry for entry in token.nodes(NODE).qemu(VM).pending.get()}
    assert pending["hostpci0"] == {"key": "hostpci0", "pending": "mapping=gpu0,pcie=1"}
    assert "hostpci0" not in token.nodes(NODE).qemu(VM).config.get(current=1)
    assert finish(token, token.nodes(NODE).qemu(VM).status.reboot.post()) == "OK"
    assert token.nodes(NODE).qemu(VM).config.get(current=1)["hostpci0"] == "mapping=gpu0,pcie=1"


def test_without_an_iommu_a_card_cant_be_passed(tmp_path: Path) -> None:
    with Lab.start("iommu-off", state=tmp_path / "lab") as lab:
        gpu, *_ = [
            device
            for device in connect(lab).nodes(lab.api["node"]).hardware.pci.get()
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


def test_a_vm_that_starts_with_the_host_gets_its_card_or_doesnt_run(lab: Lab, root: ProxmoxAPI) -> None:
    map_gpu(root)
    stop(root)
    root.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    lab.reboot()
    again = connect(lab)
    assert again.nodes(NODE).qemu(VM).status.current.get()["status"] == "running"
    assert drivers(lab) == ["vfio-pci", "vfio-pci"]
    again.cluster.mapping.pci("gpu0").put(map=f"node={NODE},path={GPU},id=10de:9999,iommugroup=14")
    lab.reboot()
    again = connect(lab)
    assert again.nodes(NODE).qemu(VM).status.current.get()["status"] == "stopped"
    task = again.nodes(NODE).tasks.get()[0]
    assert task["type"] == "qmstart" and "'id' does not match for 'gpu0'" in task["status"]


def test_the_agent_shows_the_card_inside_the_guest(lab: Lab, token: ProxmoxAPI) -> None:
    map_gpu(token)
    stop(token)
    token.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    assert start(token) == "OK"
    guest = token.nodes(NODE).qemu(VM).agent
    until_answers(guest)
    listed = execute(guest, ["lspci", "-n"])
    assert "01:00.0 0300: 10de:2b85 (rev a1)\n" in listed["out-data"]
    assert "01:00.1 0403: 10de:22e8 (rev a1)\n" in listed["out-data"]
    bars = execute(guest, ["sh", "-c", f"head -2 $ROOT/sys/bus/pci/devices/{GPU}.0/resource; exit 3"])
    assert bars["exitcode"] == 3 and bars["out-data"].count("0x00") >= 4
    assert guest("get-osinfo").get()["result"]["id"] == "ubuntu"


def until_answers(guest: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            guest.ping.post()
            return
        except ResourceException as error:
            assert "QEMU guest agent is not running" in str(error)
            assert time.monotonic() < deadline, "the agent never answered"
            time.sleep(0.05)


def execute(guest: Any, command: list[str]) -> dict[str, Any]:
    pid = guest.exec.post(command=command)["pid"]
    deadline = time.monotonic() + 60
    while not (done := guest("exec-status").get(pid=pid))["exited"]:
        assert time.monotonic() < deadline, f"{command} didn't end"
        time.sleep(0.02)
    return dict(done)


# -- rights ------------------------------------------------------------------------------------------------------------
def made_token(root: ProxmoxAPI, lab: Lab, *roles: tuple[str, str], privsep: int = 0) -> ProxmoxAPI:
    """A token of a new user, with roles on paths."""
    root.access.users.post(userid="gpu@pve")
    made = root.access.users("gpu@pve").token("tok").post(privsep=privsep)
    for path, role in roles:
        root.access.acl.put(path=path, roles=role, users="gpu@pve")
    return by_token(lab, made["full-tokenid"], made["value"])


def test_a_mapped_gpu_takes_two_privileges(lab: Lab, root: ProxmoxAPI) -> None:
    map_gpu(root)
    stop(root)
    root.access.roles.post(roleid="HW", privs="VM.Config.HWType,VM.Audit")
    user = made_token(root, lab, (f"/vms/{VM}", "HW"))
    with pytest.raises(ResourceException) as refused:
        user.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    assert refusal(refused) == "403 Permission check failed (/mapping/pci/gpu0, Mapping.Use)"
    root.access.acl.put(path="/mapping/pci/gpu0", roles="PVEMappingUser", users="gpu@pve")
    user.nodes(NODE).qemu(VM).config.put(hostpci0="mapping=gpu0,pcie=1")
    assert user.nodes(NODE).qemu(VM).config.get()["hostpci0"] == "mapping=gpu0,pcie=1"


def test_a_separated_token_may_what_both_it_and_its_user_may(lab: Lab, root: ProxmoxAPI) -> None:
    token = made_token(root, lab, ("/vms", "PVEVMUser"), privsep=1)
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).qemu(VM).config.get()
    assert refusal(refused) == f"403 Permission check failed (/vms/{VM}, VM.Audit)"
    root.access.acl.put(path="/vms", roles="PVEVMAdmin", tokens="gpu@pve!tok")
    assert token.nodes(NODE).qemu(VM).config.get()["name"] == "Sandbox"
    with pytest.raises(ResourceException):
        token.nodes(NODE).qemu(VM).config.put(cores=2)  # the user's role hasn't VM.Config.CPU


def test_a_deeper_entry_replaces_one_further_up(lab: Lab, root: ProxmoxAPI) -> None:
    user = made_token(root, lab, ("/", "PVEVMAdmin"), (f"/vms/{VM}", "PVEAuditor"))
    assert user.nodes(NODE).qemu(VM).config.get()
    with pytest.raises(ResourceException) as refused:
        user.nodes(NODE).qemu(VM).status.stop.post()
    assert refusal(refused) == f"403 Permission check failed (/vms/{VM}, VM.PowerMgmt)"
    root.access.acl.put(path=f"/vms/{VM}", roles="NoAccess", users="gpu@pve")
    assert user.nodes(NODE).qemu.get() == []


def test_a_role_that_doesnt_propagate_ends_where_it_was_given(lab: Lab, root: ProxmoxAPI) -> None:
    user = made_token(root, lab)
    root.access.acl.put(path="/vms", roles="PVEAuditor", users="gpu@pve", propagate=0)
    assert user.access.permissions.get(path="/vms")["/vms"]["VM.Audit"] == 0
    assert user.access.permissions.get(path=f"/vms/{VM}") == {}


# -- faults --------------------------------------------------------------------------------------------------------------
def test_a_task_fails_with_the_faults_status(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("task-fails", "qmstop=out of luck")
    upid = token.nodes(NODE).qemu(VM).status.stop.post()
    assert finish(token, upid) == "out of luck"
    assert log_of(token, upid) == ["TASK ERROR: out of luck"]
    assert token.nodes(NODE).qemu(VM).status.current.get()["status"] == "running"


def test_a_task_can_be_seen_running(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("task-seconds", 1)
    upid = token.nodes(NODE).qemu(VM).status.stop.post()
    assert token.nodes(NODE).tasks(upid).status.get()["status"] == "running"
    assert [task["upid"] for task in token.nodes(NODE).tasks.get(source="active")] == [upid]
    assert finish(token, upid) == "OK"


def test_an_answer_can_be_replaced(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("api-answers", f"PUT /nodes/{NODE}/qemu=595 No route to host")
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).qemu(VM).config.put(cores=2)
    assert (refused.value.status_code, refused.value.content) == (595, "No route to host")
    assert token.nodes(NODE).qemu(VM).config.get()["cores"] == 8


def test_an_answer_can_be_lost_though_the_request_was_carried_out(lab: Lab, token: ProxmoxAPI) -> None:
    stop(token)
    lab.fault("api-drops", f"PUT /nodes/{NODE}/qemu/{VM}/config")
    with pytest.raises(requests.exceptions.ConnectionError):
        token.nodes(NODE).qemu(VM).config.put(cores=2)
    assert token.nodes(NODE).qemu(VM).config.get()["cores"] == 2


def test_a_request_can_be_lost_before_it_is_carried_out(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("api-loses", f"PUT /nodes/{NODE}/qemu/{VM}/config=1")
    with pytest.raises(requests.exceptions.ConnectionError):
        token.nodes(NODE).qemu(VM).config.put(cores=2)
    assert token.nodes(NODE).qemu(VM).config.get()["cores"] == 8
    token.nodes(NODE).qemu(VM).config.put(cores=2)
    assert token.nodes(NODE).qemu(VM).config.get()["cores"] == 2


def test_the_api_can_be_too_slow(lab: Lab) -> None:
    impatient = connect(lab, timeout=1)
    lab.fault("api-seconds", 600)
    with pytest.raises(requests.exceptions.ReadTimeout):
        impatient.version.get()
    began = time.monotonic()
    lab.reset()
    assert time.monotonic() - began < 60, "a host that goes down waits for no request"


def test_a_foreign_change_comes_in_between_once(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("foreign-change", 1)
    vm = token.nodes(NODE).qemu(VM)
    with pytest.raises(ResourceException, match="checksum mismatch"):
        vm.config.put(digest=vm.config.get()["digest"], onboot=0)
    vm.config.put(digest=vm.config.get()["digest"], onboot=0)
    assert "changed by somebody else" in vm.config.get()["description"]


def test_a_vm_that_ignores_a_shutdown_is_stopped_only_by_force(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("guest-ignores-shutdown", VM)
    power = token.nodes(NODE).qemu(VM).status
    assert finish(token, power.shutdown.post(timeout=0)) == "VM quit/powerdown failed - got timeout"
    assert power.current.get()["status"] == "running"
    assert finish(token, power.shutdown.post(timeout=0, forceStop=1)) == "OK"
    assert power.current.get()["status"] == "stopped"


def test_a_silent_agent_says_nothing(lab: Lab, token: ProxmoxAPI) -> None:
    lab.fault("agent-silent", True)
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).qemu(VM).agent.ping.post()
    assert refusal(refused) == "500 QEMU guest agent is not running"


def test_a_node_of_the_cluster_that_is_down_answers_595(lab: Lab, token: ProxmoxAPI) -> None:
    members = '{"cluster":{"name":"c","quorate":1},"nodelist":{"pve":{"id":1,"online":1,"ip":"192.168.0.202"},"pve2":{"id":2,"online":0,"ip":"192.168.0.203"}}}'
    lab.run("cat >$ROOT/etc/pve/.members", stdin=members)
    assert {n["node"]: n["status"] for n in token.nodes.get()} == {"pve": "online", "pve2": "offline"}
    with pytest.raises(ResourceException) as refused:
        token.nodes("pve2").status.get()
    assert refused.value.status_code == 595
    lab.run("cat >$ROOT/etc/pve/.members", stdin=members.replace('"quorate":1', '"quorate":0'))
    with pytest.raises(ResourceException) as unwritten:
        token.nodes(NODE).qemu(VM).config.put(cores=2)
    unwritable = rf"500 unable to open file '/etc/pve/nodes/{NODE}/qemu-server/{VM}.conf.tmp.\d+' - Permission denied"
    assert re.fullmatch(unwritable, refusal(unwritten))


# -- guests' life --------------------------------------------------------------------------------------------------------
def test_a_snapshot_is_taken_and_gone_back_to(token: ProxmoxAPI) -> None:
    stop(token)
    vm = token.nodes(NODE).qemu(VM)
    assert finish(token, vm.snapshot.post(snapname="before", description="all well")) == "OK"
    vm.config.put(cores=2)
    assert vm.config.get(snapshot="before")["cores"] == 8
    assert finish(token, vm.snapshot("before").rollback.post()) == "OK"
    assert vm.config.get()["cores"] == 8
    assert [s["name"] for s in vm.snapshot.get()] == ["before", "current"]
    assert finish(token, vm.snapshot("before").delete()) == "OK"
    assert [s["name"] for s in vm.snapshot.get()] == ["current"]


def test_a_clone_gets_disks_and_addresses_of_its_own(token: ProxmoxAPI) -> None:
    stop(token)
    assert finish(token, token.nodes(NODE).qemu(VM).clone.post(newid=200, name="copy")) == "OK"
    old, new = (token.nodes(NODE).qemu(vmid).config.get() for vmid in (VM, 200))
    assert new["name"] == "copy" and new["cores"] == old["cores"]
    assert "vm-200-disk-" in new["scsi0"] and new["net0"] != old["net0"]
    assert finish(token, token.nodes(NODE).qemu(200).resize.put(disk="scsi0", size="+8G")) == "OK"
    assert token.nodes(NODE).qemu(200).config.get()["scsi0"].endswith("size=136G")


def test_an_id_that_is_taken_is_refused_and_the_next_free_one_is_told(token: ProxmoxAPI) -> None:
    with pytest.raises(ResourceException) as refused:
        token.nodes(NODE).lxc.post(vmid=VM, ostemplate="local:vztmpl/x.tar.gz")
    assert refusal(refused) == f"500 VM {VM} already exists on node 'pve'"
    assert token.cluster.nextid.get() == "100"
    with pytest.raises(ResourceException):
        token.cluster.nextid.get(vmid=VM)


def test_a_vm_that_is_removed_leaves_nothing(lab: Lab, token: ProxmoxAPI) -> None:
    made = token.nodes(NODE).qemu.post(vmid=200, efidisk0="local-lvm:1,efitype=4m", ide2="none,media=cdrom")
    assert finish(token, made) == "OK"
    assert token.nodes(NODE).qemu(200).config.get()["efidisk0"] == "local-lvm:vm-200-disk-0,efitype=4m,size=4M"
    assert finish(token, token.nodes(NODE).qemu(200).delete(purge=1)) == "OK"
    assert [vm["vmid"] for vm in token.nodes(NODE).qemu.get()] == [VM]
    assert not (lab.root / "etc/pve/qemu-server/200.conf").exists()


def test_a_vm_that_couldnt_be_made_leaves_nothing(token: ProxmoxAPI) -> None:
    made = token.nodes(NODE).qemu.post(vmid=200, scsi0="local:8")
    assert finish(token, made) == "unable to create VM 200 - storage 'local' does not support content-type 'images'"
    assert [vm["vmid"] for vm in token.nodes(NODE).qemu.get()] == [VM]
