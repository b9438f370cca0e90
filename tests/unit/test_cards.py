"""What a card is (homelab/facts/host.py), and what may go with it (homelab/host/gates.py): slots that hold more than a card, SR-IOV, groups, and
what the host can't do without."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from components.host_reboot import cards_seen
from homelab.cards import group_gates, resolving
from homelab.cards import remarks as card_remarks
from homelab.cards.resource import entry_of
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.host import gates, judge, plan
from homelab.settings import Host, NewVm, Vm
from homelab.shapes import BootedHost, DeviceSeen
from homelab.vm.cards import VmCard
from remote_scripts.pve.properties import overlap
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, device, gpu, reasons, settings, told, vm_note


def apu(*, together: bool = False, **changes: Any) -> HostFacts:
    """A Ryzen's graphics: everything of the processor in one slot, each function in a group of its own, or all ``together``."""
    parts = [
        ("0", "1002:1900", "030000", "amdgpu"),
        ("1", "1002:1640", "040300", "snd_hda_intel"),
        ("2", "1022:15c7", "108000", "ccp"),
        ("3", "1022:15b9", "0c0330", "xhci_hcd"),
        ("4", "1022:15ba", "0c0330", "xhci_hcd"),
        ("5", "1022:15e2", "048000", "snd_pci_ps"),
        ("6", "1022:15e3", "040300", "snd_hda_intel"),
    ]
    devices = [
        device("0000:00:08.1", "1022:14eb", "060400", 8, driver="pcieport"),
        *(
            device(
                f"0000:c6:00.{number}",
                ids,
                code,
                17 if together else 17 + int(number),
                driver=driver,
                parent="0000:00:08.1",
            )
            for number, ids, code, driver in parts
        ),
    ]
    return desktop(devices=devices, **changes)


APU = settings({"igpu": {"match": "1002:1900", "allowConsole": True}})
OTHERS = [f"0000:c6:00.{number}" for number in range(2, 7)]
ALL_ALLOWED = settings({"igpu": {"match": "1002:1900", "allowConsole": True, "allowGroupMembers": OTHERS}})


def test_of_a_processors_slot_only_the_graphics_and_their_own_audio_are_the_card() -> None:
    want = plan.wanted(apu(), APU)
    assert want.gpus["igpu"]["path"] == "0000:c6:00.0;0000:c6:00.1"
    assert [device.address for device in apu().functions("0000:c6:00")] == ["0000:c6:00.0", "0000:c6:00.1"]
    assert "homelab.vfio=0000:c6:00.0=1002:1900 " in f"{want.vfio_words} "


def with_it(*, by_address: bool = True) -> Vm:
    return Vm.model_validate({"host": "pve", "vmid": 104, "gpus": [{"gpu": "igpu", "byAddress": by_address}]})


def with_vm(vmid: int, lines: str, **guests: Any) -> dict[str, Any]:
    """A VM has these options."""
    return {"guests": {"configs": [conf("vm", vmid, lines)], **guests}}


BOUND = "homelab.vfio=0000:c6:00.0=1002:1900,0000:c6:00.1=1002:1640"


@rows(
    ("case", "facts", "host", "vms", "bound"),
    [
        ("nobody has it", apu(), APU, [], False),
        ("the graphics", apu(**with_vm(104, "hostpci0: mapping=igpu")), APU, [with_it(by_address=False)], False),
        ("a VM has no card", apu(), APU, [Vm(host="pve", vmid=105, gpus=[])], False),
        ("by address", apu(), APU, [with_it()], True),
        ("a line", apu(**with_vm(104, "hostpci1: c6:00.1,romfile=b.rom")), APU, [], False),
        ("the slot", apu(**with_vm(104, "hostpci0: 0000:c6:00,pcie=1")), APU, [], False),
        ("in the group", apu(together=True), ALL_ALLOWED, [], True),
        ("bound", apu(cmdline=cmdline("quiet", f"quiet {BOUND}", "quiet")), APU, [], True),
    ],
)
def test_of_a_card_only_what_a_guest_gets_is_bound(
    case: str, facts: HostFacts, host: Host, vms: list[Vm], bound: bool
) -> None:
    """The sound, which a mapping of the graphics doesn't offer: a VM gets it, it is in the group of what goes, or was bound before. What a VM has by
    a line of its owner's, who may add or drop one at any time, Proxmox VE binds at its start.
    """
    want = plan.wanted(facts, host, vms)
    assert want.functions == {"0000:c6:00.0": "1002:1900", **({"0000:c6:00.1": "1002:1640"} if bound else {})}
    assert ("0000:c6:00.1" in want.vfio_words) is bound
    # What is proved, and given values in sysfs, is that, too.
    assert {one["address"] for one in want.gpus["igpu"]["functions"]} == set(want.functions)


def test_a_function_that_stays_is_no_drift_and_no_mistake_of_a_boot() -> None:
    facts, running = apu(), plan.wanted(apu(), APU).words
    devices = [
        replace(one, driver="vfio-pci" if one.address.endswith("6:00.0") else one.driver) for one in facts.devices
    ]
    facts = replace(facts, devices=devices, cmdline=replace(facts.cmdline, running=running, configured=running))
    want = plan.wanted(facts, APU)
    assert not [error for error in plan.verify(facts, APU, want) if "0000:c6:00.1" in error.found]
    assert "0000:c6:00.1 [1002:1640] snd_hda_intel -> snd_hda_intel" in lines_of(facts, APU)


def test_another_function_of_the_slot_is_a_group_member_like_any_other() -> None:
    (found,) = reasons(apu(together=True), APU)
    for said in (
        "0000:c6:00.2 security processor",
        "0000:c6:00.3 USB controller",
        "0000:c6:00.5 audio coprocessor",
        "0000:c6:00.6 audio device [1022:15e3]",
    ):
        assert said in found
    assert "c6:00.0" not in found and "c6:00.1 " not in found
    assert reasons(apu(together=True), ALL_ALLOWED) == []
    # What may go along goes at a VM's start; it is not bound at boot.
    assert list(plan.wanted(apu(together=True), ALL_ALLOWED).functions) == ["0000:c6:00.0", "0000:c6:00.1"]


SLOT = "0000:01:00"


RTX = ("0", "10de:1e04", "030000")


@rows(
    ("slot", "own"),
    [
        # An RTX 20 with its USB-C socket.
        ([RTX, ("1", "10de:10f9", "040300"), ("2", "10de:1ada", "0c0330"), ("3", "10de:1adb", "0c8000")], "0123"),
        # The same functions, made by somebody else.
        ([RTX, ("1", "10de:10f9", "040300"), ("2", "1b21:2142", "0c0330"), ("3", "1022:1adb", "0c8000")], "01"),
        # What NVIDIA's chipsets had besides graphics.
        ([RTX, ("1", "10de:0e08", "040300"), ("2", "10de:0ab8", "010601"), ("3", "10de:0ab0", "020000")], "01"),
        ([RTX, ("1", "10de:2330", "030200")], "01"),
        ([RTX, ("1", "8086:293e", "040300")], "01"),
        ([RTX, ("6", "8086:293e", "040300")], "0"),
        ([RTX], "0"),
        # A Radeon's USB socket, and sound before the graphics.
        ([("0", "1002:73bf", "030000"), ("1", "1002:ab28", "040300"), ("2", "1002:73a6", "0c0330")], "01"),
        ([("0", "8086:293e", "040300"), ("1", "10de:1e04", "030000")], "1"),
    ],
)
def test_a_card_is_its_graphics_function_and_the_companions_that_are_its_own(
    slot: list[tuple[str, str, str]], own: str
) -> None:
    facts = desktop(devices=[device(f"{SLOT}.{number}", ids, code, 16) for number, ids, code in slot])
    assert "".join(one.address[-1] for one in facts.functions(SLOT)) == own
    whole = len(own) == len(slot)
    assert facts.path_of(SLOT) == (SLOT if whole else ";".join(f"{SLOT}.{number}" for number in own))


