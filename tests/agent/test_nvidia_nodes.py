"""The layer nvidia_nodes: NVIDIA's device nodes, now, and at each boot by a program of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers.nvidia_nodes import SERVICE
from remote_scripts.nvidia import nvidia
from remote_scripts.reading.nvidia import nvidia as nvidia_of
from remote_scripts.reading.source import Source
from remote_scripts.tools import boot_service
from remote_scripts.tools.done import Done
from tests.agent.kit import Host, Refused, bash, command, with_files_as_devices

DEVICES = """\
Character devices:
  1 mem
195 nvidia
195 nvidia-modeset
235 nvidia-caps
511 nvidia-uvm

Block devices:
235 nvidia-uvm
"""
SERVED = {
    "/dev/nvidia0": (195, 0, 0o666),
    "/dev/nvidiactl": (195, 255, 0o666),
    "/dev/nvidia-modeset": (195, 254, 0o666),
    "/dev/nvidia-uvm": (511, 0, 0o666),
    "/dev/nvidia-uvm-tools": (511, 1, 0o666),
    "/dev/nvidia-caps/nvidia-cap1": (235, 1, 0o400),
    "/dev/nvidia-caps/nvidia-cap2": (235, 2, 0o444),
}
((LINK, UNIT),) = SERVICE.links.items()


@pytest.fixture(autouse=True)
def reloads(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a host that has a driver with a card and MIG's capabilities; no node is there."""
    reloads: list[str] = []
    with_files_as_devices(monkeypatch, host.root.parent)
    host.write(f"{nvidia.PROC}/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr\n")
    host.write(f"{nvidia.PROC}/gpus/0000:01:00.0/information", "Model:\tNVIDIA A2\nDevice Minor: \t 0\n")
    for number, mode in ((1, 256), (2, 292)):
        text = f"DeviceFileMinor: {number}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n"
        host.write(f"{nvidia.PROC}/capabilities/mig/{number}", text)
    host.write("/proc/devices", DEVICES)
    host.write("/proc/sys/kernel/osrelease", "6.8.12-9-pve\n")
    (host.root / "dev").mkdir()
    (host.root / "usr/local/sbin").mkdir(parents=True)
    (host.root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)

    def systemctl(arguments: Sequence[str], _stdin: bytes) -> str | int:
        reloads.append(" ".join(arguments))
        return "no\n" if arguments[0] == "show" else 0

    host.programs |= {"systemctl": systemctl, "modprobe": lambda _a, _i: 0, "modinfo": lambda _a, _i: 0}
    return reloads


def ask(host: Host, verb: str = "apply", *, needed: bool = True) -> Any:
    return host.ask(verb, "nvidia_nodes", {"needed": needed})


def nodes(host: Host) -> dict[str, tuple[int, int, int]]:
    files = host.system().files
    found = {f"/{path.relative_to(host.root)}" for path in (host.root / "dev").rglob("*")}
    devices = {path: files.device(path) for path in found}
    return {path: (one.major, one.minor, one.mode) for path, one in devices.items() if one}


def test_nodes_are_made_and_a_service_for_each_boot_which_is_given_back(host: Host, reloads: list[str]) -> None:
    before = host.lasting()
    assert ask(host) == {"driver": "550.163.01", "changed": True}
    assert nodes(host) == SERVED
    assert (host.root / LINK[1:]).readlink() == Path(UNIT)
    assert [host.read(UNIT)] == [*SERVICE.units.values()] and reloads == ["daemon-reload"]
    configured = host.lasting()
    assert ask(host) == {"driver": "550.163.01", "changed": False} and host.lasting() == configured
    assert ask(host, "revert")["changed"] and host.lasting() == before
    assert nodes(host) == SERVED, "others may use them"
    assert not ask(host, "revert")["changed"]
    ask(host)
    assert ask(host, needed=False)["changed"] and host.lasting() == before


def test_a_node_of_an_earlier_boot_gets_todays_numbers_and_one_that_is_right_stays(host: Host) -> None:
    ask(host)
    (host.root / "dev/nvidiactl").chmod(0o600)
    host.write("/proc/devices", DEVICES.replace("511", "507"))
    ask(host)
    assert nodes(host)["/dev/nvidia-uvm"] == (507, 0, 0o666)
    assert nodes(host)["/dev/nvidiactl"] == (195, 255, 0o600)


