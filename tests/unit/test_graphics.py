"""AMD's and Intel's graphics as cards of VMs (homelab/cards/graphics.py): drivers that are left alone, ROMs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from homelab.cards import remarks as card_remarks
from homelab.facts.classes import NVIDIA_DRIVERS
from homelab.facts.host import HostFacts
from homelab.host import gates, plan
from homelab.host.plan import NVIDIA_BLACKLIST
from homelab.settings import Vm
from homelab.vm.cards import VmCard
from tests.conftest import shared
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, device, gpu, reasons, settings, told

RADEON = device("0000:03:00.0", "1002:744c", "030000", 18, driver="amdgpu", parent="0000:00:02.1")
ARC = device("0000:03:00.0", "8086:56a6", "030000", 18, driver="i915", parent="0000:00:02.1")
SOUND = device("0000:03:00.1", "1002:ab30", "040300", 18, driver="snd_hda_intel", parent="0000:00:02.1")
GIVEN = settings({"card": {"address": "03:00"}})
HOST = [device("0000:00:02.1", "1022:14db", "060400", 2, driver="pcieport", acs=True)]


# -- whose drivers are kept off ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("card", [RADEON, ARC])
@pytest.mark.parametrize("beside", [[], gpu()])
def test_no_driver_is_kept_off_for_a_card_of_another_maker(card: dict[str, Any], beside: list[Any]) -> None:
    facts = desktop(devices=[*HOST, card, SOUND, *beside])
    assert plan.wanted(facts, GIVEN).vfio_words.split()[1:] == []


def test_with_a_card_of_nvidias_and_one_of_amds_nvidias_drivers_alone_are_kept_off() -> None:
    both = settings({"card": {"address": "03:00"}, "nvidia": {"address": "01:00"}})
    words = plan.wanted(desktop(devices=[*HOST, RADEON, SOUND, *gpu()]), both).vfio_words.split()[1:]
    assert words == [NVIDIA_BLACKLIST]
    kept_off = words[0].partition("=")[2].split(",")
    assert not {"amdgpu", "radeon", "i915", "xe", "snd_hda_intel"}.intersection(kept_off)
    assert set(kept_off) == set(NVIDIA_DRIVERS)


def test_a_blacklist_that_an_earlier_version_wrote_is_no_reason_for_a_reboot() -> None:
    earlier = cmdline("quiet", f"quiet homelab.vfio=0000:03:00.0=1002:744c {NVIDIA_BLACKLIST}", "quiet")
    facts = desktop(devices=[*HOST, RADEON], cmdline=earlier)
    assert plan.wanted(facts, GIVEN).vfio_words.endswith(f" {NVIDIA_BLACKLIST}")
    # Somebody else's is no reason to write it as ours; and it goes once a card of NVIDIA's stays.
    theirs = cmdline("quiet", f"quiet {NVIDIA_BLACKLIST}")
    assert NVIDIA_BLACKLIST not in plan.wanted(desktop(devices=[*HOST, RADEON], cmdline=theirs), GIVEN).vfio_words
    stays = desktop(devices=[*HOST, RADEON, *gpu()], cmdline=earlier)
    assert NVIDIA_BLACKLIST not in plan.wanted(stays, GIVEN).vfio_words


# -- kernels that crash when a driver lets go -----------------------------------------------------------------------------
def virtual(kernel: str, driver: str = "amdgpu") -> HostFacts:
    owner = device("0000:03:00.0", "1002:7461", "030000", 18, driver="amdgpu", vfs=1)
    return desktop(
        devices=[owner, device("0000:03:02.0", "1002:7461", "030000", 19, driver=driver, physfn="0000:03:00.0")],
        kernel=kernel,
    )


VIRTUAL = settings({"vf": {"address": "0000:03:02.0"}})


@pytest.mark.parametrize("kernel", ["7.0.14-1-pve", "7.0.14-2-pve"])
def test_a_virtual_function_isnt_taken_from_amdgpu_on_a_kernel_that_crashes(kernel: str) -> None:
    (found,) = reasons(virtual(kernel), VIRTUAL)
    assert found.startswith(f"the kernel {kernel}, and 0000:03:02.0 graphics card") and "on amdgpu" in found
    # What no driver has, and what is bound at boot, was never on one.
    assert reasons(virtual(kernel, driver=""), VIRTUAL) == []
    assert reasons(desktop(devices=[*HOST, RADEON], kernel=kernel), GIVEN) == []


@pytest.mark.parametrize("kernel", ["7.0.14-3-pve", "7.0.14-10-pve", "7.0.13-1-pve", "6.17.2-1-pve"])
def test_on_any_other_kernel_it_is(kernel: str) -> None:
    assert reasons(virtual(kernel), VIRTUAL) == []


def test_what_goes_along_with_a_card_isnt_taken_from_amdgpu_either() -> None:
    member = device("0000:04:00.0", "1002:1900", "030000", 16, driver="amdgpu")
    host = settings({"gpu": {"match": "10de:2b85", "allowGroupMembers": ["0000:04:00.0"]}})
    (found,) = reasons(desktop(member, kernel="7.0.14-2-pve"), host)
    assert "0000:04:00.0" in found
    assert reasons(desktop(member), host) == []


# -- Intel's graphics --------------------------------------------------------------------------------------------------------
def integrated() -> HostFacts:
    return desktop(
        devices=[device("0000:00:02.0", "8086:4680", "030000", 3, driver="i915", boot_vga=1)],
        cpu_vendor="GenuineIntel",
        iommu={"tables": ["DMAR"], "groups": 9, "kernel_log": "", "interrupts": "remapped"},
    )


IGPU = settings({"igpu": {"address": "00:02.0", "allowConsole": True}})


# -- what a VM's firmware shows on them ----------------------------------------------------------------------------------
def vm(**changes: Any) -> Vm:
    return Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["igpu"], "display": "none", **changes})


def test_legacy_mode_is_no_setting_but_stays_in_a_line_of_the_owners() -> None:
    with pytest.raises(ValidationError, match="legacyIgd"):
        vm(gpus=[{"gpu": "igpu", "legacyIgd": True}])
    card = VmCard("igpu", "igpu", "0000:00:02", take_over=True)
    assert card.in_place_of("00:02.0,legacy-igd=1") == "mapping=igpu,legacy-igd=1"


@rows(
    ("facts", "use", "said"),
    [
        (desktop(devices=[device("0000:c6:00.0", "1002:1900", "030000", 17)]), {}, "it has no ROM of its own"),
        (desktop(devices=[device("0000:c6:00.0", "10de:2b85", "030000", 17, boot_vga=1)]), {}, "a changed copy of it"),
        (desktop(devices=[device("0000:c6:00.0", "8086:56a6", "030000", 17)]), {}, ""),
        (desktop(devices=[device("0000:c6:00.0", "1002:1900", "030000", 17)]), {"romfile": "a.rom"}, ""),
        (integrated(), {}, "no ROM for UEFI of their own"),
    ],
)
def test_the_plan_says_which_card_wants_a_rom_file(facts: HostFacts, use: dict[str, Any], said: str) -> None:
    host = settings({"gpu": {"address": facts.devices[0].slot, "allowConsole": True}})
    given = vm(gpus=[{"gpu": "gpu", **use}])
    text = told(facts, host, {"sandbox": given})[0]
    assert said in text
    assert ("ROM" in text) is bool(said)


@pytest.mark.parametrize(
    ("line", "said"), [("c6:00.0,romfile=a.rom", False), ("c6:00.0,legacy-igd=1", False), ("c6:00.0", True)]
)
def test_a_rom_file_that_the_vm_has_isnt_advised(line: str, said: bool) -> None:
    guests = {"configs": [conf("vm", 103, f"machine: q35\nhostpci0: {line}")]}
    facts = desktop(devices=[device("0000:c6:00.0", "1002:1900", "030000", 17, boot_vga=1)], guests=guests)
    host = settings({"gpu": {"address": "c6:00", "allowConsole": True}})
    plan_text = told(facts, host, {"sandbox": vm(gpus=[{"gpu": "gpu", "takeOver": True}])})[0]
    text = "\n".join([*card_remarks.remarks(facts, host, {"gpu": "0000:c6:00"}), plan_text])
    assert ("for romfile" in text) is said


# -- cards that their own driver starts first ----------------------------------------------------------------------------
NAVI_48 = [
    device("0000:86:00.0", "1002:7550", "030000", 36, driver="amdgpu"),
    device("0000:86:00.1", "1002:ab40", "040300", 37, driver="snd_hda_intel"),
]


def navi_48(methods: str | None = "bus", ids: str = "1002:7550", bound: bool = False, **changes: Any) -> HostFacts:
    """An RX 9070 XT; `bound`: by ids of the owner's own, since the host's start."""
    devices = [one | ({"driver": "vfio-pci"} if bound else {}) for one in NAVI_48]
    devices[0] |= {"vendor": ids[:4], "device": ids[5:]}
    states = {} if methods is None else {"0000:86:00.0": {"reset_method": methods}}
    given = {"vfio_files": {"/etc/modprobe.d/vfio.conf": f"{ids},1002:ab40"}} if bound else {}
    return desktop(devices=devices, card_states=states, **given, **changes)


@rows(
    ("facts", "more", "refused"),
    [
        (navi_48(), {}, True),
        (navi_48(methods=""), {}, True),
        (navi_48(methods=None), {}, True),  # the kernel doesn't say
        (navi_48(ids="1002:7551"), {}, True),
        (navi_48(methods="device_specific bus"), {}, False),
        (navi_48(ids="1002:7590"), {}, False),  # Navi 44: nobody has reported it
        (navi_48(), {"allowUnstarted": True}, False),
        (navi_48(), {"use": "lxc"}, False),
        (navi_48(bound=True), {}, True),
    ],
)
def test_a_card_that_dies_on_vfio_pci_before_its_driver_started_it_is_refused(
    facts: HostFacts, more: dict[str, Any], refused: bool
) -> None:
    errors = gates.check(facts, settings({"radeon": {"address": "86:00", **more}}))[1]
    assert ["it is a card of the kind Navi 48" in error.found for error in errors] == [True] * refused
    assert all("gpus.radeon.allowUnstarted: true" in error.next and "amdgpu" in error.why for error in errors)


def test_a_card_bound_at_boot_that_runs_in_a_vm_starts() -> None:
    guests = {"reservations": "0000:86:00.0 103 pid:4711"}
    card = settings({"radeon": {"address": "86:00"}})
    assert gates.check(navi_48(bound=True, guests=guests), card)[1] == []
    # Taken from amdgpu by a hookscript, it has shown nothing of that.
    assert gates.check(navi_48(guests=guests), card)[1] != []


def test_the_real_card_that_died_so_is_refused() -> None:
    text = shared("real_hosts", "pve91-romed8-9070xt-rtx3060", "reset_method.txt").read_text(encoding="utf-8")
    (error,) = gates.check(navi_48(methods=text.splitlines()[-1]), settings({"radeon": {"address": "86:00"}}))[1]
    assert error.found.endswith("the kernel resets it by bus") and "broken device, retraining failed" in error.why
