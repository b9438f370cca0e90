"""What is inside the lab's VMs: they answer SSH as a Linux does, and boot, reboot and go off as their VM."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncssh
import pytest
import yaml

from lab import Lab, LabError
from lab.control import request
from lab.ports import guest_address
from lab.scenario import SCENARIO_FOLDER, ScenarioError, scenario_from
from lab.state import process_start_time
from tests import waiting
from tests.simulator.ssh_kit import connect, connected, openssh
from tests.simulator.test_api import finish
from tests.simulator.test_cli import cli
from tests.simulator.test_server_power import daemon_pid
from tests.waiting import PATIENCE

# A guest takes its time to boot.
wait_until = functools.partial(waiting.wait_until, seconds=30.0)

SCENARIO, VM = "rtx5090", 103
BOOT_ID = "cat $HOMELAB_ROOT/proc/sys/kernel/random/boot_id"
NET = "virtio,bridge=vmbr0"


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """A lab whose VM 103 answers SSH."""
    for name in shared_lab.machine.faults:
        shared_lab.fault(name, None)
    if "stopped" in shared_lab.run(f"qm status {VM}").stdout:
        shared_lab.run(f"qm start {VM}")
    shared_lab.wait_guest(VM)
    return shared_lab


@pytest.fixture
def other(lab: Lab) -> Iterator[int]:
    """A second VM, 200, made at the shell; it is off, and removed in the end."""
    lab.run(f"qm create 200 --name other --memory 512 --agent 1 --net0 {NET}")
    yield 200
    lab.run("qm stop 200 && qm destroy 200")


def execute(lab: Lab, command: str, stdin: str = "", vmid: int = VM, **changes: Any) -> asyncssh.SSHCompletedProcess:
    async def main() -> asyncssh.SSHCompletedProcess:
        async with connected(lab.guest(vmid), **changes) as connection:
            return await connection.run(command, input=stdin)

    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


def output(lab: Lab, command: str, stdin: str = "", vmid: int = VM, **changes: Any) -> str:
    done = execute(lab, command, stdin, vmid, **changes)
    assert done.exit_status == 0, f"{command}\n{done.stdout!s}{done.stderr!s}"
    return str(done.stdout)


@contextlib.contextmanager
def session(lab: Lab, command: str, vmid: int = VM) -> Iterator[subprocess.Popen[str]]:
    """A command over OpenSSH's client that has said its first line, `ready`."""
    with openssh(lab.guest(vmid), command) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        yield client


def connects(lab: Lab, vmid: int = VM) -> bool:
    to = lab.guest(vmid)
    with socket.socket() as client:
        return client.connect_ex((to["host"], to["port"])) == 0


def root_of(lab: Lab, vmid: int = VM) -> Path:
    return lab.state / "guests" / str(vmid) / "root"


def ask(lab: Lab, verb: str, path: str, vmid: int = VM, **parameters: Any) -> Any:
    """Ask the API for something of a VM."""
    return lab.ask_api(verb, f"/nodes/{lab.api['node']}/qemu/{vmid}/{path}", **parameters)


# -- logging in ----------------------------------------------------------------------------------------------------
def test_openssh_logs_in_by_what_the_lab_says_of_the_guest(lab: Lab, tmp_path: Path) -> None:
    to = lab.guest(VM)
    assert (to["host"], to["user"]) == ("127.64.0.103", "ubuntu")
    assert to["port"] >= 1024
    known = tmp_path / "known_hosts"
    known.write_text(f"[{to['host']}]:{to['port']} {to['hostKey']}\n")
    options = ["-F/dev/null", "-oStrictHostKeyChecking=yes", f"-oUserKnownHostsFile={known}"]
    target = ["-i", to["privateKeyFile"], "-p", str(to["port"]), f"{to['user']}@{to['host']}"]
    script = 'printf "%s\\n" "$(printenv USER)" "$@"; exit 7\n'
    done = subprocess.run(
        ["ssh", *options, *target, "printenv USER; sudo -n bash -s -- apply"],
        input=script,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.returncode) == ("ubuntu\nroot\napply\n", 7)


