"""The layer diagnose: what is passed on of a host and its containers, what isn't, and that nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from homelab.doctor.reading import Extra
from homelab.remote import scripts
from remote_scripts.both.diagnose import Wanted
from remote_scripts.cards import host_nodes
from remote_scripts.layers import diagnose
from remote_scripts.tools.device import Device
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import of_plain
from remote_scripts.tools.system import System
from tests.agent import api_kit
from tests.agent.kit import Host, Refused, hangs, with_files_as_devices

CONF = """\
#token=secret-1
arch: amd64
dev0: /dev/nvidia0,mode=0666
hostname: media
lxc.environment: TOKEN=secret-2
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry: //nas/x mnt/x cifs username=a,password=secret-3,create=dir 0 0
net0: name=eth0,bridge=vmbr0

[before]
dev1: /dev/nvidia1
lxc.hook.mount: /secret-4
"""


@pytest.fixture(autouse=True)
def stocked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a container of each state, and a neighbour in the cluster."""
    with_files_as_devices(monkeypatch, host.root / "dev")
    for name, numbers, mode in (("nvidia0", (195, 0), 0o666), ("nvidia-caps/nvidia-cap1", (483, 1), 0o400)):
        (host.root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(str(host.root / "dev" / name), mode, os.makedev(*numbers))
        (host.root / "dev" / name).chmod(mode)
    host.write("/dev/nvidia-log", "no node")
    host.write("/etc/pve/nodes/pve/lxc/950.conf", CONF)
    host.write("/etc/pve/nodes/pve/lxc/901.conf", "hostname: ai\n")
    vm = "name: x\n[PENDING]\nhostpci0: 01:00\nargs: secret-5\n[snap]\nhostpci1: 02:00\n"
    host.write("/etc/pve/nodes/pve/qemu-server/103.conf", vm)
    host.write("/etc/pve/nodes/other/lxc/300.conf", "hostname: far\n")
    (host.root / "etc/pve/lxc").symlink_to("nodes/pve/lxc")
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    answers = {"950": "status: running\n", "901": "status: stopped\n"}
    host.programs["pct"] = lambda arguments, _stdin: answers[arguments[1]] if arguments[0] == "status" else 255
    says(monkeypatch, lambda: "node /dev/nvidia0\n")


def says(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Done | str]) -> None:
    """What is said inside container 950."""

    def sh(arguments: Sequence[str], _stdin: bytes) -> Done | str:
        assert [*arguments] == ["-c", scripts.file("inspect_inside.sh")]
        return answer()

    def enter(ctid: int, host: System) -> System:
        assert ctid == 950
        return System(host.root, programs={"sh": sh})

    monkeypatch.setattr(diagnose, "ContainerSystem", enter)


def read(host: Host, *containers: int) -> Extra:
    before = host.tree()
    answer: Any = host.ask("read", "diagnose", Wanted(containers=containers))
    assert host.tree() == before and "secret-" not in str(answer)
    return of_plain(Extra, answer)


@pytest.mark.parametrize(
    ("ends", "log", "told"),
    [
        (["start failed: QEMU exited with code 1"], "kvm: no\nTASK ERROR: start failed: QEMU exited with code 1\n", "kvm: no\nTASK ERROR: start failed: QEMU exited with code 1"),
        (["x"], "TASK ERROR: start failed: command '/usr/bin/kvm -id 103 -secret-8' failed: got timeout\n", "TASK ERROR: start failed: command '/usr/bin/kvm …' failed: got timeout"),
        (["x"], "TASK ERROR: start failed: command '/usr/bin/kvm -id 103 -secret-9 cut off", "TASK ERROR: start failed: command '/usr/bin/kvm …"),
        (["x"], "kvm: -drive file=https://me:secret-0@nas/x.img: Could not open\n", "kvm: -drive file=https://(secret)@nas/x.img: Could not open"),
        (["no log of it"], "", "no log of it"),
        (["it failed", "OK"], "TASK ERROR: x\n", ""),
        (["it failed", "VM 103 already running"], "TASK ERROR: x\n", "TASK ERROR: x"),
        (["VM 103 already running"], "TASK ERROR: VM 103 already running\n", ""),  # it went off from inside since
        ([], "", ""),
    ],
)  # fmt: skip
def test_why_a_guests_last_start_failed_is_passed_on(host: Host, ends: list[str], log: str, told: str) -> None:
    api_kit.runs(host, {}, {})
    upids = [f"UPID:pve:00000000:00000000:6B010C{number:02X}:qmstart:103:root@pam:" for number in range(len(ends))]
    index = "".join(f"{upid} 6B010CF0 {end}\n" for upid, end in zip(upids, ends, strict=True))
    host.write("/var/log/pve/tasks/index", index)
    if log:
        host.write(f"/var/log/pve/tasks/0/{upids[0]}", log)
    assert read(host).failed_starts == ({"103": told} if told else {})


