"""The layer passthrough_test, whole, over SSH on the lab: VMs really boot the initramfs that it has made."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.remote import agent, ssh
from lab import Lab, LogMark
from remote_scripts.both.passthrough_test import NAME, Wanted
from tests.lab.host_kit import rebound
from tests.lab.stack_kit import host_of

FUNCTIONS = {"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}
SCENARIO = "rtx5090"
CONF = "$HOMELAB_ROOT/etc/pve/qemu-server"


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """A lab whose card is on vfio-pci; VM 103 runs without it."""
    for address in FUNCTIONS:
        lab.run(rebound(address, "vfio-pci"))
    return lab


def apply(lab: Lab, functions: dict[str, str] = FUNCTIONS, **options: Any) -> dict[str, Any]:
    return ssh.Session(host_of(lab)).ask("apply", "passthrough_test", Wanted(functions=functions, **options))


def failure(lab: Lab, **options: Any) -> HomelabError:
    """The test's message; whatever it was, no VM, no file and no process is left, and no device is held."""
    before = lab.snapshot("etc/pve", "var/lib"), reserved(lab)
    with pytest.raises(HomelabError) as raised:
        apply(lab, **options)
    assert (lab.snapshot("etc/pve", "var/lib"), reserved(lab)) == before
    assert_nothing_is_left(lab)
    return raised.value


def assert_nothing_is_left(lab: Lab) -> None:
    assert NAME not in lab.run("qm list").stdout
    assert not (lab.root / "run/homelab-passthrough-test").exists()
    known = lab.machine._host().machine["guests"]
    assert {folder.name for folder in (lab.state / "guests").glob("*")} <= set(known)
    assert "process" not in json.dumps(lab.machine._host().machine["guests"])


def reserved(lab: Lab) -> str:
    """Which VM has which device."""
    file = lab.root / "run/qemu-server/pci-id-reservations"
    return file.read_text() if file.exists() else ""


def power(lab: Lab, since: LogMark) -> list[str]:
    """The verbs of qm that changed something."""
    return [entry["args"][0] for entry in lab.programs(since) if entry["program"] == "qm"]


def test_the_vm_sees_the_card_with_its_bars_and_is_gone(lab: Lab) -> None:
    since = lab.mark()
    assert apply(lab) == {
        "kernel": "6.17.2-1-pve",
        "vmid": 100,
        "functions": [
            {
                "guest": "0000:01:00.0",
                "address": "0000:01:00.0",
                "id": "10de:2b85",
                "class": "030000",
                "bars": [
                    {"index": 0, "size": 64 << 20},
                    {"index": 1, "size": 32 << 30},
                    {"index": 2, "size": 32 << 20},
                ],
            },
            {
                "guest": "0000:01:00.1",
                "address": "0000:01:00.1",
                "id": "10de:22e8",
                "class": "040300",
                "bars": [{"index": 0, "size": 16 << 10}],
            },
        ],
    }
    assert_nothing_is_left(lab)
    assert power(lab, since) == ["create", "start", "stop", "destroy"]
    assert "status: running" in lab.run("qm status 103").stdout


def test_a_second_test_is_as_the_first(lab: Lab) -> None:
    assert apply(lab) == apply(lab)


def test_two_cards_with_the_same_ids_are_each_found(tmp_path: Path) -> None:
    cards = {
        "0000:1d:00.0": "10de:2204",
        "0000:1d:00.1": "10de:1aef",
        "0000:1e:00.0": "10de:2204",
        "0000:1e:00.1": "10de:1aef",
    }
    with Lab.start("two-identical", state=tmp_path / "lab") as lab:
        for address in cards:
            lab.run(rebound(address, "vfio-pci"))
        seen = apply(lab, cards)
        assert [(f["address"], f["guest"], f["id"]) for f in seen["functions"]] == [
            ("0000:1d:00.0", "0000:01:00.0", "10de:2204"),
            ("0000:1d:00.1", "0000:01:00.1", "10de:1aef"),
            ("0000:1e:00.0", "0000:02:00.0", "10de:2204"),
            ("0000:1e:00.1", "0000:02:00.1", "10de:1aef"),
        ]
        lab.fault("card-invisible", "0000:1e:00")
        assert "0000:1e:00.0 (10de:2204): is not in the VM" in failure(lab, functions=cards).found