def test_root_and_the_user_log_in_each_in_a_home_of_its_own(lab: Lab) -> None:
    for user, home in (("root", "/root"), ("ubuntu", "/home/ubuntu")):
        said = output(lab, "printenv USER; pwd; echo $HOME", username=user).splitlines()
        assert said == [user, *[str(root_of(lab)) + home] * 2]


@pytest.mark.parametrize("user", ["root", "ubuntu", "nobody-here"])
def test_a_wrong_key_and_an_unknown_user_are_refused(lab: Lab, user: str) -> None:
    right = [lab.guest(VM)["privateKeyFile"]]
    keys = right if user == "nobody-here" else [asyncssh.generate_private_key("ssh-ed25519")]
    mark = lab.mark()
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(connect(lab.guest(VM), username=user, client_keys=keys))
    wait_until(lambda: len(lab.connections(since=mark, guest=VM)) == 1)
    [refused] = lab.connections(since=mark, guest=VM)
    assert (refused["user"], refused["accepted"]) == (user, False)


def test_a_guest_has_a_host_key_of_its_own(lab: Lab) -> None:
    assert lab.guest(VM)["hostKey"] != lab.connection["hostKey"]
    known = asyncssh.import_known_hosts(f"* {lab.connection['hostKey']}\n")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        asyncio.run(connect(lab.guest(VM), known_hosts=known))


def test_who_is_taken_out_of_authorized_keys_gets_in_no_more(lab: Lab) -> None:
    path = "$HOMELAB_ROOT/home/ubuntu/.ssh/authorized_keys"
    output(lab, f"mv {path} {path}.away", username="root")
    try:
        with pytest.raises(asyncssh.PermissionDenied):
            asyncio.run(connect(lab.guest(VM), username="ubuntu"))
    finally:
        output(lab, f"mv {path}.away {path}", username="root")
    assert output(lab, "printenv USER", username="ubuntu") == "ubuntu\n"


def test_what_happens_in_a_guest_is_logged_as_its_own(lab: Lab) -> None:
    mark = lab.mark()
    output(lab, "true # in the guest")
    assert lab.commands(since=mark) == lab.connections(since=mark) == []
    [connection], [command] = lab.connections(since=mark, guest=VM), lab.commands(since=mark, guest=VM)
    assert (connection["user"], command["command"], command["exit"]) == ("root", "true # in the guest", 0)
    assert command["connection"] == connection["n"]
    shown = cli("log", "--state", str(lab.state)).stdout
    lines = [line for line in shown.splitlines() if f'"guest": {VM}' in line]
    assert any("true # in the guest" in line for line in lines) and any("6.8.0-86-generic" in line for line in lines), (
        shown
    )


def test_sftp_starts_in_the_users_home_and_stays_in_the_guests_tree(lab: Lab) -> None:
    async def main() -> str:
        async with (
            connected(lab.guest(VM), username="ubuntu") as connection,
            connection.start_sftp_client() as sftp,
        ):
            async with sftp.open("by-sftp", "wb") as file:
                await file.write(b"\0\xff")
            await sftp.stat("/etc/os-release")
            assert not await sftp.exists("../../../../../../etc/pve")
            return str(await sftp.realpath("."))

    assert asyncio.run(main()) == "/home/ubuntu"
    assert (root_of(lab) / "home/ubuntu/by-sftp").read_bytes() == b"\0\xff"


# -- sudo ----------------------------------------------------------------------------------------------------------
def test_sudo_asks_for_a_password_where_no_line_lets_the_user_do_without(lab: Lab) -> None:
    sudoers = "$HOMELAB_ROOT/etc/sudoers.d/90-cloud-init-users"
    output(lab, f"mv {sudoers} $HOMELAB_ROOT/var/lib/sudoers")
    try:
        done = execute(lab, "sudo -n true", username="ubuntu")
        assert (done.exit_status, done.stderr) == (1, "sudo: a password is required\n")
        assert output(lab, "sudo -n printenv USER", username="root") == "root\n"
    finally:
        output(lab, f"mv $HOMELAB_ROOT/var/lib/sudoers {sudoers}")
    assert output(lab, "sudo -n printenv USER", username="ubuntu") == "root\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("A=1 sudo -n bash -c 'echo ${A-gone} $HOME $SUDO_USER'", "gone {root}/root ubuntu"),
        ("sudo -n bash -c 'exit 5'; echo $?", "5"),
        ("sudo -n no-such-command 2>&1; echo $?", "sudo: no-such-command: command not found\n1"),
    ],
)
def test_sudo_does_what_scripts_use_of_it(lab: Lab, command: str, said: str) -> None:
    assert output(lab, command, username="ubuntu").rstrip("\n") == said.format(root=root_of(lab))


