"""Cards to VMs, through the API: adopted, moved, mended, given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from homelab.cli.doctor import WELL
from homelab.cli.doctor import main as doctor
from homelab.judged.tree import Settings
from homelab.reading import planning
from homelab.remote import host_session
from homelab.settings.stack_file import StackFile
from tests import connections
from tests.e2e.conftest import Stack, refusal
from tests.engine_stack import name_of
from tests.lab.stack_kit import host_of

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
MAPPING = "etc/pve/mapping/pci.cfg"
CHAIN = ["pve-probe", "pve-cmdline", "pve-initrd", "pve-bind", "pve-reboot", "pve-booted"]


def conf(stack: Stack, vmid: int) -> str:
    return (stack.lab.root / f"etc/pve/qemu-server/{vmid}.conf").read_text()


def with_card(stack: Stack) -> dict[str, int]:
    """PCI address -> the VM that runs with it."""
    file = stack.lab.root / "run/qemu-server/pci-id-reservations"
    lines = file.read_text().splitlines() if file.exists() else []
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def vms(stack: Stack) -> dict[str, Any]:
    """The settings of the VMs, to be changed."""
    found: dict[str, Any] = stack.config["homelab:vms"]
    return found


def given_back(stack: Stack, stock: dict[str, Any]) -> None:
    """All is as in the snapshot."""
    assert stack.lab.snapshot() == stock


def undone_of(stack: Stack) -> str:
    """What `homelab show --undo` says."""
    settings = StackFile.read(stack.folder / "Pulumi.lab.yaml").guests()
    (host,) = settings.hosts.values()
    undone = planning.undone(Settings("pve", host, *settings.guests_on("pve"), stack="homelab/lab"))
    connections.end_all()
    return undone


def test_a_running_vm_is_adopted_both_get_other_names_its_card_is_exchanged_and_all_is_given_back_step_by_step(
    converged: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    stack = converged("rtx5090", vms=SANDBOX)

    # The steps happened in the order of their dependencies.
    up = stack.first
    assert up and [name for _, name in up.steps if name in CHAIN] == CHAIN
    with subtests.test("initramfs and menu are made once"):
        made = [entry["program"] for entry in stack.lab.programs()]
        # The menu once: the boot entry that is tried needs none.
        assert (made.count("update-initramfs"), made.count("grub-mkconfig")) == (1, 1)
    # Once the boot is confirmed, nothing is left of what would have taken it back.
    with subtests.test("nothing is left of the trial"):
        assert not list((stack.lab.root / "etc/systemd/system").rglob("homelab-rollback*"))
        assert not [timer for timer in stack.lab.timers() if "homelab" in json.dumps(timer)]
    # What the reboot stops is said before anything is changed.
    with subtests.test("what the reboot stops is said before"):
        texts = [json.dumps(event) for event in up.events]
        said = next(number for number, text in enumerate(texts) if "it stops VM 103 (Sandbox)" in text)
        changed = next(
            number for number, text in enumerate(texts) if "resourcePreEvent" in text and "pve-cmdline" in text
        )
        assert said < changed

    with subtests.test("the VM has the card, and runs again"):
        assert "\nhostpci0: mapping=rtx5090,pcie=1\nmachine" in conf(stack, 103)
        assert stack.machine.guests_on() == {103}
        assert with_card(stack) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
    with subtests.test("the doctor finds it well"):
        file = ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
        stack.write_config()
        assert (doctor(["vm", "103", *file]), doctor(["host", *file])) == (WELL, WELL)

    # Nothing has changed: at most one look at each object.
    mark = stack.lab.mark()
    with subtests.test("nothing has changed"):
        assert stack.up("--refresh").changed == set()
        paths = [call["path"] for call in stack.lab.api_calls(mark)]
        assert len(paths) == len(set(paths)) == 5

    # A card, and a VM, that get other names; one that was switched off since stays off.
    mark = stack.lab.mark()
    stack.lab.run("qm stop 103")
    stack.host["gpus"] = {"big": {"match": "10de:2b85"}}
    stack.config["homelab:vms"] = {"gaming": {"host": "pve", "vmid": 103, "gpus": ["big"]}}
    renamed = stack.up()
    with subtests.test("other names"):
        assert "hostpci0: mapping=big,pcie=1" in conf(stack, 103)
        lines = (stack.lab.root / MAPPING).read_text().splitlines()
        assert [line for line in lines if not line.startswith("\t")] == ["big"]
        assert "/gaming's now, and keeps what it was given" in renamed.output
        assert "pve: rebooting" not in renamed.output and stack.lab.boots(since=mark) == []
        assert stack.machine.guests_on() == set()
    # The host is switched off, the card exchanged: VM 103 doesn't start with the host, as Proxmox VE compares.
    stack.lab.run("qm start 103")
    stack.lab.machine.exchange("0000:01:00.0", "10de:2684", "1458:40bf")
    stack.lab.machine.exchange("0000:01:00.1", "10de:22ba", "1458:40bf")
    stack.lab.power_cycle()
    assert stack.machine.guests_on() == set()
    stack.host["gpus"]["big"]["match"] = "10de:2684"
    vms(stack)["gaming"]["power"] = "running"
    stack.up("--refresh")
    with subtests.test("another card"):
        entry = "id=10de:2684,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1458:40bf"
        assert entry in (stack.lab.root / MAPPING).read_text()
        assert with_card(stack) == {"0000:01:00.0": 103, "0000:01:00.1": 103}

    # Taken back in the other order; not at all while another run has the host.
    configured = stack.lab.snapshot()
    host_session.of("another").hold(host_of(stack.lab))
    try:
        refused = stack.destroy(ok=False)
        with subtests.test("another run has the host"):
            assert refused.message.count("wanted:") == 1, refused.message
            assert "to be the only run at work on this host" in refused.message
            assert stack.lab.snapshot() == configured
    finally:
        connections.end_all()
    assert [name for operation, name in stack.destroy().steps if operation == "delete" and name in CHAIN] == CHAIN[::-1]
    assert stack.machine.guests_on() == {103}
    given_back(stack, stack.stock)


TWO = {
    "first": {"match": "10de:2204", "address": "0000:1d:00", "allowConsole": True},
    "second": {"match": "10de:2204", "address": "0000:1e:00"},
}


def second_vm(stack: Stack) -> None:
    stack.lab.run("qm create 104 --name gaming --machine q35 --bios ovmf --cores 4 --memory 8192 --ostype l26")


@pytest.mark.one_of("cards to VMs")
def test_a_vm_that_leaves_the_settings_gives_its_card_to_another_one_in_the_same_run(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on(
        "two-identical",
        gpus=TWO,
        vms={"one": {"vmid": 103, "gpus": ["first"]}, "two": {"vmid": 104, "gpus": ["second"], "power": "running"}},
    )
    second_vm(stack)
    stack.lab.run("qm set 103 --onboot 0; qm start 103")
    mark = stack.lab.mark()
    stack.up()
    # 103 runs again, though our reboot had stopped it: that was its only stop.
    assert sorted(stack.power_calls(mark)) == ["103 start", "104 start"]
    assert (with_card(stack)["0000:1d:00.0"], with_card(stack)["0000:1e:00.0"]) == (103, 104)
    # Both in one VM, with one shutdown and one start of each; the one that had the other isn't managed any more.
    mark = stack.lab.mark()
    del vms(stack)["one"]
    vms(stack)["two"]["gpus"] = ["second", {"gpu": "first", "rombar": False}]
    moved = stack.up("--refresh")
    assert moved.found_changed <= {"pve-probe"} and "drift" not in moved.output, (
        "the first `up` isn't what a refresh reads"
    )
    assert set(with_card(stack).values()) == {104} and "hostpci" not in conf(stack, 103)
    assert "hostpci0: mapping=second,pcie=1\nhostpci1: mapping=first,pcie=1,rombar=0\n" in conf(stack, 104)
    assert stack.machine.guests_on() == {103, 104}
    assert stack.power_calls(mark) == ["103 shutdown", "103 start", "104 shutdown", "104 start"]


@pytest.mark.one_of("cards to VMs")
def test_what_stands_against_a_card_is_said_with_the_vm_as_it_was_and_what_is_changed_or_removed_by_hand_is_mended(
    converged: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    """Each obstacle by itself, without the engine: tests/unit/test_vm_plan.py, tests/lab/test_vm_refusals.py."""
    stack = converged("bound-by-hand", vms={})
    second_vm(stack)
    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    # Over a login with the password, which is told nobody.
    password, ssh = stack.lab.connection["password"], stack.host["ssh"]
    stack.host["ssh"] = {"port": ssh["port"], "hostKey": ssh["hostKey"], "password": password}
    stack.config["homelab:allowPlainSecrets"] = True
    # Another VM runs with the card.
    stack.lab.run("qm set 104 --hostpci0 mapping=rtx5090,pcie=1; qm start 104")
    assert "VM 104 (gaming) runs with it" in refusal(stack)
    stack.lab.run("qm shutdown 104")
    stack.host["gpus"]["rtx5090"]["passthroughTest"] = True
    # While it is changed: the state has the resource by now, though nothing was finished.
    stack.config["homelab:vms"]["sandbox"]["shutdown"] = {"timeout": 1}
    stack.lab.fault("guest-ignores-shutdown", 103)
    before, ran = conf(stack, 103), stack.machine.guests_on()
    stays_on = stack.up(ok=False)
    with subtests.test("a shutdown that takes too long"):
        for text in (
            "shutdown.otherwise: stop",
            "not finished; what is known of it is kept in the state:",
        ):
            assert text in stays_on.message, stays_on.message
        assert (conf(stack, 103), stack.machine.guests_on()) == (before, ran)
        assert stays_on.message.count("wanted: ") == 1 and password not in stays_on.output
    with subtests.test("what the state has of it"):
        (cards,) = (one for one in stack.resources() if name_of(one["urn"]) == "sandbox-cards")
        assert cards["outputs"]["drift"] == ["the last run didn't finish with it"] and not cards["outputs"]["state"]
    # A small VM proves the card before anything is noted of the VM that gets it; nothing is left of the small one.
    with subtests.test("a small VM proves the card before"):
        assert "pve-rtx5090-test" in map(name_of, cards["dependencies"])
        assert sorted(path.name for path in (stack.lab.root / "etc/pve/qemu-server").iterdir()) == [
            "103.conf",
            "104.conf",
        ]
        (test,) = (one for one in stack.resources() if name_of(one["urn"]) == "pve-rtx5090-test")
        # A reboot that brings the VM back with its card needs no other proof: it asks for one where the card is another.
        assert test["inputs"]["triggers"] == [{"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}]
    stack.config["homelab:vms"]["sandbox"]["shutdown"]["otherwise"] = "stop"
    vms(stack)["sandbox"]["power"] = "running"
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    with subtests.test("what the small VM has seen"):
        seen = stack.output()["hosts"]["pve"]["gpus"]["rtx5090"]["test"]["functions"]
        assert [(one["address"], one["id"]) for one in seen] == [
            ("0000:01:00.0", "10de:2b85"),
            ("0000:01:00.1", "10de:22e8"),
        ]
        assert {"index": 1, "size": 32 << 30} in seen[0]["bars"]

    # Changed or removed by hand.
    stack.lab.fault("guest-ignores-shutdown", None)
    entry = (stack.lab.root / MAPPING).read_text()
    stack.lab.run(
        "qm set 104 --delete hostpci0; qm shutdown 103; qm set 103 --delete hostpci0; "
        "pvesh set /cluster/mapping/pci/rtx5090 --map id=10de:2b85,iommugroup=99,node=pve,path=0000:01:00,subsystem-id=1043:89e3"
    )
    up = stack.up("--refresh")
    with subtests.test("what was changed by hand is mended"):
        for drift in (
            "hostpci0: not there -> mapping=rtx5090,pcie=1",
            "the PCI mapping",
            "power: stopped -> running",
        ):
            assert f"drift: {drift}" in up.output
        assert up.changed == {"pve-rtx5090", "sandbox-cards"}
        assert (stack.lab.root / MAPPING).read_text() == entry
        assert stack.machine.guests_on() == {103} and with_card(stack)["0000:01:00.0"] == 103
    # The VM itself: that is named, and keeps nothing from being destroyed.
    stack.lab.run("qm stop 103; qm destroy 103")
    gone = stack.up("--refresh", ok=False)
    with subtests.test("the VM is gone"):
        assert "drift: VM 103 isn't there" in gone.output
        assert "VM 103" in gone.message and gone.message.count("wanted: ") == 1
    stack.destroy()
    assert not (stack.lab.root / MAPPING).exists()
