"""NVIDIA's driver on a lab host: numbers, nodes and who makes them, as on the machines of ../shared/real_hosts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.scenario import Scenario, ScenarioError, load_scenario, scenario_from
from tests.conftest import shared
from tests.lab.host_kit import Host, rebound

FORMAT = "%n %F %t %T %a %u %g"


@pytest.fixture
def mixed(tmp_path: Path) -> Host:
    return Host(tmp_path, "mixed", running=True)


def changed(name: str, **keys: object) -> Scenario:
    """A scenario of the lab with some keys of `nvidia` changed."""
    data = load_scenario(name).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    return scenario_from({**data, "nvidia": {**data["nvidia"], **keys}}, "changed", name)


def nodes(host: Host) -> dict[str, str]:
    """What `stat` says of every NVIDIA node, by name."""
    find = "cd $HOMELAB_ROOT/dev && find nvidia* -type f 2>/dev/null"
    lines = host.output(f"{find} | xargs -r stat -c '{FORMAT}'")
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines.splitlines() if "special" in line}


def majors(host: Host) -> dict[str, int]:
    """/proc/devices, by name."""
    lines = (host.root / "proc/devices").read_text().partition("Block")[0].splitlines()[1:]
    return {line.split()[1]: int(line.split()[0]) for line in lines if line.strip()}


def test_nodes_are_listed_as_on_a_real_host(phoenix: Host) -> None:
    line = re.compile(r"(c[rw-]{9}) 1 root root (\d+), +(\d+) \w+ +\d+ [\d:]+ (?:/\S+/)?(\S+)")
    real = shared("real_hosts", "pve-lxc-rtx3060", "dev_nvidia.txt").read_text()
    # The lab's paths differ, and the majors of uvm and caps are other ones on every machine.
    wanted = {m[4]: (m[1], m[3]) for m in map(line.match, real.splitlines()) if m}
    listed = phoenix.output(
        "stat -c '%A 1 %U %G %Hr, %Lr Jan 1 0:00 %n' $HOMELAB_ROOT/dev/nvidia* $HOMELAB_ROOT/dev/nvidia-caps/*"
    )
    found = {m[4]: (m[1], m[3]) for m in map(line.match, listed.splitlines()) if m}
    assert wanted.items() <= found.items()
    assert set(found) - set(wanted) == {"nvidia1"}, "that machine has one card"


def test_static_and_dynamic_majors_are_those_of_proc_devices(phoenix: Host) -> None:
    known = majors(phoenix)
    assert {known[name] for name in ("nvidia", "nvidiactl", "nvidia-modeset")} == {195}
    uvm, caps = known["nvidia-uvm"], known["nvidia-caps"]
    assert 384 <= uvm <= 511 and 384 <= caps <= 511 and uvm != caps
    assert nodes(phoenix) == {
        "nvidia0": "character special file c3 0 666 0 0",
        "nvidia1": "character special file c3 1 666 0 0",
        "nvidiactl": "character special file c3 ff 666 0 0",
        "nvidia-modeset": "character special file c3 fe 666 0 0",
        "nvidia-uvm": f"character special file {uvm:x} 0 666 0 0",
        "nvidia-uvm-tools": f"character special file {uvm:x} 1 666 0 0",
        "nvidia-caps/nvidia-cap1": f"character special file {caps:x} 1 400 0 0",
        "nvidia-caps/nvidia-cap2": f"character special file {caps:x} 2 444 0 0",
    }


def test_majors_stay_over_a_reboot_and_change_with_the_kernel(phoenix: Host) -> None:
    before = majors(phoenix)
    phoenix.reboot()
    assert majors(phoenix) == before
    phoenix.machine.install_kernel("6.17.4-1-pve")
    phoenix.reboot()
    after = majors(phoenix)
    assert {name for name in after if after[name] != before[name]} == {
        "kfd", "nvidia-uvm", "nvidia-caps", "nvidia-caps-imex-channels", "nvidia-nvlink", "nvidia-nvswitch",
    }  # fmt: skip


def test_a_fault_changes_the_majors_at_every_boot(phoenix: Host) -> None:
    seen = [majors(phoenix)["nvidia-uvm"]]
    phoenix.machine.set_fault("nvidia-majors-change", True)
    for _ in range(2):
        phoenix.reboot()
        seen.append(majors(phoenix)["nvidia-uvm"])
    assert len(set(seen)) == 3


def test_minor_numbers_need_not_be_in_pci_order(tmp_path: Path) -> None:
    host = Host(tmp_path, "containers-pve8", running=True)
    text = host.output("grep -H 'Device Minor' $HOMELAB_ROOT/proc/driver/nvidia/gpus/*/information")
    found = {m[1]: int(m[2]) for m in re.finditer(r"gpus/([^/]+)/information:Device Minor:\s+(\d+)", text)}
    assert found == {"0000:01:00.0": 1, "0000:04:00.0": 0}
    listed = host.output("nvidia-smi --query-gpu=index,pci.bus_id --format=csv,noheader").splitlines()
    assert listed == ["0, 00000000:01:00.0", "1, 00000000:04:00.0"], "nvidia-smi counts in PCI order"


def test_the_kernel_makes_no_node_and_a_cuda_program_makes_them(mixed: Host) -> None:
    assert nodes(mixed) == {}
    assert "nvidia-uvm" not in majors(mixed)
    mixed.output("nvidia-smi")
    assert set(nodes(mixed)) == {"nvidia0", "nvidia1", "nvidiactl"}, "nvidia-smi needs no nvidia-uvm"
    mixed.output("nvidia-modprobe -u -m -c 0")
    assert set(nodes(mixed)) == {
        "nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools",
    }  # fmt: skip
    assert nodes(mixed)["nvidia-uvm"].split()[3] == f"{majors(mixed)['nvidia-uvm']:x}"


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ("", set()),
        ("-c 0 -c 255", {"nvidia0", "nvidiactl"}),
        ("-u", set()),
        ("-u -c 0", {"nvidia-uvm", "nvidia-uvm-tools"}),
        ("-u -m -c 0", {"nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"}),
        ("--create-nvidia-device-file=1", {"nvidia1"}),
    ],
)
def test_nvidia_modprobe_makes_what_its_options_say(mixed: Host, options: str, made: set[str]) -> None:
    mixed.output(f"nvidia-modprobe {options}")
    assert set(nodes(mixed)) == made


def test_a_blacklisted_driver_is_not_loaded_at_boot_and_can_be_by_hand(tmp_path: Path) -> None:
    host = Host(tmp_path, changed("mixed", loaded=False), running=True)
    assert "nvidia" not in host.modules()
    assert not (host.root / "proc/driver/nvidia").exists()
    host.output("modprobe nvidia")
    assert (host.root / "proc/driver/nvidia/version").exists()
    assert host.driver("0000:1d:00.0") == "nvidia"


def test_a_card_that_goes_to_a_vm_takes_its_dri_nodes_along_and_leaves_its_own(phoenix: Host) -> None:
    by_path = "ls $HOMELAB_ROOT/dev/dri/by-path"
    assert phoenix.output(by_path).split()[:4] == [
        "pci-0000:01:00.0-card", "pci-0000:01:00.0-render", "pci-0000:02:00.0-card", "pci-0000:02:00.0-render",
    ]  # fmt: skip
    assert phoenix.output("readlink $HOMELAB_ROOT/dev/dri/by-path/pci-0000:02:00.0-render").strip() == "../renderD129"
    assert (
        phoenix.output("readlink -f $HOMELAB_ROOT/sys/class/drm/renderD129/device | xargs basename").strip()
        == "0000:02:00.0"
    )
    phoenix.output(rebound("0000:02:00.0", "vfio-pci"))
    assert "0000:02:00.0" not in phoenix.output(by_path)
    assert not (phoenix.root / "dev/dri/renderD129").exists()
    assert not (phoenix.root / "proc/driver/nvidia/gpus/0000:02:00.0").exists()
    assert "nvidia1" in nodes(phoenix), "nobody removes what nvidia-modprobe made"
    phoenix.output(rebound("0000:02:00.0", "nvidia"))
    assert phoenix.output("readlink $HOMELAB_ROOT/dev/dri/by-path/pci-0000:02:00.0-render").strip() == "../renderD129"


def test_mknod_makes_a_node_that_every_program_takes_for_one(mixed: Host) -> None:
    mixed.output("mknod -m 666 $HOMELAB_ROOT/dev/nvidia7 c 195 7")
    assert nodes(mixed) == {"nvidia7": "character special file c3 7 666 0 0"}
    assert mixed.run("mknod $HOMELAB_ROOT/dev/nvidia7 c 195 7").stderr.endswith("nvidia7: File exists\n")
    assert mixed.output("cd $HOMELAB_ROOT && stat -c %F -- dev/nvidia7") == "character special file\n"
    mixed.output("chmod 0600 $HOMELAB_ROOT/dev/nvidia7")
    assert nodes(mixed)["nvidia7"].split()[-3] == "600"
    mixed.output("chmod 0000 $HOMELAB_ROOT/dev/nvidia7")
    assert nodes(mixed)["nvidia7"].split()[-3] == "0"


def test_files_that_are_no_nodes_are_left_to_the_machines_own_programs(mixed: Host) -> None:
    mixed.write("/etc/dev/notes", "four")
    assert mixed.output("stat -c '%F %s' $HOMELAB_ROOT/etc/dev/notes $HOMELAB_ROOT/etc/hostname").splitlines() == [
        "regular file 4",
        "regular file 4",
    ]
    assert mixed.output("stat -c %s -- $HOMELAB_ROOT/etc/dev/notes") == "4\n"
    assert mixed.run("stat $HOMELAB_ROOT/dev/nope").returncode == 1


@pytest.mark.parametrize(
    ("nvidia", "message"),
    [
        ({"minors": {"09:00.0": 0}}, "0000:09:00.0 is no device of pci"),
        ({"minors": {"1d:00.0": 0, "1e:00.0": 0}}, "a number is there twice"),
    ],
)
def test_minor_numbers_that_can_not_be_are_refused(nvidia: dict[str, object], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        changed("mixed", **nvidia)