# -- the system ------------------------------------------------------------------------------------------------------
def test_a_guests_system_is_not_the_hosts(lab: Lab) -> None:
    assert f"HOMELAB_ROOT={root_of(lab)}\n" in output(lab, "env; echo of guest >$HOMELAB_ROOT/var/lib/own")
    assert (root_of(lab) / "var/lib/own").exists() and not (lab.root / "var/lib/own").exists()


def test_the_agent_tells_an_address_at_which_the_guest_answers(lab: Lab, other: int) -> None:
    lab.run("qm start 200")
    lab.wait_guest(200)
    for vmid in (VM, other):
        interfaces = ask(lab, "GET", "agent/network-get-interfaces", vmid)["result"]
        [address] = [a["ip-address"] for i in interfaces if i["name"] == "eth0" for a in i["ip-addresses"]]
        assert address == lab.guest(vmid)["host"]
        assert output(lab, "hostname -I", vmid=vmid) == f"{address} \n"
    assert lab.guest(VM)["host"] != lab.guest(other)["host"]


def test_a_static_address_is_told_though_the_lab_maps_it_nowhere(lab: Lab, other: int) -> None:
    lab.run(f"qm set {other} --net1 {NET} --ipconfig0 ip=10.1.2.3/16,gw=10.1.0.1 && qm start {other}")
    lab.wait_guest(other)
    told = {
        i["name"]: [(a["ip-address"], a["prefix"]) for a in i["ip-addresses"]]
        for i in ask(lab, "GET", "agent/network-get-interfaces", other)["result"]
    }
    assert told == {"lo": [("127.0.0.1", 8)], "eth0": [("10.1.2.3", 16)], "eth1": [("127.64.0.200", 8)]}
    assert output(lab, "echo here", vmid=other) == "here\n"


@pytest.mark.parametrize(
    ("vmid", "address"), [(100, "127.64.0.100"), (9000, "127.64.35.40"), (999999999, "127.90.201.255")]
)
def test_addresses_come_from_ids(vmid: int, address: str) -> None:
    assert guest_address(vmid) == address


# -- reboots ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["reboot", "systemctl reboot"])
def test_a_reboot_inside_gives_a_new_boot_id_and_keeps_the_tree(lab: Lab, command: str) -> None:
    before, to, mark = output(lab, BOOT_ID), lab.guest(VM), lab.mark()
    output(
        lab,
        f"echo kept >$HOMELAB_ROOT/var/lib/kept; echo gone >$HOMELAB_ROOT/run/gone; echo '{command}' >>$HOMELAB_ROOT/etc/changed",
    )
    uptime = ask(lab, "GET", "status/current")["uptime"]
    done = execute(lab, f"sudo -n {command}; sleep 300", username="ubuntu")
    assert done.returncode is None, "the connection is lost"
    wait_until(lambda: len(lab.guest_boots(VM, since=mark)) == 1)
    lab.wait_guest(VM)
    assert output(lab, BOOT_ID) != before
    assert output(
        lab, "cat $HOMELAB_ROOT/var/lib/kept; tail -1 $HOMELAB_ROOT/etc/changed; ls $HOMELAB_ROOT/run/gone 2>&1 || true"
    ).startswith(f"kept\n{command}\nls: ")
    assert lab.guest(VM) == to
    assert ask(lab, "GET", "status/current")["uptime"] >= uptime, "QEMU goes on"