def test_while_another_vm_runs_with_the_card_by_its_mapping_it_is_named_and_goes_on(lab: Lab) -> None:
    lab.run(
        "pvesh create /cluster/mapping/pci --id gpu0"
        " --map node=pve,path=0000:01:00,id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3;"
        "qm stop 103; qm set 103 --hostpci0 mapping=gpu0,pcie=1; qm start 103"
    )
    assert "already in use by VMID '103'" in failure(lab).found
    assert "status: running" in lab.run("qm status 103").stdout
    lab.run("qm stop 103")
    assert len(apply(lab)["functions"]) == 2


def test_a_card_that_is_not_on_vfio_pci_is_left_where_it_is(lab: Lab) -> None:
    lab.run(rebound("0000:01:00.1", "snd_hda_intel"))
    since = lab.mark()
    assert failure(lab).found == "its driver is snd_hda_intel"
    assert power(lab, since) == []
    assert (
        lab.run("basename $(readlink $HOMELAB_ROOT/sys/bus/pci/devices/0000:01:00.1/driver)").stdout
        == "snd_hda_intel\n"
    )


def test_what_an_interrupted_test_has_left_is_removed_first(lab: Lab) -> None:
    lab.fault("guest-boot-hangs", True)
    lab.run(
        f"qm create 900 --name {NAME} --machine q35 --hostpci0 0000:01:00,pcie=1"
        " --args '-kernel /boot/vmlinuz-6.17.2-1-pve -serial file:/run/console'; qm start 900;"
        f"echo 'lock: create' >>{CONF}/900.conf; mkdir $HOMELAB_ROOT/run/homelab-passthrough-test;"
        f"qm create 901 --name {NAME}-of-mine"
    )
    lab.fault("guest-boot-hangs", None)
    assert apply(lab)["vmid"] == 100
    assert lab.run("qm list | awk 'NR > 1 { print $1 }'").stdout.split() == ["103", "901"]


def test_a_start_that_fails_is_told_in_the_words_of_the_host(lab: Lab) -> None:
    lab.fault("task-fails", "qmstart=start failed: QEMU exited with code 1")
    error = failure(lab)
    assert (
        error.wanted == "the test VM started with the card" and error.found == "start failed: QEMU exited with code 1"
    )


def test_a_vm_that_says_nothing_ends_when_its_time_is_up(lab: Lab) -> None:
    lab.fault("guest-boot-hangs", True)
    error = failure(lab, timeout=1)
    assert "within 1 s" in error.wanted and error.found == "nothing came on the console"


@pytest.mark.parametrize(
    ("invisible", "found"),
    [
        ("0000:01:00.1", "0000:01:00.1 (10de:22e8): is not in the VM"),
        (
            "0000:01:00",
            "0000:01:00.0 (10de:2b85): is not in the VM\n0000:01:00.1 (10de:22e8): is not in the VM",
        ),
    ],
)
def test_a_function_that_the_vm_does_not_see_is_named(lab: Lab, invisible: str, found: str) -> None:
    lab.fault("card-invisible", invisible)
    assert failure(lab).found == found


def without_execution() -> str:
    """The agent, whose /init isn't executable."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(agent.archive())) as sources, zipfile.ZipFile(packed, "w") as whole:
        for name in sources.namelist():
            text = sources.read(name).decode()
            if name == "remote_scripts/boot/small_initramfs.py":
                text = text.replace('"init": (_PROGRAM', '"init": (0o100644')
                assert "0o100644" in text
            whole.writestr(name, text)
    return base64.b64encode(packed.getvalue()).decode()


def test_a_kernel_that_panics_is_told_by_the_end_of_the_console(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_archive_text", without_execution)
    found = failure(lab, timeout=5).found
    assert "Failed to execute /init (error -13)" in found and "Kernel panic" in found


def test_an_id_that_is_taken_is_refused_and_its_vm_untouched(lab: Lab) -> None:
    assert "VM 103 already exists on node 'pve'" in failure(lab, vmid=103).found


def test_a_kernel_that_was_removed_since_the_boot_is_named(lab: Lab) -> None:
    lab.run("rm $HOMELAB_ROOT/boot/vmlinuz-6.17.2-1-pve")
    assert failure(lab).found == "no /boot/vmlinuz-6.17.2-1-pve"