@pytest.mark.parametrize("code", ["030000", "030200", "038000", "120000"])
def test_a_3d_controller_and_an_accelerator_are_cards_too(code: str) -> None:
    facts = desktop(device("0000:41:00.0", "10de:2330", code, 30))
    for chosen in ({"match": "10de:2330"}, {"address": "41:00"}, {"address": "41:00.0"}):
        assert gates.check(facts, settings({"h100": chosen})) == ({"h100": "0000:41:00"}, [])


@pytest.mark.parametrize("chosen", [{"match": "10de:22e8"}, {"address": "01:00.1"}])
def test_a_card_isnt_named_by_its_audio_function(chosen: dict[str, str]) -> None:
    (error,) = gates.check(desktop(), settings({"gpu": chosen}))[1]
    assert error.found.startswith("graphics cards here: RTX 5090 [10de:2b85] at 0000:01:00")


# -- a card's own switch ----------------------------------------------------------------------------------------------
def arc(*more: dict[str, Any], maker: str = "8086", domain: str = "0000", **changes: Any) -> HostFacts:
    """An Arc B580 behind its own switch, and a chipset's switch above it; ids and groups as a Proxmox VE 9.1 host lists them."""
    switch = f"{domain}:00:01.1/{domain}:01:00.0"
    devices = [
        device(f"{domain}:00:01.1", "1022:14db", "060400", 1, acs=True),
        device(f"{domain}:01:00.0", f"{maker}:e2ff", "060400", 11, parent=f"{domain}:00:01.1"),
        device(f"{domain}:02:01.0", f"{maker}:e2f0", "060400", 12, parent=switch),
        device(f"{domain}:02:02.0", f"{maker}:e2f1", "060400", 13, parent=switch),
        device(f"{domain}:03:00.0", "8086:e212", "030000", 14, parent=f"{switch}/{domain}:02:01.0"),
        device(f"{domain}:04:00.0", "8086:e2f7", "040300", 15, parent=f"{switch}/{domain}:02:02.0"),
    ]
    return desktop(devices=[*devices, *more], **changes)


ARC = settings({"arc": {"match": "8086:e212"}})


@pytest.mark.parametrize("domain", ["0000", "10000"])
def test_audio_on_a_bus_of_its_own_behind_the_cards_switch_is_the_cards(domain: str) -> None:
    facts = arc(domain=domain)
    want = plan.wanted(facts, ARC)
    assert [one.address for one in facts.functions(f"{domain}:03:00")] == [f"{domain}:03:00.0", f"{domain}:04:00.0"]
    assert want.gpus["arc"]["path"] == f"{domain}:03:00.0;{domain}:04:00.0"
    assert facts.place_of(f"{domain}:04:00.0") == facts.place_of(f"{domain}:04:00") == f"{domain}:03:00"
    assert entry_of("arc", found_of(facts, ARC))["path"] == f"{domain}:03:00.0"


SWITCH = "0000:00:01.1/0000:01:00.0"


@rows(
    "facts",
    [
        # The switch is the board's, another maker's.
        arc(maker="1022"),
        # Something else hangs behind it: it is no card's own.
        arc(device("0000:05:00.0", "8086:125b", "020000", 18, parent=f"{SWITCH}/0000:02:03.0")),
        arc(device("0000:05:00.0", "1b21:1142", "040300", 18, parent=f"{SWITCH}/0000:02:03.0")),
        arc(device("0000:05:00.0", "8086:e212", "030000", 18, parent=f"{SWITCH}/0000:02:03.0")),
        # The bridge isn't in the reading: it went away between two looks.
        replace(arc(), devices=[one for one in arc().devices if one.address[5:7] not in ("01", "02")]),
    ],
)
def test_audio_behind_anything_else_stays_with_the_host(facts: HostFacts) -> None:
    assert [one.address for one in facts.functions("0000:03:00")] == ["0000:03:00.0"]
    assert facts.place_of("0000:04:00.0") == "0000:04:00"


def test_audio_behind_the_same_root_port_alone_isnt_the_cards() -> None:
    root = device("0000:00:1c.0", "8086:7a38", "060400", 1)
    card = device("0000:03:00.0", "8086:56a6", "030000", 2, parent="0000:00:1c.0")
    audio = device("0000:03:01.0", "8086:4f92", "040300", 3, parent="0000:00:1c.0")
    assert [one.address for one in desktop(devices=[root, card, audio]).functions("0000:03:00")] == ["0000:03:00.0"]


# -- functions that the settings name ---------------------------------------------------------------------------------
def named(*functions: str, **changes: Any) -> Host:
    return settings({"igpu": {"match": "1002:1900", "allowConsole": True, "functions": list(functions), **changes}})


def test_the_settings_may_say_which_functions_are_the_card() -> None:
    host = named(*(f"0000:c6:00.{number}" for number in (6, 0, 2)))
    facts = resolving.choosing(apu(), host.gpus)
    want = plan.wanted(facts, host)
    assert list(want.functions) == ["0000:c6:00.0", "0000:c6:00.2", "0000:c6:00.6"]
    assert want.gpus["igpu"]["path"] == "0000:c6:00.0;0000:c6:00.2;0000:c6:00.6"
    # What isn't named stays, and is a member of the group like any other.
    (found,) = reasons(resolving.choosing(apu(together=True), host.gpus), host)
    assert "0000:c6:00.1 audio device" in found and "0000:c6:00.2" not in found


def test_without_a_list_the_reading_is_as_it_was() -> None:
    assert resolving.choosing(apu(), APU.gpus) == apu()


def test_a_named_usb_controller_that_carries_the_root_still_doesnt_go() -> None:
    host = named("0000:c6:00.0", "0000:c6:00.3")
    facts = resolving.choosing(apu(vital=[vital("storage", ROOT, "0000:c6:00.3")]), host.gpus)
    (found,) = reasons(facts, host)
    assert "0000:c6:00.3 USB controller" in found and "carries" in found


@pytest.mark.parametrize(
    ("functions", "found"),
    [
        (["0000:c6:00.1"], "the graphics function, 0000:c6:00.0, is not among them"),
        (["0000:c6:00.0", "0000:c6:00.7"], "0000:c6:00.7 is not there, or neither in the card's slot"),
        (["0000:c6:00.0", "0000:02:00.0"], "0000:02:00.0 is not there, or neither in the card's slot"),
        (["0000:c6:00.0", "0000:00:08.1"], "0000:00:08.1 is not there, or neither in the card's slot"),
    ],
)
def test_only_functions_of_the_card_can_be_named(functions: list[str], found: str) -> None:
    host = named(*functions)
    nvme = device("0000:02:00.0", "144d:a80c", "010802", 30)
    facts = apu()
    facts = replace(facts, devices=[*facts.devices, desktop(devices=[nvme]).devices[0]])
    facts = resolving.choosing(facts, host.gpus)
    assert any(found in reason for reason in reasons(facts, host))
    # Nothing foreign is a function of the card, for whoever asks without the gate.
    assert {one.slot for one in facts.functions("0000:c6:00")} == {"0000:c6:00"}
    # Nor a bridge of the card's own switch.
    gpus = {"arc": {"match": "8086:e212", "functions": ["0000:03:00.0", "0000:02:01.0"]}}
    (reason,) = reasons(resolving.choosing(arc(), settings(gpus).gpus), settings(gpus))
    assert "neither in the card's slot" in reason