def test_a_reboot_inside_concerns_that_vm_alone_and_leaves_pending_changes_pending(lab: Lab, other: int) -> None:
    lab.run(f"qm start {other}")
    lab.wait_guest(other)
    lab.run(f"qm set {VM} --cores 3")
    boots, mark = len(lab.boots()), lab.mark()
    with session(lab, "echo ready; exec sleep 300", other) as client:
        execute(lab, "reboot; sleep 300")
        wait_until(lambda: len(lab.guest_boots(VM, since=mark)) == 1)
        assert client.poll() is None
        client.terminate()
    assert len(lab.boots()) == boots
    assert lab.guest_boots(other, since=mark) == []
    assert {"key": "cores", "pending": 3}.items() <= next(
        one for one in ask(lab, "GET", "pending") if one["key"] == "cores"
    ).items()
    lab.run(f"qm set {VM} --revert cores")


def test_the_newest_kernel_is_booted(lab: Lab) -> None:
    mark = lab.mark()
    output(lab, "touch $HOMELAB_ROOT/boot/vmlinuz-6.8.0-107-generic")
    assert output(lab, "uname -r") == "6.8.0-86-generic\n"
    execute(lab, "reboot; sleep 300")
    wait_until(lambda: len(lab.guest_boots(VM, since=mark)) == 1)
    lab.wait_guest(VM)
    assert output(lab, "uname -r") == "6.8.0-107-generic\n"
    output(lab, "rm $HOMELAB_ROOT/boot/vmlinuz-6.8.0-107-generic")


def test_an_ordinary_user_may_not_reboot(lab: Lab) -> None:
    before = output(lab, BOOT_ID)
    done = execute(lab, "reboot", username="ubuntu")
    assert (done.exit_status, done.stderr) == (1, "Call to Reboot failed: Interactive authentication required.\n")
    assert output(lab, BOOT_ID) == before


def test_a_reboot_by_the_api_is_a_boot_too(lab: Lab) -> None:
    before, mark = output(lab, BOOT_ID), lab.mark()
    with session(lab, "echo ready; exec sleep 300") as client:
        lab.run(f"qm reboot {VM}")
        assert client.wait(PATIENCE) == 255
    lab.wait_guest(VM)
    assert output(lab, BOOT_ID) != before
    assert len(lab.guest_boots(VM, since=mark)) == 1


def test_a_reboot_of_the_host_is_one_of_its_guests(lab: Lab) -> None:
    before, boots, to = output(lab, BOOT_ID), len(lab.boots()), lab.guest(VM)
    output(lab, "echo kept >$HOMELAB_ROOT/var/lib/over-host-reboot")
    with session(lab, "echo ready; exec sleep 300") as client:
        lab.run("reboot")
        lab.wait_settled(boots=boots + 1)
        assert client.wait(PATIENCE) == 255
    lab.wait_guest(VM)
    assert lab.guest(VM) == to
    assert output(lab, BOOT_ID) != before
    assert output(lab, "cat $HOMELAB_ROOT/var/lib/over-host-reboot") == "kept\n"


# -- off ---------------------------------------------------------------------------------------------------------------
def test_a_vm_that_goes_off_by_itself_is_off_alone(lab: Lab) -> None:
    to, tasks = lab.guest(VM), lab.ask_api("GET", "/nodes/pve/tasks", source="all")
    request(lab.state, "poweroff", guest=VM)
    wait_until(lambda: "stopped" in lab.run(f"qm status {VM}").stdout)
    assert not connects(lab)
    assert lab.status()["phase"] == "up"
    assert not (lab.root / f"run/qemu-server/{VM}.pid").exists()
    assert lab.ask_api("GET", "/nodes/pve/tasks", source="all") == tasks
    lab.run(f"qm start {VM}")
    lab.wait_guest(VM)
    assert lab.guest(VM) == to