def test_a_reading_tells_what_is_missing_also_where_uvms_module_is_gone(host: Host) -> None:
    def missing() -> list[str]:
        return nvidia_of(Source(host.system())).missing_nodes

    host.write("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    ask(host)
    assert missing() == []
    (host.root / "dev/nvidiactl").unlink()
    host.write("/proc/devices", DEVICES.replace("511 nvidia-uvm\n", ""))
    assert missing() == ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    (host.root / "proc/driver/nvidia/version").unlink()
    assert missing() == [], "the driver itself is what lacks"


def test_nodes_that_the_drivers_options_close_to_all_are_made_so(host: Host) -> None:
    """NVreg_DeviceFileMode=0660, as nvidia-modprobe reads it; MIG's have their own."""
    host.write(f"{nvidia.PROC}/params", "ModifyDeviceFiles: 1\nDeviceFileGID: 44\nDeviceFileMode: 432\n")
    ask(host)
    caps = {path: node for path, node in SERVED.items() if "caps" in path}
    assert nodes(host) == {path: (*node[:2], 0o660) for path, node in SERVED.items()} | caps


def test_the_plan_is_the_same_before_there_is_a_driver(host: Host) -> None:
    (host.root / "proc/driver/nvidia/version").unlink()
    before = host.tree()
    files = ask(host, "plan")["files"]
    assert [(file["how"], file["what"]) for file in files] == [
        ("new", SERVICE.program), ("new", UNIT), ("new", LINK)
    ]  # fmt: skip
    assert host.tree() == before


def test_nothing_is_planned_once_it_is_there_and_what_goes_where_it_isnt_needed(host: Host) -> None:
    ask(host)
    assert ask(host, "plan")["files"] == []
    planned = ask(host, "plan", needed=False)["files"]
    assert [(file["how"], file["what"]) for file in planned] == [
        ("removed", UNIT),
        ("removed", SERVICE.program),
    ]


def test_a_driver_that_isnt_loaded_is_said(host: Host) -> None:
    (host.root / "proc/driver/nvidia/version").unlink()
    before = host.tree()
    with pytest.raises(
        Refused, match="wanted: NVIDIA's driver loaded on the host\nfound:  .* installed and not loaded"
    ):
        ask(host)
    assert host.tree() == before


def test_a_driver_that_the_kernel_hasnt_is_said(host: Host) -> None:
    host.programs["modinfo"] = lambda _arguments, _stdin: 1
    (host.root / "proc/driver/nvidia/version").unlink()
    with pytest.raises(Refused, match="the kernel 6.8.12-9-pve has no module nvidia: "):
        ask(host)


def test_debians_own_packages_have_the_modules_by_other_names(host: Host) -> None:
    (host.root / "proc/devices").write_text(DEVICES.replace("511 nvidia-uvm", "").replace("235 nvidia-uvm", ""))
    line = "install nvidia-uvm modprobe nvidia ; /sbin/modprobe --ignore-install nvidia-current-uvm $CMDLINE_OPTS\n"
    host.write("/etc/modprobe.d/nvidia.conf", line)
    host.programs["modinfo"] = lambda arguments, _: 0 if arguments[-1] == "nvidia-current-uvm" else 1
    host.programs["modprobe"] = lambda *_: 0 if host.write("/proc/devices", DEVICES) else 1
    ask(host)


def test_what_keeps_nodes_from_being_there_is_said_and_no_service_stays(host: Host) -> None:
    before = host.lasting()
    host.write("/proc/devices", DEVICES.replace("511 nvidia-uvm", "").replace("235 nvidia-uvm", ""))
    host.programs["modprobe"] = lambda _arguments, _stdin: Done(1, b"modprobe: FATAL: no such module\n")
    with pytest.raises(Refused, match=r"missing: /dev/nvidia-uvm; nvidia-uvm could not be loaded: modprobe: FATAL: no"):
        ask(host)
    assert host.lasting() == before


def test_what_systemd_refuses_leaves_nothing_enabled(host: Host) -> None:
    before = host.lasting()
    host.programs["systemctl"] = lambda _arguments, _stdin: Done(1, b"no bus\n")
    said = f"wanted: homelab-nvidia-nodes.service enabled\nfound:  no bus\nwhy:    {SERVICE.without}"
    with pytest.raises(Refused, match=said):
        ask(host)
    assert host.lasting() == before


def test_a_reading_that_fails_is_no_driver_that_isnt_there(host: Host) -> None:
    before = host.lasting()
    information = host.root / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.unlink()
    information.mkdir()
    with pytest.raises(Refused, match="information"):
        ask(host)
    assert host.lasting() == before


def test_the_program_makes_the_nodes_by_itself(host: Host) -> None:
    """As the service runs it, on a folder; a node can't be made by everybody, so there are none to make."""
    ask(host)
    command(host, "modprobe", 'echo "$@" >"$HOMELAB_ROOT/loaded"; exit 1')
    for name in ("devices", "driver/nvidia/version"):
        (host.root / "proc" / name).unlink()
    done = bash(host, f"{boot_service.PYTHON} {host.root}{SERVICE.program}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nvidia-uvm could not be loaded\n")
    assert host.read("/loaded") == "nvidia-uvm\n"
    assert os.access(host.root / SERVICE.program[1:], os.X_OK)
    shebang = host.root.joinpath(SERVICE.program[1:]).read_bytes().partition(b"\n")[0]
    assert shebang == b"#!/usr/bin/python3 -ISBXutf8"