def test_a_virtual_function_or_a_bridge_in_the_cards_slot_cant_be_named() -> None:
    facts = with_one()
    bridge = device("0000:41:00.2", "8086:46a7", "060400", 30)
    facts = replace(facts, devices=[*facts.devices, desktop(devices=[bridge]).devices[0]])
    for other in ("0000:41:00.1", "0000:41:00.2"):
        host = settings({"gpu": {"address": "41:00", "functions": ["0000:41:00.0", other]}})
        chosen = resolving.choosing(facts, host.gpus)
        (error,) = resolving.resolve(chosen, host.gpus)[1]
        assert other in error.found and error.next.startswith("name functions of 0000:41:00.0, the graphics")
        assert [one.address for one in chosen.functions("0000:41:00")] == ["0000:41:00.0"]


def test_the_graphics_function_is_named_wherever_it_is_in_the_slot() -> None:
    devices = [device("0000:41:00.0", "1002:145a", "130000"), device("0000:41:00.1", "1002:1900", "030000")]
    host = settings({"gpu": {"address": "41:00", "functions": ["0000:41:00.0"]}})
    (error,) = resolving.resolve(desktop(*devices), host.gpus)[1]
    assert error.found == "the graphics function, 0000:41:00.1, is not among them"
    both = {"igpu": {"address": "41:00", "functions": ["0000:41:00.0", "0000:41:00.1"]}}
    host, third = settings(both), device("0000:41:00.2", "1022:15b9", "0c0330")
    facts = resolving.choosing(desktop(*devices, third), host.gpus)
    # The first one of the path is what a mapping offers.
    assert facts.path_of("0000:41:00") == "0000:41:00.1;0000:41:00.0"
    assert "its mapping offers 0000:41:00.1 alone" in "".join(card_remarks.remarks(facts, host, {"igpu": "0000:41:00"}))


# -- SR-IOV -----------------------------------------------------------------------------------------------------------
def split(vfs: int = 2) -> HostFacts:
    """An accelerator with virtual functions in its own slot."""
    virtual = [
        device(f"0000:41:00.{4 + number}", "10de:26b9", "030200", 31 + number, physfn="0000:41:00.0")
        for number in range(vfs)
    ]
    return desktop(device("0000:41:00.0", "10de:26b9", "030200", 30, vfs=vfs), *virtual)


def test_a_virtual_function_is_a_card_of_its_own_that_nothing_binds_at_boot() -> None:
    host = settings({"vf4": {"address": "41:00.4"}, "vf5": {"address": "41:00.5"}})
    want = plan.wanted(split(), host)
    assert want.functions == {} and want.vfio_words == "" and "iommu=pt" in want.iommu_words
    assert [want.gpus[name]["path"] for name in ("vf4", "vf5")] == ["0000:41:00.4", "0000:41:00.5"]
    entry = entry_of("vf5", found_of(split(), host))
    assert (entry["path"], entry["iommugroup"]) == ("0000:41:00.5", "32")
    assert "gpus.vf4 is a virtual function of 0000:41:00.0: Proxmox VE binds it when its VM starts" in lines_of(
        split(), host
    )
    assert split().place_of("0000:41:00.4") == "0000:41:00.4"
    assert "0000:41:00.4" not in [one.address for one in split().display_devices]


def test_of_a_slot_full_of_virtual_functions_an_address_names_one() -> None:
    virtual = [
        device(f"0000:41:01.{number}", "8086:56c0", "038000", 40 + number, physfn="0000:41:00.0") for number in range(8)
    ]
    owner = device("0000:41:00.0", "8086:56c0", "038000", 30, vfs=8, driver="xe")
    host = settings({"first": {"address": "41:01.0"}, "last": {"address": "0000:41:01.7"}})
    assert gates.check(desktop(owner, *virtual), host) == ({"first": "0000:41:01.0", "last": "0000:41:01.7"}, [])
    # By its id alone the card is meant, not one of its virtual functions.
    (found,) = reasons(desktop(owner, *virtual), settings({"gpu": {"match": "8086:56c0"}}))
    assert "has 8 virtual functions (SR-IOV)" in found
    # A slot alone names its first one, which isn't there.
    (found,) = reasons(desktop(owner, *virtual[1:]), settings({"gpu": {"address": "41:01", "match": "8086:56c0"}}))
    assert found.startswith("graphics cards here: ")


def with_one(**changes: Any) -> HostFacts:
    owner = device("0000:41:00.0", "8086:46a6", "030000", 30, vfs=1, driver="i915")
    one = device("0000:41:00.1", "8086:46a6", "030000", changes.pop("group", 31), physfn="0000:41:00.0")
    return desktop(owner, one, **changes)


ONE = {"address": "41:00.1"}


@rows(
    ("facts", "chosen", "found"),
    [
        (with_one(group=30), ONE, "it shares its IOMMU group with 0000:41:00.0 graphics card [8086:46a6]"),
        (with_one(), {**ONE, "functions": ["0000:41:00.0"]}, "neither in the card's slot"),
    ],
)  # fmt: skip
def test_a_virtual_function_that_cant_be_given_is_refused(facts: HostFacts, chosen: dict[str, Any], found: str) -> None:
    host = settings({"gpu": chosen})
    errors = gates.check(resolving.choosing(facts, host.gpus), host)[1]
    (error,) = (error for error in errors if found in error.found)
    assert ("name functions of a card" in error.next) is ("functions" in chosen)


# -- cards that are divided -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("way", "said"), [("vgpu", "NVIDIA's vGPU driver"), ("mdev", "mediated devices")])
def test_a_card_that_is_divided_among_guests_is_left_as_it_is(way: str, said: str) -> None:
    facts = desktop(card_states={"0000:01:00.0": {"divided": way}})
    (found,) = reasons(facts, settings())
    assert found.startswith("0000:01:00.0 is set up for") and said in found
    assert reasons(facts, settings({"gpu": {"match": "10de:2b85", "use": "host"}})) == []


@pytest.mark.parametrize("sign", [{"modules": ["nvidia", "nvidia_vgpu_vfio"]}, {"vgpu_manager": True}])
def test_no_driver_is_installed_over_nvidias_vgpu_driver(sign: dict[str, Any]) -> None:
    gpus = {"gpu": {"match": "10de:2b85", "use": "host"}}
    (found,) = reasons(desktop(**sign), settings(gpus, nvidia={"driver": "580"}))
    assert found.startswith("NVIDIA's vGPU driver: ")
    # Containers, or the host, are given the card all the same, and are told what it is good for there.
    (told,) = card_remarks.remarks(desktop(**sign), settings(gpus), {"gpu": "0000:01:00"})
    assert "CUDA doesn't" in told and card_remarks.remarks(desktop(), settings(gpus), {"gpu": "0000:01:00"}) == []
    assert (
        reasons(desktop(**sign), settings(gpus))
        == reasons(desktop(modules=["nvidia"]), settings(gpus, nvidia={"driver": "580"}))
        == []
    )