def test_a_vm_that_goes_off_by_itself_gives_the_card_back(lab: Lab) -> None:
    lab.run(
        f"qm stop {VM} && pvesh create /cluster/mapping/pci --id gpu0 --map node=pve,path=0000:01:00,id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3"
        f" && qm set {VM} --hostpci0 mapping=gpu0,pcie=1 && qm start {VM}"
    )
    lab.wait_guest(VM)
    assert "10de:2b85" in output(lab, "lspci -n")
    reserved = lab.root / "run/qemu-server/pci-id-reservations"
    assert f" {VM} " in reserved.read_text()
    request(lab.state, "poweroff", guest=VM)
    wait_until(lambda: "stopped" in lab.run(f"qm status {VM}").stdout)
    assert reserved.read_text() == ""
    lab.run(f"qm set {VM} --delete hostpci0 && pvesh delete /cluster/mapping/pci/gpu0")


def test_a_stopped_vm_refuses_connections_drops_those_it_had_and_ends_what_ran(lab: Lab) -> None:
    pids = root_of(lab) / "var/lib/pids"
    pids.unlink(missing_ok=True)
    detached = f"setsid -f bash -c 'echo $$ >>{pids}; exec sleep 300' >/dev/null 2>&1 </dev/null"
    bare = detached.replace("bash", "env -i bash", 1)
    with session(lab, f"trap '' TERM HUP; {detached}; {bare}; echo $$ >>{pids}; echo ready; exec sleep 300") as client:
        wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 3)
        found = [int(line) for line in pids.read_text().split()]
        assert all(process_start_time(pid) for pid in found)
        lab.run(f"qm stop {VM}")
        assert not connects(lab)
        assert client.wait(PATIENCE) == 255
    wait_until(lambda: not any(process_start_time(pid) for pid in found))
    with socket.socket() as taken, pytest.raises(OSError, match="in use"):
        taken.bind((lab.guest(VM)["host"], lab.guest(VM)["port"]))


def test_a_stop_by_the_api_closes_before_its_task_has_ended(lab: Lab) -> None:
    assert finish(lab, ask(lab, "POST", "status/stop")) == "OK"
    assert not connects(lab)


def test_a_vm_that_boots_answers_nobody_until_it_has(lab: Lab) -> None:
    lab.run(f"qm stop {VM}")
    mark = lab.mark()
    lab.run(f"qm start {VM}")
    wait_until(lambda: connects(lab))
    assert len(lab.guest_boots(VM, since=mark)) == 1
    # The kernel has taken the connection; the lab hears of it a moment later.
    wait_until(lambda: lab.connections(since=mark, guest=VM) != [])
    lab.wait_disconnected(guest=VM)
    assert len(lab.connections(since=mark, guest=VM)) == 1


# -- out of reach --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [VM, str(VM), True])
def test_a_guest_can_be_out_of_reach_though_it_runs(lab: Lab, value: object) -> None:
    with session(lab, "echo ready; exec sleep 300") as client:
        lab.fault("guest-unreachable", value)
        assert client.wait(PATIENCE) == 255
    assert not connects(lab)
    assert "127.64.0.103" in str(ask(lab, "GET", "agent/network-get-interfaces"))
    lab.fault("guest-unreachable", None)
    lab.wait_guest(VM)
    assert output(lab, "echo back") == "back\n"


def test_the_fault_concerns_the_vm_that_it_names(lab: Lab) -> None:
    lab.fault("guest-unreachable", 200)
    assert connects(lab)


def test_a_vm_without_a_connected_network_device_is_out_of_reach(lab: Lab, other: int) -> None:
    lab.run(f"qm set {other} --net0 {NET},link_down=1 && qm start {other}")
    wait_until(lambda: len(lab.guest_boots(other)) > 0)
    assert not connects(lab, other)
    lab.run(f"qm set {other} --net0 {NET}")
    lab.wait_guest(other)
    lab.run(f"qm set {other} --delete net0")
    assert not connects(lab, other)


def test_windows_answers_no_ssh(lab: Lab, other: int) -> None:
    lab.run(f"qm set {other} --ostype win11 && qm start {other}")
    wait_until(lambda: lab.run(f"qm status {other}").stdout == "status: running\n" and answers(lab, other))
    assert not connects(lab, other)


def answers(lab: Lab, vmid: int) -> bool:
    try:
        ask(lab, "GET", "agent/network-get-interfaces", vmid)
    except LabError as error:
        assert "is not running" in str(error)
        return False
    return True


