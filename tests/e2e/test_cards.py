"""A card that isn't its slot: a processor's graphics, with the root disk behind a USB controller beside them."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import conf, given_back, power_calls, running, vms, with_card

SLOT = "0000:c6:00"
GPUS = {"igpu": {"match": "1002:1900", "allowConsole": True, "passthroughTest": True}}


def drivers(stack: Stack) -> dict[str, str]:
    found = {}
    for path in sorted((stack.lab.root / "sys/bus/pci/devices").glob(f"{SLOT}.*")):
        link = path / "driver"
        found[path.name[-1]] = link.readlink().name if link.is_symlink() else ""
    return found


def test_graphics_go_to_a_vm_without_the_rest_of_their_slot_and_come_back(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("apu", gpus=GPUS, vms={"sandbox": {"vmid": 103, "gpus": ["igpu"], "power": "running"}})
    stock, before = stack.lab.snapshot(), drivers(stack)
    up = stack.up()
    assert f"stays with the host, though in its slot: {SLOT}.2 security processor" in up.output
    assert drivers(stack) == {**before, "0": "vfio-pci", "1": "vfio-pci"}
    # Proxmox VE compares the subsystem's zeros, and a mapping's id with each function of its path.
    entry = f"id=1002:1900,iommugroup=17,node=pve,path={SLOT}.0,subsystem-id=0000:0000"
    assert entry in (stack.lab.root / "etc/pve/mapping/pci.cfg").read_text()
    assert "hostpci0: mapping=igpu,pcie=1" in conf(stack, 103)
    assert running(stack) == {103} and with_card(stack) == {f"{SLOT}.0": 103}
    test = stack.output()["hosts"]["pve"]["gpus"]["igpu"]["test"]
    assert [one["address"] for one in test["functions"]] == [f"{SLOT}.0", f"{SLOT}.1"]
    assert stack.up("--refresh").changed == set()

    # The mapping is taken out by hand, and mended; another VM with the slot's USB controller has nothing of the card.
    stack.lab.run("pvesh delete /cluster/mapping/pci/igpu")
    assert "igpu" in " ".join(stack.up("--refresh").changed)
    mark = stack.lab.mark()
    vms(stack)["sandbox"]["gpus"] = []
    stack.up()
    assert power_calls(stack, mark) == ["103 shutdown", "103 start"]
    stack.destroy()
    given_back(stack, stock)