@pytest.mark.parametrize("chosen", [{"address": "41:00"}, {"address": "41:00.0"}, {"match": "10de:26b9"}])
def test_a_card_with_virtual_functions_isnt_taken(chosen: dict[str, str]) -> None:
    (found,) = reasons(split(), settings({"gpu": chosen}))
    assert found == "0000:41:00.0 graphics card [10de:26b9] has 2 virtual functions (SR-IOV)"
    assert reasons(split(), settings({"gpu": {**chosen, "use": "host"}})) == []


def test_a_card_that_could_have_virtual_functions_and_has_none_is_taken() -> None:
    want = plan.wanted(split(vfs=0), settings({"gpu": {"match": "10de:26b9"}}))
    assert want.functions == {"0000:41:00.0": "10de:26b9"}


# -- groups -----------------------------------------------------------------------------------------------------------
def test_a_card_that_the_iommu_leaves_out_is_refused() -> None:
    left_out = desktop(
        device("0000:00:02.0", "8086:3e92", "030000", None),
        cmdline=cmdline("intel_iommu=on,igfx_off", ""),
    )
    host = settings({"igpu": {"match": "8086:3e92"}})
    (error,) = gates.check(left_out, host)[1]
    assert error.found == (
        "the host has 21 groups, and in none of them is 0000:00:02.0 graphics card [8086:3e92]; "
        "the kernel was started with intel_iommu=on,igfx_off"
    )
    assert error.next.startswith("take igfx_off out")
    # Before there are groups it is not known; the gate is asked again after the reboot.
    off = {"iommu": {"tables": ["DMAR"], "groups": 0, "kernel_log": ""}, "cpu_vendor": "GenuineIntel"}
    assert gates.check(desktop(device("0000:00:02.0", "8086:3e92", "030000", None), **off), host)[1] == []
    assert group_gates.grouped in gates.VERIFIED
    (error,) = gates.check(desktop(device("0000:00:02.0", "8086:3e92", "030000", None)), host)[1]
    assert "started with" not in error.found and error.next.startswith("look for it in `dmesg")


def lines_of(facts: HostFacts, host: Host) -> str:
    want, told = plan.wanted(facts, host), judge.judge_host(facts, host).remarks
    return plan.describe("pve", facts, host, want, plan.PlannedReboot("no", "1"), remarks=told)


def test_a_group_is_said_of_each_function() -> None:
    text = lines_of(apu(), APU)
    assert "0000:c6:00.0: IOMMU group 17, with it: nothing else" in text
    assert "0000:c6:00.1: IOMMU group 18, with it: nothing else" in text
    assert "note: gpus.igpu: in the same slot, but left with the host: 0000:c6:00.2 security processor" in text
    assert "left with the host: " not in lines_of(apu(together=True), ALL_ALLOWED)


@pytest.mark.parametrize(
    ("lines", "left", "offered"),
    [
        ("hostpci0: c6:00.0,romfile=a.rom\nhostpci1: c6:00.1,romfile=b.rom\n", True, False),
        ("hostpci0: c6:00.0\nhostpci1: c6:00.2\n", False, True),
        ("hostpci0: c6:00\n", True, True),  # it has all of them by the option that a mapping takes the place of
        ("hostpci0: mapping=igpu\n", True, True),
    ],
)
def test_what_a_vm_has_by_a_line_of_its_own_isnt_left_with_the_host(lines: str, left: bool, offered: bool) -> None:
    text = lines_of(apu(**with_vm(104, lines)), APU)
    assert ("left with the host: 0000:c6:00.2" in text) is left
    assert "0000:c6:00.3" in text.partition("left with the host: ")[2]
    assert ("go with byAddress" in text) is offered


@rows(
    ("part", "place", "path"),
    [
        ("0000:c6:00", "0000:c6:00", "0000:c6:00.0;0000:c6:00.1"),
        ("0000:c6:00.1", "0000:c6:00", "0000:c6:00.0;0000:c6:00.1"),
        ("0000:c6:00.3", "0000:c6:00.3", "0000:c6:00.3"),
        ("0000:99:00", "0000:99:00", "0000:99:00"),  # nothing is there
        ("0000:99:00.1", "0000:99:00", "0000:99:00"),
    ],
)
def test_a_function_is_placed_in_its_card_or_stands_for_itself(part: str, place: str, path: str) -> None:
    assert apu().place_of(part) == place and apu().path_of(place) == path


def test_a_card_without_a_render_node_has_one_node() -> None:
    assert desktop(drm={"0000:0b:00.0": {"card": "card0", "render": ""}}).drm_nodes("0000:0b:00.0") == [
        "/dev/dri/card0"
    ]


def test_where_a_mapping_offers_a_part_of_a_card_alone_the_other_way_is_said() -> None:
    (remark,) = (one for one in said(apu(), APU) if "mapping" in one)
    assert "offers 0000:c6:00.0 alone" in remark and "0000:c6:00.0, 0000:c6:00.1" in remark
    assert "mapping" not in "".join(said(desktop(), settings()))


def without_groups(*more: dict[str, Any]) -> HostFacts:
    devices = [
        device("0000:00:01.0", "8086:1901", "060400"),
        *gpu(group=None, parent="0000:00:01.0"),
        *more,
    ]
    return desktop(devices=devices, iommu={"tables": ["IVRS"], "groups": 0, "kernel_log": ""})


def test_a_predicted_group_is_said_to_be_one_and_bridges_arent_in_it() -> None:
    text = lines_of(without_groups(), settings())
    assert "IOMMU group none yet; predicted with it: nothing else" in text and "class 06" not in text
    nvme = device("0000:01:00.2", "144d:a80c", "010802", parent="0000:00:01.0")
    (error,) = gates.check(without_groups(nvme), settings())[1]
    assert error.found == "it shares its predicted IOMMU group with 0000:01:00.2 NVMe disk [144d:a80c]"


def test_a_member_is_named_as_lspci_does_where_it_was_asked() -> None:
    shown = (
        "0000:06:00.0 Ethernet controller [0200]: Intel Corporation Ethernet Controller I226-V [8086:125c] (rev 04)\n"
    )
    facts = desktop(device("0000:06:00.0", "8086:125c", "020000", 16), lspci=shown)
    assert "network card [Intel Corporation Ethernet Controller I226-V, 8086:125c]" in reasons(facts, settings())[0]


def two_in_one_group(
    *configs: dict[str, Any], running: tuple[int, ...] = (103,), mappings: str = "", **changes: Any
) -> tuple[HostFacts, Host]:
    """Two cards, each of which may go along with the other one, and guests."""
    guests = {"configs": [*configs], "running": running, "mappings": mappings}
    facts = desktop(*gpu("0000:02:00", 16), guests=guests, **changes)
    members = {"one": ["0000:02:00.0", "0000:02:00.1"], "two": ["0000:01:00.0", "0000:01:00.1"]}
    places = {"one": "01:00", "two": "02:00"}
    host = settings({name: {"address": places[name], "allowGroupMembers": members[name]} for name in members})
    return facts, host


def vm(vmid: int, *gpus: str) -> Vm:
    return Vm.model_validate({"host": "pve", "vmid": vmid, "gpus": list(gpus)})


def vm_errors(facts: HostFacts, host: Host, vms: dict[str, Vm]) -> list[str]:
    return [str(error) for error in told(facts, host, vms)[1]]