def test_a_host_without_its_network_takes_its_guests_with_it(lab: Lab) -> None:
    boots = len(lab.boots())
    lab.fault("no-network-when", "quiet")
    lab.run("reboot")
    assert lab.wait_settled(boots=boots + 1) == "unreachable"
    assert "running" in lab.run(f"qm status {VM}").stdout
    assert not connects(lab)
    lab.fault("no-network-when", None)
    lab.power_cycle()
    lab.wait_guest(VM)


# -- what a VM has installed -----------------------------------------------------------------------------------------------
def test_a_vm_made_over_the_api_has_cloud_inits_user_and_keys(lab: Lab) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    line = key.export_public_key().decode().strip()
    lab.ask_api(
        "POST",
        "/nodes/pve/qemu",
        vmid=201,
        name="made",
        memory=512,
        net0=NET,
        ide2="local-lvm:cloudinit",
        ciuser="ada",
        sshkeys=quote(line, safe=""),
    )
    wait_until(lambda: "lock" not in ask(lab, "GET", "config", 201))
    lab.run("qm start 201")
    lab.wait_guest(201)
    assert lab.guest(201)["user"] == "ada"
    assert output(lab, "printenv USER; hostname", vmid=201, username="ada", client_keys=[key]) == "ada\nmade\n"
    assert output(lab, "sudo -n printenv USER", vmid=201, username="ada") == "root\n", "the lab's key is let in too"
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(connect(lab.guest(201), client_keys=[key]))  # root has the lab's key alone
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(connect(lab.guest(201), username="ubuntu"))
    lab.run("qm stop 201 && qm destroy 201")


def test_a_vm_that_is_made_again_is_new_inside_and_reached_as_before(lab: Lab) -> None:
    before = lab.guest(202)
    for _ in range(2):
        lab.run(f"qm create 202 --memory 512 --net0 {NET} && qm start 202")
        lab.wait_guest(202)
        output(lab, "test ! -e $HOMELAB_ROOT/var/lib/mine && touch $HOMELAB_ROOT/var/lib/mine", vmid=202)
        assert lab.guest(202) == before
        lab.run("qm stop 202 && qm destroy 202")
        assert not root_of(lab, 202).exists()


