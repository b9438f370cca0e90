"""A card that isn't its slot: a processor's graphics, with the root disk behind a USB controller beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.person import ENTER
from tests.e2e.test_gpu_vm import conf, given_back, with_card

SLOT = "0000:c6:00"
# The only card: for VM 103, though the host then shows nothing.
IGPU = [("hawkpoint1: ", f"103{ENTER}"), ("all the same", f"y{ENTER}")]
TESTED = ["--set", "hosts.pve.gpus.hawkpoint1.passthroughTest=true", "--set", "vms.sandbox.power=running"]


@pytest.mark.one_of("cards that are not their slot")
def test_graphics_go_to_a_vm_without_the_rest_of_their_slot_and_come_back(by_init: Callable[..., Stack]) -> None:
    stack = by_init("apu", *IGPU, options=TESTED)
    stock, before = stack.lab.snapshot(), stack.machine.drivers()
    up = stack.up()
    assert f"in the same slot, but left with the host: {SLOT}.2 security processor" in up.output
    assert stack.machine.drivers() == {**before, f"{SLOT}.0": "vfio-pci"}, "the mapping offers no sound"
    # Proxmox VE compares the subsystem's zeros, and a mapping's id with each function of its path.
    entry = f"id=1002:1900,iommugroup=17,node=pve,path={SLOT}.0,subsystem-id=0000:0000"
    assert entry in (stack.lab.root / "etc/pve/mapping/pci.cfg").read_text()
    assert "hostpci0: mapping=hawkpoint1,pcie=1" in conf(stack, 103)
    assert stack.machine.guests_on() == {103} and with_card(stack) == {f"{SLOT}.0": 103}
    test = stack.output()["hosts"]["pve"]["gpus"]["hawkpoint1"]["test"]
    assert [one["address"] for one in test["functions"]] == [f"{SLOT}.0"]
    mark = stack.lab.mark()
    stack.destroy_as_left()
    assert stack.power_calls(mark) == ["103 shutdown", "103 start"]
    given_back(stack, stock)


@pytest.mark.one_of("cards that are not their slot")
def test_a_virtual_function_goes_to_a_vm_is_bound_when_it_starts_and_comes_back(by_init: Callable[..., Stack]) -> None:
    vf, owner = "0000:41:00.5", "0000:41:00.0"
    cards = [
        ("a2-a16: ", ENTER),
        ("a2-a16-2: ", ENTER),
        ("a2-a16-3: ", f"103{ENTER}"),
    ]
    options = ["--set", "hosts.pve.gpus.a2-a16-3.liveMigration=true", "--set", "vms.sandbox.power=running"]
    made = "qm create 103 --name sandbox --machine q35 --bios ovmf --memory 2048 --boot order=net0"
    stack = by_init("sriov", *cards, options=options, first=made)
    stock, devices = stack.lab.snapshot(), stack.lab.root / "sys/bus/pci/devices"

    def driver(address: str) -> str:
        link = devices / address / "driver"
        return link.readlink().name if link.is_symlink() else ""

    had = driver(owner)
    up = stack.up()
    assert f"gpus.a2-a16-3 is a virtual function of {owner}" in " ".join(up.output.split())
    mapping = (stack.lab.root / "etc/pve/mapping/pci.cfg").read_text()
    assert f"path={vf}," in mapping and "live-migration-capable 1" in mapping
    assert "homelab.vfio" not in (stack.lab.root / "proc/cmdline").read_text()
    assert (driver(vf), driver(owner)) == ("vfio-pci", had)
    assert stack.machine.guests_on() == {103} and with_card(stack) == {vf: 103}
    stack.destroy_as_left()
    assert stack.machine.guests_on() == {103} and with_card(stack) == {}
    assert "hostpci" not in conf(stack, 103)
    given_back(stack, stock)