def test_two_cards_of_one_group_go_to_one_vm_or_none() -> None:
    facts, host = two_in_one_group(
        conf("vm", 103, "machine: q35\nname: one"), conf("vm", 104, "machine: q35\nname: two")
    )
    apart = vm_errors(facts, host, {"one": vm(103, "one"), "two": vm(104, "two")})
    assert len(apart) == 1
    assert "one (RTX 5090 [10de:2b85] at 0000:01:00) for VM 103 (vms.one) while VM 104 (vms.two) has two" in apart[0]
    assert vm_errors(facts, host, {"one": vm(103, "one", "two")}) == []
    groups = [replace(one, group=18) if one.slot == "0000:02:00" else one for one in facts.devices]
    assert vm_errors(replace(facts, devices=groups), host, {"one": vm(103, "one"), "two": vm(104, "two")}) == []


MAPPING = "one\n\tmap id=10de:2b85,node=pve,path=0000:01:00\n"
GIVEN = "machine: q35\nsmbios1: uuid=1\nname: two\nhostpci0: mapping=one,pcie=1"
BY_HAND = {"originals": {"hostpci0": "0000:01:00,pcie=1"}}


def moved(ledger: dict[str, str], *more: str, runs: bool = True, **changes: Any) -> tuple[str, list[str]]:
    """The plan's lines and refusals where the settings give VM 103 the card that VM 104 has."""
    configs = conf("vm", 103, "machine: q35\nname: one"), conf("vm", 104, "\n".join([GIVEN, *more]))
    facts, host = two_in_one_group(*configs, running=(104,) * runs, mappings=MAPPING, ledger=ledger)
    wanted = {"one": vm(103, "one").model_copy(update=changes)}
    text, errors = told(facts, host, wanted, stack="p/s")
    return text, [error.found for error in errors]


@rows(
    ("ledger", "is_taken"),
    [
        (vm_note(104, GIVEN, "hostpci0"), True),
        (vm_note(104, GIVEN, "hostpci0", owner="p/other/two"), False),
        (vm_note(104, GIVEN.replace("uuid=1", "uuid=2"), "hostpci0"), False),
        (vm_note(104, GIVEN, "hostpci0", **BY_HAND, devices={"0000:01:00.0": "10de:2b85"}), False),
        (vm_note(104, GIVEN, "machine"), False),
        ({"qemu-104": "{"}, False),
        ({}, False),
    ],
    ids=["given", "by another stack", "to an earlier VM", "and by its owner before", "another option", "unreadable", "by its owner"],
)  # fmt: skip
def test_a_card_is_taken_from_a_vm_that_has_it_from_this_stack_alone(ledger: dict[str, str], is_taken: bool) -> None:
    assert moved(ledger)[1] == ["VM 104 (two) runs with it"] * (not is_taken)
    assert moved(ledger, runs=False)[1] == []
    new = NewVm.model_validate({"scsi0": "local:8"})
    assert moved(ledger, vmid=105, create=new)[1] == ["VM 104 (two) runs with it"] * (not is_taken)


def test_a_vm_that_stays_as_it_is_may_be_off_while_another_one_runs_with_its_card() -> None:
    ledger = vm_note(104, GIVEN, "hostpci0", owner="p/other/two") | vm_note(103, GIVEN, "hostpci0")
    for lines, refused in ((GIVEN, False), ("machine: q35", True)):
        configs = conf("vm", 103, lines), conf("vm", 104, GIVEN)
        facts, host = two_in_one_group(*configs, running=(104,), mappings=MAPPING, ledger=ledger)
        assert bool(vm_errors(facts, host, {"one": vm(103, "one")})) is refused


def test_a_vm_that_leaves_the_settings_is_told_what_becomes_of_it() -> None:
    text, _ = moved(vm_note(104, GIVEN, "hostpci0", "machine", originals={"hostpci0": None, "machine": "pc"}))
    assert text.splitlines()[-6:-3] == [
        "  VM 104 (two), running: it is shut down and started again",
        "    hostpci0: mapping=one,pcie=1 -> not there",
        "    machine: q35 -> pc",
    ]
    assert "vms.sandbox isn't in the settings any more: the VM has back what it was before" in text
    assert "VM 104" not in moved(vm_note(104, GIVEN, "hostpci0", owner="p/other/sandbox"))[0]


@rows(
    ("waits", "others"),
    [
        ("memory: 4096", "memory"),
        ("cores: *\ndelete: onboot,cpu", "onboot, cpu, cores"),
        ("hostpci0: mapping=one,pcie=1", ""),  # this program's own
        ("balloon: 1024", ""),  # what it sets itself
        ("cipassword: **********", ""),
    ],
)
def test_what_others_left_waiting_is_carried_out_by_a_change_and_is_told(waits: str, others: str) -> None:
    lines = "machine: q35\nonboot: 1\nmemory: 2048\nballoon: 512\nname: one"
    ledger = vm_note(
        103, f"{lines}\nvga: none\nhostpci0: mapping=one,pcie=1", "vga", "hostpci0", originals={"vga": "std"}
    )
    text = f"{lines}\nvga: none\n[PENDING]\n{waits}"
    wanted = {"one": vm(103, "one", "two")}
    for running in ((103,), ()):
        facts, host = two_in_one_group(conf("vm", 103, text), running=running, ledger=ledger)
        said, errors = told(facts, host, wanted, stack="p/s")
        assert (f"left waiting for its next start: {others}\n" in said) is bool(others)
        assert errors == []


def test_a_run_that_was_cut_short_is_gone_on_with() -> None:
    left: dict[str, Any] = {"before": {"hostpci0": None}}
    lines = "machine: q35\nhostpci0: mapping=one,pcie=1"
    for more, is_said in ((left, True), ({}, False)):
        facts, host = two_in_one_group(conf("vm", 103, lines), ledger=vm_note(103, lines, "hostpci0", **more))
        text, _ = told(facts, host, {"one": vm(103, "one")})
        assert ("    the last run didn't finish with it" in text) is is_said


def test_a_vm_to_be_adopted_that_isnt_there_is_refused_with_those_that_are() -> None:
    facts, host = two_in_one_group(conf("vm", 103, "machine: q35\nname: one"), conf("lxc", 901, "hostname: ai"))
    (error,) = vm_errors(facts, host, {"one": vm(107, "one")})
    assert "no such VM on the host; there are: 103 (one)" in error and "or take vms.one out of the settings" in error
    (error,) = vm_errors(facts, host, {"one": vm(901, "one")})
    assert "901 is a container (ai)" in error and "describe the container under homelab:containers" in error


@pytest.mark.parametrize(("of", "is_asked"), [("1", False), ("2", True)])
def test_what_is_noted_of_an_earlier_vm_of_the_same_id_says_nothing_of_this_one(of: str, is_asked: bool) -> None:
    lines = "machine: q35\nsmbios1: uuid=1\nhostpci0: 0000:01:00,pcie=1"
    facts, host = two_in_one_group(conf("vm", 103, lines), ledger=vm_note(103, lines, "hostpci0", identity=of))
    assert len(vm_errors(facts, host, {"one": vm(103, "one")})) == is_asked


def test_the_plan_shows_a_vms_configuration_before_and_after() -> None:
    facts, host = two_in_one_group(conf("vm", 103, "machine: q35\nname: one\nballoon: 1024\nmemory: 4096"))
    lines = told(facts, host, {"one": vm(103, "one", "two")})[0].splitlines()
    assert lines[1:5] == [
        "    balloon: 1024 -> 0",
        "    hostpci0: not there -> mapping=one,pcie=1",
        "    hostpci1: not there -> mapping=two,pcie=1",
        "    to back it up first: `vzdump 103` on the host",
    ]


