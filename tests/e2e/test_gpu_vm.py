"""Cards to VMs, through the API: adopted, moved, mended, given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from homelab.cli.doctor import WELL
from homelab.cli.doctor import main as doctor
from tests.e2e.conftest import Stack

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
MAPPING = "etc/pve/mapping/pci.cfg"


def conf(stack: Stack, vmid: int) -> str:
    return (stack.lab.root / f"etc/pve/qemu-server/{vmid}.conf").read_text()


def running(stack: Stack) -> set[int]:
    lines = stack.lab.run("qm list").stdout.splitlines()[1:]
    return {int(line.split()[0]) for line in lines if line.split()[2] == "running"}


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
    now = stack.lab.snapshot()
    assert now == stock


def power_calls(stack: Stack, mark: Any) -> list[str]:
    """`103 shutdown`, `103 start` and their like, in the order in which they were asked for."""
    found = []
    for call in stack.lab.api_calls(mark):
        words = call["path"].split("/")
        if "status" in words and call["method"] == "POST":
            found.append(f"{words[words.index('qemu') + 1]} {words[-1]}")
    return found


def test_a_running_vm_is_adopted_its_card_gets_another_name_and_all_is_given_back(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("rtx5090", vms=SANDBOX)
    assert "\nhostpci0: mapping=rtx5090,pcie=1\nmachine" in conf(stack, 103)
    assert running(stack) == {103}
    assert with_card(stack) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
    file = ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    stack.write_config()
    assert (doctor(["vm", "103", *file]), doctor(["host", *file])) == (WELL, WELL)

    # Nothing has changed: at most one look at each object.
    mark = stack.lab.mark()
    assert stack.up("--refresh").changed == set()
    paths = [call["path"] for call in stack.lab.api_calls(mark)]
    assert len(paths) == len(set(paths)) == 5

    # A card that gets another name is given under that one.
    def is_given_as(name: str) -> None:
        assert f"hostpci0: mapping={name},pcie=1" in conf(stack, 103)
        lines = (stack.lab.root / MAPPING).read_text().splitlines()
        assert [line for line in lines if not line.startswith("\t")] == [name]

    mark = stack.lab.mark()
    stack.host["gpus"]["rtx5090"]["mapping"] = "mapped"
    stack.up()
    is_given_as("mapped")
    assert with_card(stack)["0000:01:00.0"] == 103
    # One that was switched off since stays off.
    stack.lab.run("qm stop 103")
    stack.host["gpus"] = {"big": {"match": "10de:2b85"}}
    vms(stack)["sandbox"]["gpus"] = ["big"]
    renamed = stack.up()
    is_given_as("big")
    assert "pve: rebooting" not in renamed.output and stack.lab.boots(since=mark) == []
    assert running(stack) == set()
    stack.lab.run("qm start 103")
    stack.destroy()
    assert running(stack) == {103}
    given_back(stack, stack.stock)


TWO = {
    "first": {"match": "10de:2204", "address": "0000:1d:00", "allowConsole": True},
    "second": {"match": "10de:2204", "address": "0000:1e:00"},
}


def second_vm(stack: Stack, vmid: int = 104, name: str = "gaming") -> None:
    stack.lab.run(f"qm create {vmid} --name {name} --machine q35 --bios ovmf --cores 4 --memory 8192 --ostype l26")


def test_cards_move_between_vms_and_a_vm_that_leaves_gives_its_card_away_in_one_run_each(
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
    assert sorted(power_calls(stack, mark)) == ["103 start", "104 start"]
    assert (with_card(stack)["0000:1d:00.0"], with_card(stack)["0000:1e:00.0"]) == (103, 104)
    # They are exchanged.
    vms(stack)["one"]["gpus"], vms(stack)["two"]["gpus"] = ["second"], ["first"]
    exchanged = stack.up("--refresh")
    assert exchanged.found_changed <= {"pve-probe"} and "drift" not in exchanged.output, (
        "the first `up` isn't what a refresh reads"
    )
    assert (with_card(stack)["0000:1d:00.0"], with_card(stack)["0000:1e:00.0"]) == (104, 103)
    # Both in one VM, with one shutdown and one start of each; the one that had the other isn't managed any more.
    mark = stack.lab.mark()
    del vms(stack)["one"]
    vms(stack)["two"]["gpus"] = ["second", {"gpu": "first", "rombar": False}]
    stack.up()
    assert set(with_card(stack).values()) == {104} and "hostpci" not in conf(stack, 103)
    assert "hostpci0: mapping=first,pcie=1,rombar=0\nhostpci1: mapping=second,pcie=1\n" in conf(stack, 104)
    assert running(stack) == {103, 104}
    assert power_calls(stack, mark) == ["103 shutdown", "103 start", "104 shutdown", "104 start"]


def test_values_that_had_to_change_come_back_also_under_another_name_and_a_card_may_go_by_its_address(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("bound-by-hand", vms={})
    stack.lab.run("qm create 104 --name old --memory 8192 --balloon 2048 --vga std --ostype l26 --cores 2")
    # Proxmox VE reads the empty boot order as a blank, and writes that one down from the first change on.
    stack.lab.run("qm set 104 --cores 4")
    before = conf(stack, 104)
    by_address = {"gpu": "rtx5090", "byAddress": True, "romfile": "card.rom", "rombar": False}
    old = {"host": "pve", "vmid": 104, "gpus": [by_address], "machine": "q35", "display": "none"}
    stack.config["homelab:vms"] = {"sandbox": old}
    # Over a login with the password, which is told nobody.
    password, ssh = stack.lab.connection["password"], stack.host["ssh"]
    stack.host["ssh"] = {"port": ssh["port"], "hostKey": ssh["hostKey"], "password": password}
    stack.config["homelab:allowPlainSecrets"] = True
    up = stack.up()
    assert password not in up.output
    assert {"machine: q35", "balloon: 0", "vga: none"} <= set(conf(stack, 104).splitlines())
    assert "OVMF is recommended" in up.output

    had, mark = conf(stack, 104), stack.lab.mark()
    vms(stack)["gaming"] = vms(stack).pop("sandbox")
    renamed = stack.up()
    assert "/gaming's now, and keeps what it was given" in renamed.output
    assert (
        conf(stack, 104) == had
        and "hostpci0: host=0000:01:00,pcie=1,rombar=0,romfile=card.rom" in had
        and power_calls(stack, mark) == []
    )
    note = stack.lab.root / "etc/pve/homelab/qemu-104"
    assert note.exists()

    stack.destroy()
    assert not note.exists()
    assert conf(stack, 104) == before
    stack.lab.run("qm destroy 104")
    given_back(stack, stack.stock)


def test_another_card_in_the_slot_is_mapped_and_given_anew(converged: Callable[..., Stack]) -> None:
    stack = converged("rtx5090", vms=SANDBOX)
    # The host is switched off, the card exchanged: VM 103 doesn't start with the host, as Proxmox VE compares.
    stack.lab.machine.exchange("0000:01:00.0", "10de:2684", "1458:40bf")
    stack.lab.machine.exchange("0000:01:00.1", "10de:22ba", "1458:40bf")
    stack.lab.power_cycle()
    assert running(stack) == set()
    stack.host["gpus"]["rtx5090"]["match"] = "10de:2684"
    vms(stack)["sandbox"]["power"] = "running"
    stack.up("--refresh")
    assert (
        "id=10de:2684,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1458:40bf"
        in (stack.lab.root / MAPPING).read_text()
    )
    assert with_card(stack) == {"0000:01:00.0": 103, "0000:01:00.1": 103}


def test_a_mapping_changed_or_removed_and_a_card_taken_out_by_hand_are_mended(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("bound-by-hand", vms={})
    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", **SANDBOX["sandbox"], "power": "running"}}
    stack.up()
    entry = (stack.lab.root / MAPPING).read_text()
    stack.lab.run(
        "qm shutdown 103; qm set 103 --delete hostpci0; "
        "pvesh set /cluster/mapping/pci/rtx5090 --map id=10de:2b85,iommugroup=99,node=pve,path=0000:01:00,subsystem-id=1043:89e3"
    )
    up = stack.up("--refresh")
    for drift in (
        "hostpci0: not there -> mapping=rtx5090,pcie=1",
        "the PCI mapping",
        "power: stopped -> running",
    ):
        assert f"drift: {drift}" in up.output
    assert up.changed == {"pve-rtx5090", "sandbox-cards"}
    assert (stack.lab.root / MAPPING).read_text() == entry
    assert running(stack) == {103} and with_card(stack)["0000:01:00.0"] == 103
    stack.lab.run("pvesh delete /cluster/mapping/pci/rtx5090")
    vms(stack)["sandbox"]["power"] = "stopped"
    assert "drift: the PCI mapping" in stack.up("--refresh").output
    assert (stack.lab.root / MAPPING).read_text() == entry
    assert running(stack) == set()
    assert stack.output()["vms"]["sandbox"]["state"] == "stopped"
    # The VM itself: that is named, and keeps nothing from being destroyed.
    stack.lab.run("qm destroy 103")
    gone = stack.up("--refresh", ok=False)
    assert "drift: VM 103 is gone" in gone.output
    assert "no node of its host's cluster has it" in gone.message
    stack.destroy()
    assert not (stack.lab.root / MAPPING).exists()