@pytest.mark.parametrize(
    ("kind", "second", "status", "told"),
    [
        ("qmdestroy", "01", "OK", ""),
        ("qmrestore", "01", "OK", ""),
        ("qmcreate", "01", "WARNINGS: 1", ""),
        ("qmcreate", "00", "OK", "it failed"),  # which started it
        ("qmdestroy", "01", "no", "it failed"),
        ("vzdestroy", "01", "OK", ""),
        ("qmshutdown", "01", "OK", ""),
        ("qmshutdown", "01", "VM 103 not running", "it failed"),
        ("vzstop", "01", "OK", ""),
        ("qmreboot", "01", "OK", "it failed"),  # which does nothing with one that is off
        ("qmclone", "01", "OK", "it failed"),
    ],
)
def test_a_start_before_the_guest_was_shut_down_or_another_got_the_id_isnt_its_last(
    host: Host, kind: str, second: str, status: str, told: str
) -> None:
    api_kit.runs(host, {}, {})
    host.write(
        "/var/log/pve/tasks/index",
        "UPID:pve:00000000:00000001:6B010C00:qmstart:103:root@pam: 6B010CF0 it failed\n"
        f"UPID:pve:00000000:00000000:6B010C{second}:{kind}:103:root@pam: 6B010DF0 {status}\n",
    )
    assert read(host).failed_starts == ({"103": told} if told else {})


def test_a_list_of_tasks_that_cant_be_read_hides_nothing_else(host: Host) -> None:
    api_kit.says_nothing(host)
    assert read(host).failed_starts == {}


def test_only_lines_about_devices_and_what_tells_a_container_from_others_leave_the_host(host: Host) -> None:
    (container,) = read(host, 950).containers
    assert container.conf.splitlines() == [
        "dev0: /dev/nvidia0,mode=0666",
        "hostname: media",
        "lxc.cgroup2.devices.allow: c 195:* rwm",
        "lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file",
        "net0: name=eth0,bridge=vmbr0",
        "[before]",
        "dev1: /dev/nvidia1",
    ]


def test_a_container_that_is_off_is_not_looked_into(host: Host) -> None:
    assert [(one.id, one.running, one.inside) for one in read(host, 901, 950, 103, 300).containers] == [
        (901, False, ""),
        (950, True, "node /dev/nvidia0"),
    ]


def test_a_container_that_does_not_say_whether_it_runs_is_not_called_off(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.programs["pct"] = lambda _arguments, _stdin: 111
    ticks = iter(range(0, 10_000, 30))
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    (container,) = read(host, 950).containers
    assert (container.running, container.was_seen) == (None, False)


def test_a_container_that_hangs_or_ends_hides_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends() -> str:
        raise Failure("an answer", "lxc-attach led to the host instead", "x", "y")

    says(monkeypatch, lambda: Done(TIMED_OUT, b"one\ntwo\nthree\nhalf an answer"))
    problems = [one.problem for one in read(host, 950, 901).containers]
    assert problems == ["exit status 124: two\nthree\nhalf an answer", ""]
    says(monkeypatch, ends)
    ended, _ = read(host, 950, 901).containers
    assert (ended.inside, ended.problem) == ("", "lxc-attach led to the host instead")


def test_nodes_are_told_by_their_path_on_the_host_and_what_is_none_isnt(host: Host) -> None:
    assert host_nodes.devices(host.system()) == {
        "/dev/nvidia0": Device(195, 0, 0o666),
        "/dev/nvidia-caps/nvidia-cap1": Device(483, 1, 0o400),
    }


def test_a_machine_that_is_no_proxmox_host_is_read_all_the_same(tmp_path: Any) -> None:
    stranger = Host(tmp_path / "stranger")
    extra = read(stranger, 950)
    assert (extra.failed_starts, extra.containers, host_nodes.devices(stranger.system())) == ({}, (), {})


def test_a_configuration_that_cant_be_read_is_no_guest_without_one(host: Host) -> None:
    (host.root / "etc/pve/nodes/pve/lxc/950.conf").unlink()
    (host.root / "etc/pve/nodes/pve/lxc/950.conf").mkdir()
    with pytest.raises(Refused, match=r"to read /etc/pve/lxc/950\.conf"):
        read(host, 950)


def test_a_cluster_file_system_that_hangs_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs(monkeypatch, host.root / "etc/pve/lxc/950.conf")
    with pytest.raises(Refused, match=r"no answer within 0\.5 s"):
        host.ask("read", "diagnose", Wanted(containers=(950,)))


@pytest.mark.parametrize(
    ("files", "machine"),
    [
        ({"sys_vendor": "AOOSTAR", "product_name": "WTR MAX"}, "AOOSTAR WTR MAX"),
        (
            {"sys_vendor": "ASUS", "product_name": "Z", "board_vendor": "ASUSTeK", "board_name": "PRIME"},
            "ASUS Z; board: ASUSTeK PRIME",
        ),
        ({"sys_vendor": "X", "product_name": "Y", "board_vendor": "X", "board_name": "Y"}, "X Y"),
        ({}, ""),
    ],
)
def test_the_machine_is_named_without_its_serial_number(host: Host, files: dict[str, str], machine: str) -> None:
    for name, text in {**files, "product_serial": "secret-6", "product_uuid": "secret-7"}.items():
        host.write(f"/sys/class/dmi/id/{name}", f"{text}\n")
    host.write("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nmodel name\t: AMD Ryzen 7 8845HS\nflags\t\t: fpu\n")
    extra = read(host)
    assert (extra.machine, extra.processor) == (machine, "AMD Ryzen 7 8845HS")