HAS_ONE = "machine: q35\nsmbios1: uuid=1\nname: one\nhostpci0: mapping=one,pcie=1"


@rows(
    ("gpus", "power", "runs", "said"),
    [
        (["one"], "keep", True, "running: no change"),
        ([], "keep", True, "running: it is shut down and started again"),
        ([], "keep", False, "off: its options change"),
        ([], "stopped", True, "running: it is shut down"),
        (["one"], "stopped", True, "running: it is shut down"),
        (["one"], "running", False, "off: it is started"),
    ],
)
def test_the_plan_says_what_becomes_of_a_vm_that_has_a_card(gpus: list[str], power: str, runs: bool, said: str) -> None:
    facts, host = two_in_one_group(
        conf("vm", 103, HAS_ONE), running=(103,) * runs, ledger=vm_note(103, HAS_ONE, "hostpci0")
    )
    wanted = vm(103, *gpus).model_copy(update={"power": power})
    text = told(facts, host, {"one": wanted})[0]
    assert text.splitlines()[0] == f"  VM 103 (one), {said}"
    assert ("    hostpci0: mapping=one,pcie=1 -> not there" in text) == (not gpus)


@rows(
    ("gpus", "power", "state", "refused"),
    [
        ([], "keep", "started", True),
        (["one"], "keep", "started", False),
        (["one"], "stopped", "disabled", True),
        (None, "keep", "started", True),
        (None, "keep", "ignored", False),
    ],
)
def test_a_vm_under_ha_that_would_change_is_refused(
    gpus: list[str] | None, power: str, state: str, refused: bool
) -> None:
    """`gpus` of None: it isn't in the settings any more."""
    ha = {"ha": {"resources": f"vm: 103\n\tstate {state}\n"}}
    facts, host = two_in_one_group(conf("vm", 103, HAS_ONE), cluster=ha, ledger=vm_note(103, HAS_ONE, "hostpci0"))
    wanted = {} if gpus is None else {"one": vm(103, *gpus).model_copy(update={"power": power})}
    errors = told(facts, host, wanted, stack="p/s")[1]
    assert [error.found for error in errors] == [f"HA manages it ({state})"] * refused


def test_a_card_that_stays_isnt_in_the_group_of_one_that_goes() -> None:
    facts, _ = two_in_one_group()
    members = ["0000:02:00.0", "0000:02:00.1"]
    host = settings({"aa": {"address": "01:00", "allowGroupMembers": members}, "b": {"address": "02:00", "use": "lxc"}})
    assert reasons(facts, host) == ["both are in one IOMMU group"]
    both = settings({"aa": {"address": "01:00", "use": "lxc"}, "b": {"address": "02:00", "use": "lxc"}})
    assert reasons(facts, both) == []


def test_a_member_of_the_group_is_neither_the_console_nor_a_containers_card() -> None:
    facts, _ = two_in_one_group(conf("lxc", 950, "dev0: /dev/nvidia1"), nvidia_minors={"0000:02:00.0": 1})
    facts = replace(facts, devices=[replace(one, boot_vga=one.address == "0000:02:00.0") for one in facts.devices])
    host = settings({"aa": {"address": "01:00", "allowGroupMembers": ["0000:02:00.0", "0000:02:00.1"]}})
    assert reasons(facts, host) == [
        "containers that use it: 950",
        "the host's screen is 0000:02:00.0 graphics card [RTX 5090, 10de:2b85], of the card or its IOMMU group (boot_vga)",
    ]


def test_a_vm_on_another_node_is_refused_with_its_place() -> None:
    host = settings()
    places = "pve/qemu-server/104.conf\nfar/qemu-server/103.conf\nfar/lxc/104.conf"
    facts = desktop(cluster={"node": "pve", "name": "home", "places": places})
    (error,) = vm_errors(facts, host, {"sandbox": vm(103, "rtx5090")})
    assert "VM 103 is on the node far, not on pve" in error and "qm migrate 103 pve" in error


# -- what the host can't do without -----------------------------------------------------------------------------------
def vital(kind: str, name: str, *devices: str, trouble: str = "") -> dict[str, Any]:
    return {"kind": kind, "name": name, "devices": list(devices), "trouble": trouble}


ROOT = "/ (ext4 on /dev/mapper/pve-root)"


def test_no_setting_lets_the_root_disk_behind_a_group_member_go() -> None:
    facts = apu(together=True, vital=[vital("storage", ROOT, "0000:00:08.1", "0000:c6:00.3")])
    (found,) = reasons(facts, ALL_ALLOWED)
    assert found == f"of the card, or in its IOMMU group: 0000:c6:00.3 USB controller [1022:15b9] carries {ROOT}"
    # In a group of its own it is left alone: nothing to refuse.
    assert reasons(apu(vital=asdict(facts)["vital"]), APU) == []


def test_where_the_group_is_only_predicted_there_is_a_way_to_know_it() -> None:
    nvme = device("0000:01:00.2", "144d:a80c", "010802", parent="0000:00:01.0")
    host = settings({"gpu": {"match": "10de:2b85", "allowGroupMembers": ["0000:01:00.2"]}})
    facts = replace(without_groups(nvme), vital=desktop(vital=[vital("storage", ROOT, "0000:01:00.2")]).vital)
    (error,) = gates.check(facts, host)[1]
    assert "in its predicted IOMMU group: 0000:01:00.2" in error.found
    assert "iommu.enable: true and without the card first" in error.next
    # With the real group, or for a function of the card itself, there is none.
    nvme = device("0000:01:00.2", "144d:a80c", "010802", 16)
    (error,) = gates.check(desktop(nvme, vital=asdict(facts)["vital"]), host)[1]
    assert "iommu.enable" not in error.next
    usb = device("0000:01:00.2", "10de:1ada", "0c0330", parent="0000:00:01.0")
    (error,) = gates.check(replace(without_groups(usb), vital=facts.vital), settings())[1]
    assert "0000:01:00.2" in error.found and "iommu.enable" not in error.next


def test_nor_one_behind_the_cards_own_usb_socket() -> None:
    usb = device("0000:01:00.2", "10de:1ada", "0c0330", 16, driver="xhci_hcd")
    (found,) = reasons(desktop(usb, vital=[vital("storage", "swap on /dev/sdb2", "0000:01:00.2")]), settings())
    assert found.endswith("0000:01:00.2 USB controller [10de:1ada] carries swap on /dev/sdb2")