def with_vms(*systems: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The scenario rtx5090 with VMs from 110 on that have these systems."""
    data: dict[str, Any] = yaml.safe_load((SCENARIO_FOLDER / "rtx5090.yaml").read_text())
    conf = f"bios: ovmf\nefidisk0: local-lvm:vm-0-disk-0,efitype=4m,size=4M\nnet0: {NET}\n"
    data["guests"] = [
        {"id": 110 + n, "kind": "vm", "name": f"vm{n}", "conf": conf, "running": True, "system": system, **changes}
        for n, system in enumerate(systems)
    ]
    return data


def test_a_scenario_says_what_its_vms_have_installed(tmp_path: Path) -> None:
    systems: list[dict[str, Any]] = [
        {"distribution": "ubuntu-22.04"},
        {"distribution": "debian-12", "kernel": "6.1.0-25-amd64", "user": "ada"},
        {"distribution": "debian-13", "secure-boot": True},
        {},
    ]
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(with_vms(*systems)))
    read = ". $HOMELAB_ROOT/etc/os-release; echo $ID-$VERSION_ID $VERSION_CODENAME $(uname -r); mokutil --sb-state; sudo -n printenv USER"
    with Lab.start(str(tmp_path / "four.yaml"), state=tmp_path / "lab") as lab:
        found = []
        for vmid in range(110, 114):
            lab.wait_guest(vmid)
            user = lab.guest(vmid)["user"]
            found.append([user, *output(lab, read, vmid=vmid, username=user).splitlines()])
        assert finish(lab, ask(lab, "POST", "clone", 111, newid=120, name="copy")) == "OK"
        lab.run("qm start 120")
        lab.wait_guest(120)
        copy = output(lab, read, vmid=120, username="ada").splitlines()
    assert found == [
        ["ubuntu", "ubuntu-22.04 jammy 5.15.0-160-generic", "SecureBoot disabled", "root"],
        ["ada", "debian-12 bookworm 6.1.0-25-amd64", "SecureBoot disabled", "root"],
        ["debian", "debian-13 trixie 6.12.48+deb13-amd64", "SecureBoot enabled", "root"],
        ["ubuntu", "ubuntu-24.04 noble 6.8.0-86-generic", "SecureBoot disabled", "root"],
    ]
    assert copy == found[1][1:], "a clone has what its origin has"


def test_a_kernel_of_the_args_brings_neither_ssh_nor_agent_and_leaves_what_is_installed(lab: Lab, other: int) -> None:
    lab.run(f"qm start {other}")
    lab.wait_guest(other)
    output(lab, "echo kept >$HOMELAB_ROOT/root/file", vmid=other)
    kernel = next(path.name for path in (lab.root / "boot").glob("vmlinuz-*"))
    args = f"-kernel /boot/{kernel} -append console=ttyS0 -serial file:/var/tmp/console"
    lab.run(f"qm stop {other} && qm set {other} --args '{args}' && qm start {other}")
    console = lab.root / "var/tmp/console"
    wait_until(lambda: console.exists() and b"Kernel panic" in console.read_bytes())
    assert not connects(lab, other)
    refused = lab.run(f"pvesh get /nodes/pve/qemu/{other}/agent/network-get-interfaces", check=False)
    assert refused.stderr.strip() == "QEMU guest agent is not running"
    assert lab.run(f"qm status {other}").stdout == "status: running\n"
    lab.run(f"qm stop {other} && qm set {other} --delete args && qm start {other}")
    lab.wait_guest(other)
    assert output(lab, "cat $HOMELAB_ROOT/root/file", vmid=other) == "kept\n"


def test_pre_enrolled_keys_mean_secure_boot_as_with_ovmf(lab: Lab) -> None:
    lab.run(
        f"qm create 203 --memory 512 --net0 {NET} --bios ovmf --efidisk0 local-lvm:1,efitype=4m,pre-enrolled-keys=1"
        " && qm start 203"
    )
    lab.wait_guest(203)
    assert output(lab, "mokutil --sb-state", vmid=203) == "SecureBoot enabled\n"
    lab.run("qm stop 203 && qm set 203 --bios seabios && qm start 203")
    lab.wait_guest(203)
    done = execute(lab, "mokutil --sb-state", vmid=203)
    assert (done.exit_status, done.stderr) == (255, "EFI variables are not supported on this system\n")
    lab.run("qm stop 203 && qm destroy 203")


@pytest.mark.parametrize(
    ("system", "changes", "wanted"),
    [
        ({"distribution": "fedora-42"}, {}, r"system\.distribution.*fedora-42"),
        ({"kernel": "newest"}, {}, r"system\.kernel.*newest"),
        ({"user": "root"}, {}, "root is there anyway"),
        ({}, {"kind": "container", "conf": ""}, "is for a VM with Linux"),
        ({}, {"conf": "ostype: win11\n"}, "is for a VM with Linux"),
        ({"secure-boot": True}, {"conf": "bios: seabios\n"}, "wanted `bios: ovmf`"),
    ],
)
def test_a_system_that_cant_be_is_refused(system: dict[str, Any], changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ScenarioError, match=wanted):
        scenario_from(with_vms(system, **changes), "test.yaml", "test")


# -- timers ----------------------------------------------------------------------------------------------------------------
def test_a_guests_timers_are_its_own(lab: Lab) -> None:
    units = root_of(lab) / "etc/systemd/system"
    touch = "/bin/bash -c 'touch $HOMELAB_ROOT/var/lib/by-timer'"
    for name, seconds, command in (("soon", "0.1", touch), ("later", "1h", "/bin/true")):
        (units / f"{name}.timer").write_text(f"[Timer]\nOnActiveSec={seconds}\n")
        (units / f"{name}.service").write_text(f"[Service]\nExecStart={command}\n")
        output(lab, f"systemctl start {name}.timer")
    wait_until((root_of(lab) / "var/lib/by-timer").exists)
    assert output(lab, "systemctl is-active later.timer") == "active\n"
    assert lab.timers() == []
    output(lab, "systemctl stop later.timer")
    assert execute(lab, "systemctl is-active later.timer").exit_status != 0


def test_a_timer_that_is_enabled_runs_after_the_guests_boot(lab: Lab) -> None:
    output(
        lab,
        "bash -s",
        """
        printf '[Service]\\nExecStart=/bin/bash -c "cat $HOMELAB_ROOT/proc/sys/kernel/random/boot_id >$HOMELAB_ROOT/var/lib/at-boot"\\n' \
          >$HOMELAB_ROOT/etc/systemd/system/once.service
        printf '[Timer]\\nOnBootSec=1s\\n[Install]\\nWantedBy=timers.target\\n' >$HOMELAB_ROOT/etc/systemd/system/once.timer
        systemctl enable once.timer
        """,
    )
    mark = lab.mark()
    execute(lab, "reboot; sleep 300")
    written = root_of(lab) / "var/lib/at-boot"
    wait_until(lambda: written.exists() and written.read_text().endswith("\n"))
    [boot] = lab.guest_boots(VM, since=mark)
    assert written.read_text().strip() == boot["boot_id"]
    output(lab, "systemctl disable once.timer")


# -- the lab's life --------------------------------------------------------------------------------------------------------
def test_a_vm_that_is_yet_to_be_made_has_its_address_already(lab: Lab) -> None:
    future = lab.guest(204)
    assert (future["user"], connects(lab, 204)) == ("ubuntu", False)
    lab.run(f"qm create 204 --memory 512 --net0 {NET} && qm start 204")
    lab.wait_guest(204)
    assert lab.guest(204) == future
    assert output(lab, "echo here", vmid=204) == "here\n"
    lab.run("qm stop 204 && qm destroy 204")


def test_a_container_is_reached_by_pct(tmp_path: Path) -> None:
    with Lab.start("phoenix", state=tmp_path / "lab") as lab:
        with pytest.raises(LabError, match="`pct exec 901`"):
            lab.guest(901)
        with pytest.raises(LabError, match="wanted a VM's id"):
            lab.guest(1)


def test_status_says_how_to_log_in_to_the_vms(lab: Lab) -> None:
    to = lab.guest(VM)
    shown = cli("status", "--state", str(lab.state)).stdout
    assert f"VM 103: ssh -i {to['privateKeyFile']} -p {to['port']} ubuntu@127.64.0.103 <command>" in shown


def test_a_reset_keeps_port_and_key_of_a_guest_that_is_new_inside(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        lab.wait_guest(VM)
        to = lab.guest(VM)
        output(lab, "touch $HOMELAB_ROOT/var/lib/mine")
        lab.reset()
        lab.wait_guest(VM)
        assert lab.guest(VM) == to
        assert execute(lab, "test -e $HOMELAB_ROOT/var/lib/mine").exit_status == 1
        assert len(lab.guest_boots(VM)) == 1


def test_a_lab_that_is_stopped_or_killed_has_its_guests_again_as_they_were(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        lab.wait_guest(VM)
        to = lab.guest(VM)
        output(lab, "echo kept >$HOMELAB_ROOT/var/lib/kept")
    assert lab.guest(VM) == to
    with pytest.raises(LabError, match="found 103"):
        lab.guest(200)
    again = Lab.start("rtx5090", state=lab.state)
    again.wait_guest(VM)
    assert again.guest(VM) == to
    with session(again, "echo $$ >$HOMELAB_ROOT/var/lib/pid; echo ready; sleep 300; :") as client:
        orphan = int((root_of(lab) / "var/lib/pid").read_text())
        os.kill(daemon_pid(lab), signal.SIGKILL)
        assert client.wait(PATIENCE) == 255
    # Its connections are closed before it is gone.
    wait_until(lambda: not again.running)
    began = process_start_time(orphan)
    assert began is not None
    with Lab.start("rtx5090", state=lab.state) as third:
        wait_until(lambda: process_start_time(orphan) != began)  # nothing tells when the kernel has ended it
        third.wait_guest(VM)
        assert third.guest(VM) == to
        assert output(third, "cat $HOMELAB_ROOT/var/lib/kept") == "kept\n"
