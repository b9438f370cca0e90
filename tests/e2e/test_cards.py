"""A card that isn't its slot: a processor's graphics, with the root disk behind a USB controller beside them."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.person import ENTER
from tests.e2e.test_gpu_vm import conf, given_back, power_calls, running, with_card

SLOT = "0000:c6:00"
# The only card: for VM 103, though the host then shows nothing.
IGPU = [("hawkpoint1: ", f"103{ENTER}"), ("all the same", f"y{ENTER}")]
TESTED = ["--set", "hosts.pve.gpus.hawkpoint1.passthroughTest=true", "--set", "vms.sandbox.power=running"]


def drivers(stack: Stack) -> dict[str, str]:
    found = {}
    for path in sorted((stack.lab.root / "sys/bus/pci/devices").glob(f"{SLOT}.*")):
        link = path / "driver"
        found[path.name[-1]] = link.readlink().name if link.is_symlink() else ""
    return found


def test_graphics_go_to_a_vm_without_the_rest_of_their_slot_and_come_back(by_init: Callable[..., Stack]) -> None:
    stack = by_init("apu", *IGPU, options=TESTED)
    stock, before = stack.lab.snapshot(), drivers(stack)
    up = stack.up()
    assert f"in the same slot, but left with the host: {SLOT}.2 security processor" in up.output
    assert drivers(stack) == {**before, "0": "vfio-pci"}, "the mapping offers no sound"
    # Proxmox VE compares the subsystem's zeros, and a mapping's id with each function of its path.
    entry = f"id=1002:1900,iommugroup=17,node=pve,path={SLOT}.0,subsystem-id=0000:0000"
    assert entry in (stack.lab.root / "etc/pve/mapping/pci.cfg").read_text()
    assert "hostpci0: mapping=hawkpoint1,pcie=1" in conf(stack, 103)
    assert running(stack) == {103} and with_card(stack) == {f"{SLOT}.0": 103}
    test = stack.output()["hosts"]["pve"]["gpus"]["hawkpoint1"]["test"]
    assert [one["address"] for one in test["functions"]] == [f"{SLOT}.0"]
    mark = stack.lab.mark()
    stack.destroy_as_left()
    assert power_calls(stack, mark) == ["103 shutdown", "103 start"]
    given_back(stack, stock)


def test_a_card_is_reset_and_stays_awake_as_the_settings_say_until_they_say_nothing(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("rtx5090")
    folder = stack.lab.root / "sys/bus/pci/devices/0000:01:00.0"
    # That the first of two functions lists the bus is no more than the kernel's order of looking at them: it can't be given back.
    had = {"reset_method": "flr", "d3cold_allowed": "1", "power/control": "auto"}
    (folder / "power").mkdir(exist_ok=True)
    for name in ("d3cold_allowed", "power/control"):
        (folder / name).write_text(f"{had[name]}\n")
    assert (folder / "reset_method").read_text() == "flr bus\n"
    card = stack.config["homelab:hosts"]["pve"]["gpus"]["rtx5090"]
    mark = stack.lab.mark()
    card |= {"reset": "flr", "keepAwake": True}
    assert "/etc/udev/rules.d/90-homelab-cards.rules" in stack.preview().output
    assert stack.up().changed >= {"pve-values"}
    assert {name: (folder / name).read_text().strip() for name in had} == {
        "reset_method": "flr",
        "d3cold_allowed": "0",
        "power/control": "on",
    }
    (folder / "power/control").write_text("auto\n")
    mended = stack.up("--refresh")
    assert "drift (values): power/control of 0000:01:00.0 is auto, not on" in mended.output
    assert (folder / "power/control").read_text().strip() == "on"
    for key in ("reset", "keepAwake"):
        del card[key]
    stack.up()
    assert {name: (folder / name).read_text().strip() for name in had} == had
    assert not (stack.lab.root / "etc/udev/rules.d/90-homelab-cards.rules").exists()
    assert stack.lab.boots(since=mark) == []


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
    assert running(stack) == {103} and with_card(stack) == {vf: 103}
    stack.destroy_as_left()
    assert running(stack) == {103} and with_card(stack) == {}
    assert "hostpci" not in conf(stack, 103)
    given_back(stack, stock)