def test_nor_the_network_over_which_the_host_is_reached() -> None:
    nic = device("0000:05:00.0", "10ec:8125", "020000", 16, driver="r8169", behind="enp5s0")
    host = settings({"gpu": {"match": "10de:2b85", "allowGroupMembers": ["0000:05:00.0"]}})
    assert reasons(desktop(nic), host) == []
    (found,) = reasons(desktop(nic, vital=[vital("network", "the network (vmbr0)", "0000:05:00.0")]), host)
    assert "carries the network (vmbr0)" in found


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("0c0330", "USB controller"),
        ("080501", "SD card reader"),  # eMMC, too
        ("ff0000", "device without a class"),  # Realtek's card readers (drivers/misc/cardreader/rtsx_pcr.c)
    ],
)
def test_what_may_carry_a_root_that_nobody_can_find_isnt_taken(code: str, kind: str) -> None:
    unknown = [vital("storage", "/", trouble="no block device behind overlay")]
    assert reasons(desktop(vital=unknown), settings()) == []  # a graphics card alone carries no disk
    other = device("0000:06:00.0", "1022:43f4", code, 16)
    host = settings({"gpu": {"match": "10de:2b85", "allowGroupMembers": ["0000:06:00.0"]}})
    (found,) = reasons(desktop(other, vital=unknown), host)
    assert found.endswith(f"isn't known: no block device behind overlay; 0000:06:00.0 {kind} [1022:43f4]")
    assert reasons(desktop(other, vital=[vital("storage", ROOT, "0000:02:00.0")]), host) == []


def test_it_is_looked_at_again_with_the_real_groups() -> None:
    facts = apu(together=True, vital=[vital("storage", ROOT, "0000:c6:00.3")])
    want = plan.wanted(apu(together=True), ALL_ALLOWED)
    assert any(ROOT in error.found for error in plan.verify(facts, ALL_ALLOWED, want))


# -- what is said -----------------------------------------------------------------------------------------------------
def said(facts: HostFacts, host: Host) -> list[str]:
    return card_remarks.remarks(facts, host, gates.check(facts, host)[0])


def test_the_last_keyboard_is_a_warning_and_one_of_two_is_none() -> None:
    usb = device("0000:01:00.2", "10de:1ada", "0c0330", 16)
    behind = vital("keyboard", "Logitech K120", "0000:01:00.2")
    disk = vital("storage", ROOT, "0000:02:00.0")
    assert reasons(desktop(usb, vital=[behind]), settings()) == []
    assert said(desktop(usb, vital=[behind, disk]), settings()) == [
        "the host's last keyboard goes with a card: Logitech K120; its console takes no input then"
    ]
    assert said(desktop(usb, vital=[behind, vital("keyboard", "AT keyboard")]), settings()) == []


def test_who_has_the_card_open_is_named_in_the_plan_and_beside_its_reboot() -> None:
    holders = [
        {"pid": 812, "name": "Xorg", "devices": ["0000:01:00.0"]},
        {"pid": 0, "name": "the text console (fb0)", "devices": ["0000:01:00.0"]},
        {"pid": 900, "name": "other", "devices": ["0000:0b:00.0"]},
    ]
    bound = [one | {"driver": "vfio-pci"} for one in gpu()]
    assert said(desktop(devices=bound, holders=holders), settings()) == []  # a VM runs with it
    text = lines_of(desktop(holders=holders), settings())
    assert "gpus.rtx5090 is in use by Xorg (process 812), the text console (fb0): after the reboot" in text
    assert "other" not in text.partition("note:")[2]


def test_a_card_on_an_external_port_gets_a_remark_and_leaves_the_ids() -> None:
    parent = device("0000:00:01.1", "8086:9a23", "060400", 1, driver="pcieport", removable=True)
    cards = [
        device(f"0000:01:00.{number}", ids, code, 16, driver="vfio-pci", parent="0000:00:01.1")
        for number, ids, code in (("0", "10de:2b85", "030000"), ("1", "10de:22e8", "040300"))
    ]
    facts = desktop(devices=[parent, *cards], vfio_files={"/etc/modprobe.d/vfio.conf": "10de:2b85,10de:22e8"})
    (remark,) = said(facts, settings(takeOver=True))
    assert remark.startswith("gpus.rtx5090 hangs on an external port") and "leaves ids for vfio-pci" in remark
    assert plan.wanted(facts, settings(takeOver=True)).by_hand == ["0000:01:00.0", "0000:01:00.1"]


# -- cards that stay --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("use", ["lxc", "host"])
def test_a_host_that_keeps_its_cards_needs_no_iommu(use: str) -> None:
    off = desktop(iommu={"tables": [], "groups": 0, "kernel_log": ""})
    host = settings({"gpu": {"match": "10de:2b85", "use": use}})
    want = plan.wanted(off, host)
    # Nothing that a reboot would be for: tests/agent/test_reboot_required.py.
    assert (want.words, want.functions) == ("", {})
    asked = settings({"gpu": {"match": "10de:2b85", "use": use}}, iommu={"enable": True})
    assert "no IVRS table" in reasons(off, asked)[0]
    assert plan.wanted(desktop(), asked).iommu_words == "amd_iommu=on iommu=pt"


@pytest.mark.parametrize("gpus", [{}, {"gpu": {"match": "10de:2b85", "use": "lxc"}}])
def test_an_iommu_that_is_on_stays_on_until_somebody_says_otherwise(gpus: dict[str, Any]) -> None:
    """So that a host whose last card comes back isn't rebooted for nothing."""
    words = "amd_iommu=on iommu=pt"
    on = desktop(cmdline=cmdline(words, f"quiet {words}", "quiet"))
    assert plan.wanted(on, settings(gpus)).iommu_words == words
    assert plan.wanted(on, settings(gpus, iommu={"enable": False, "passthrough": False})).iommu_words == ""
    assert plan.wanted(desktop(cmdline=cmdline(words)), settings(gpus)).iommu_words == ""


@rows("use", ["lxc", "host", "shared"])
@rows(
    ("changes", "by"),
    [
        ({"vfio_files": {"/etc/modprobe.d/vfio.conf": "10de:2b85"}}, "/etc/modprobe.d/vfio.conf"),
        (
            {"cmdline": cmdline("", others="vfio-pci.ids=10de:2b85")},
            "vfio-pci.ids=10de:2b85 on the kernel command line",
        ),
        # Each graphics card of NVIDIA's.
        (
            {"vfio_files": {"/etc/modprobe.d/v.conf": "10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff"}},
            "/etc/modprobe.d/v.conf",
        ),
        (
            {"cmdline": cmdline("", others='vfio-pci.ids="10de:2b85,1:2"')},
            'vfio-pci.ids="10de:2b85,1:2" on the kernel command line',
        ),
        ({"vfio_mentions": ["/etc/driverctl.d/pci-0000:01:00.0"]}, "/etc/driverctl.d/pci-0000:01:00.0"),
    ],
)
def test_a_staying_card_bound_by_hand_is_refused_with_what_binds_it(use: str, changes: dict[str, Any], by: str) -> None:
    devices = [device("0000:01:00.0", "10de:2b85", "030000", 16, driver="vfio-pci")]
    facts = desktop(devices=devices, **changes)
    host = settings({"gpu": {"match": "10de:2b85", "use": use}}, nvidia={"driver": "580"})
    assert reasons(facts, host) == [f"0000:01:00.0 on vfio-pci, by {by}"]
    ours = cmdline("homelab.vfio=0000:01:00.0=10de:2b85", "")
    assert reasons(desktop(devices=devices, cmdline=ours), host) == []


def test_nothing_is_promised_of_a_card_that_something_unknown_binds() -> None:
    devices = [device("0000:01:00.0", "10de:2b85", "030000", 16, driver="vfio-pci")]
    facts = desktop(devices=devices, vfio_mentions=["/etc/udev/rules.d/90-vfio.rules"])
    (remark,) = said(facts, settings({"gpu": {"match": "10de:2b85", "use": "lxc"}}))
    assert remark.endswith(
        "on vfio-pci, not by this program, and that stays so: look at /etc/udev/rules.d/90-vfio.rules"
    )
    (remark,) = said(facts, settings({"gpu": {"match": "10de:2b85"}}))
    assert remark.startswith("vfio-pci is also in files of others, left as they are: /etc/udev/rules.d/90-vfio.rules")


# -- names in Proxmox VE ----------------------------------------------------------------------------------------------
@rows(
    ("one", "other", "shared"),
    [
        ("0000:01:00", "0000:01:00.1", True),
        ("01:00.1", "0000:01:00", True),
        ("0000:c6:00.0;0000:c6:00.1", "0000:c6:00", True),
        ("0000:c6:00.0;0000:c6:00.1", "0000:c6:00.3", False),
        ("0000:01:00", "0000:01:00", True),
        ("0000:01:00", "0000:01:01.0", False),
        ("", "0000:01:00", False),
    ],
)
def test_paths_are_compared_by_their_functions(one: str, other: str, shared: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is shared


def found_of(facts: HostFacts, host: Host) -> BootedHost:
    """As HostReboot puts it out."""
    seen: dict[str, DeviceSeen] = {
        one.address: {"id": one.id, "driver": one.driver, "iommuGroup": one.group} for one in facts.devices
    }
    gpus = plan.wanted(facts, host).gpus
    return {"kernel": "", "bootId": "", "iommu": {"groups": 1, "kernelLog": []}, "gpus": cards_seen(gpus, seen)}


def test_a_card_that_is_its_slot_is_mapped_by_it_and_another_by_its_graphics_function() -> None:
    assert entry_of("rtx5090", found_of(desktop(), settings()))["path"] == "0000:01:00"
    entry = entry_of("igpu", found_of(apu(), APU))
    assert (entry["path"], entry["id"], entry["iommugroup"]) == ("0000:c6:00.0", "1002:1900", "17")


@pytest.mark.parametrize(("sysfs", "written"), [("0000:0000", "0000:0000"), ("1043:88e2", "1043:88e2"), ("0:0", "")])
def test_a_subsystem_of_zeros_is_written_into_the_mapping(sysfs: str, written: str) -> None:
    facts = desktop(devices=[device("0000:01:00.0", "10de:2b85", "030000", 16, subsystem=sysfs)])
    assert entry_of("rtx5090", found_of(facts, settings()))["subsystem-id"] == written


def test_a_vm_with_another_function_of_the_slot_doesnt_have_the_card() -> None:
    facts = apu(**with_vm(104, "hostpci0: 0000:c6:00.3"))
    assert facts.users_of("0000:c6:00") == []
    assert [user.vmid for user in facts.guests.users_of("0000:c6:00.3", "pve")] == [104]
    card = VmCard("igpu", "igpu", facts.path_of("0000:c6:00"), by_address=True)
    assert card.in_place_of("") == "host=0000:c6:00.0;0000:c6:00.1,pcie=1"
    assert not card.is_in("0000:c6:00.3") and card.is_in("c6:00,pcie=1")


def test_a_pending_card_of_a_vm_is_given_but_not_in_use() -> None:
    # Lines of VM 103, which runs -> does it have the card, and does it run with it?
    waiting = {
        "hostpci0: 01:00": (True, True),
        "name: x\n[PENDING]\nhostpci0: 0000:01:00,pcie=1": (True, False),
        # It runs with the one until it gets the other.
        "hostpci0: 01:00\n[PENDING]\nhostpci0: 02:00": (True, True),
        "hostpci0: 02:00\n[PENDING]\nhostpci0: 01:00": (True, False),
        "hostpci0: 02:00\n[PENDING]\nhostpci1: 03:00": (False, False),
        # It runs with it until it is taken out.
        "hostpci0: 01:00\n[PENDING]\ndelete: balloon,hostpci0": (True, True),
    }
    for lines, (given, in_use) in waiting.items():
        users = desktop(**with_vm(103, lines)).users_of("0000:01:00")
        assert [user.vmid for user in users] == [103] * given, lines
        assert any(user.running for user in users) == in_use, lines


@rows(
    ("lines", "reservations", "users"),
    [
        ("name: x", "0000:02:00.0 103 pid:1\n\n0000:01:00.0\n", []),
        ("name: x", "0000:01:00.1 103 pid:1\n", [(103, True)]),
        ("name: x\n[PENDING]\nhostpci0: 01:00", "0000:01:00.0 103 pid:1\n", [(103, True)]),
        ("usb0: mapping=big", "", []),  # a mapping of USB devices
        ("hostpci0: mapping=big", "", [(103, True)]),
    ],
)
def test_a_vm_has_what_is_reserved_for_it_or_what_its_hostpci_options_name(
    lines: str, reservations: str, users: list[tuple[int, bool]]
) -> None:
    mappings = "big\n\tmap id=10de:2b85,node=pve,path=0000:01:00\n"
    found = desktop(**with_vm(103, lines, mappings=mappings, reservations=reservations)).users_of("0000:01:00")
    assert [(user.vmid, user.running) for user in found] == users


@rows(
    ("line", "given"),
    [
        ("hostpci0: 02:00,pcie=1", True),
        ("hostpci0: pcie=1,host=0000:02:00", True),
        ("hostpci0: 02:00,pcie=1\n[PENDING]\ndelete: hostpci0", True),
        ("hostpci0: 01:00\n[PENDING]\nhostpci0: 02:00,pcie=1", True),
        ("hostpci0: 02:00", False),
        ("hostpci0: 01:00\nhostpci1: 02:00,pcie=1", False),
        ("hostpci0: 02:00,pcie=1\nsmbios1: uuid=1", False),
        ("balloon: 0", False),
    ],
)
def test_a_card_was_given_by_this_program_if_the_option_that_gives_it_is_noted(line: str, given: bool) -> None:
    noted = vm_note(103, "balloon: 0\nhostpci0: 02:00,pcie=1", "balloon", "hostpci0")
    facts = desktop(**with_vm(103, line), ledger=noted)
    places = [(place, vmid) for place in ("0000:01:00", "0000:02:00") for vmid in (103, 104)]
    assert [place for place in places if facts.given_by_homelab(*place)] == [("0000:02:00", 103)] * given


def test_a_guest_is_elsewhere_if_its_own_file_is_on_another_node() -> None:
    cluster = {"node": "pve", "name": "home", "places": "pve/qemu-server/104.conf\nfar/qemu-server/103.conf"}
    found = desktop(cluster=cluster).cluster
    assert [bool(found.elsewhere("it", guest)) for guest in (103, 104, 105)] == [True, False, False]
    assert found.described == ", node of the cluster home" and desktop().cluster.described == ""


def test_a_vm_shut_down_from_inside_has_its_pending_cards() -> None:
    for waiting, given in {"delete: hostpci0": [], "hostpci0: 02:00": [], "hostpci0: 01:00,pcie=1": [103]}.items():
        guests = {"configs": [conf("vm", 103, f"hostpci0: 01:00\n[PENDING]\n{waiting}")], "running": []}
        assert [user.vmid for user in desktop(guests=guests).users_of("0000:01:00")] == given, waiting


def test_a_vms_values_are_those_of_its_next_start() -> None:
    now, then = "name: x\nhostpci0: 01:00\nvga: std\nmachine: q35", "delete: vga,!machine\nhostpci0: 02:00\nballoon: 0"
    assert GuestConfig("vm", 103, f"{now}\n[PENDING]\n{then}").values == {
        "name": "x",
        "hostpci0": "02:00",
        "balloon": "0",
    }
