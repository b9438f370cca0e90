"""Captures of real machines: the unmodified reading of a host made of each, and what the gates say of every card in it."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from homelab.cards import group_gates
from homelab.errors import HomelabError, raise_all
from homelab.facts import host as facts
from homelab.facts import kernel_log
from homelab.host import gates, plan
from homelab.judged.tree import Settings, judged
from homelab.settings import Vm
from homelab.show import reading, tree
from homelab.vm import preview
from homelab.vm.plan import judge_vm, seen_of
from lab.machine import Machine
from remote_scripts.both.read_host import Wanted
from tests.conftest import shared
from tests.lab.host_kit import Host, run_layer
from tests.lab.listings import scenario_of
from tests.unit.hosts import settings, told

# Listing -> slot of each graphics card -> what refuses it: group members that are neither the card nor bridges. None: nothing.
VERDICTS: dict[str, dict[str, set[str] | None]] = {
    "b550-vega56-rx550/iommu_groups.txt": {
        "0000:04:00": {"0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:07:00.0"},
        "0000:0b:00": None,
    },
    "cezanne-igpu-rtx2060/iommu_groups.txt": {"0000:01:00": None, "0000:09:00": None},
    "i5-9400f-rx580-rx550/iommu_groups.txt": {"0000:01:00": None, "0000:02:00": None},
    "pve-3x3090/iommu_groups_excerpt.txt": {"0000:1d:00": None, "0000:1e:00": None, "0000:1f:00": None},
    "pve91-am5-arc-no-nvidia/iommu_groups.txt": {"0000:03:00": None, "0000:0c:00": None},
    "x570-1080ti-3090-find/iommu_groups_find.txt": {"0000:24:00": None, "0000:2d:00": None},
    "z370-2080ti-2060/iommu_groups.txt": {
        "0000:01:00": {f"0000:02:00.{number}" for number in range(4)},
        "0000:02:00": {f"0000:01:00.{number}" for number in range(4)},
    },
    "z370-2080ti-2060/iommu_groups_after_acs_override.txt": {"0000:01:00": None, "0000:02:00": None},
}


def be_no_proxmox(machine: Machine) -> None:
    """No lab runs, so nothing is Proxmox VE's API. Who ran is noted elsewhere (tests/agent/test_owed.py)."""
    (machine.state / "bin/qm").unlink(missing_ok=True)


def read(machine: Machine) -> facts.HostFacts:
    return facts.parse(answered(machine, guests=True))


def answered(machine: Machine, **wanted: Any) -> dict[str, object]:
    """What a reading answers."""
    be_no_proxmox(machine)
    done = run_layer(machine, "read", "read_host", Wanted(**wanted))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    """The captured machine ``request.param``, running."""
    return Host(tmp_path, scenario_of(shared("real_hosts", *request.param.split("/"))), running=True).machine


@pytest.mark.parametrize("machine", VERDICTS, indirect=True, ids=VERDICTS)
def test_each_card_of_a_real_machine_gets_its_verdict(machine: Machine, request: pytest.FixtureRequest) -> None:
    found = read(machine)
    for slot, refused in VERDICTS[request.node.callspec.params["machine"]].items():
        # What is the card's own may be elsewhere: an Arc's sound is behind a port of its own.
        mine = {device.address for device in found.functions(slot)}
        others = {one.address for one in found.group_of(slot) if one.slot != slot and not one.is_bridge} - mine
        assert others == (refused or set()), slot
        errors = [*group_gates.isolation(found, "gpu", settings().gpus["rtx5090"], slot)]
        assert bool(errors) is bool(refused)
        assert all(address in errors[0].found for address in refused or ())


@pytest.mark.parametrize("machine", VERDICTS, indirect=True, ids=VERDICTS)
def test_without_an_iommu_the_topology_predicts_nothing_less_than_the_group(
    machine: Machine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A prediction may hold too much, never too little: what shares the real group is in the predicted one."""

    def facts_path(found: facts.HostFacts, slot: str) -> list[bool]:
        """Whether the card hangs below a bridge, as the listing lets one tell; without one there is nothing to predict from."""
        return [bool(device.ancestors) for device in found.functions(slot)]

    found = read(machine)
    blind = replace(found, devices=[replace(device, group=None, acs=False) for device in found.devices])
    for slot, refused in VERDICTS[request.node.callspec.params["machine"]].items():
        if refused and all(facts_path(found, slot)):
            predicted = {device.address for device in blind.group_of(slot)}
            assert refused <= predicted, slot


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        (
            "pve84-8845hs-rtx5060ti",
            "quiet amd_iommu=on iommu=pt initcall_blacklist=sysfb_init pcie_acs_override=downstream",
        ),
        ("pve-p51-laptop-quadro-m1200", "quiet intel_iommu=on"),
        (
            "x570-1080ti-3090-find",
            "quiet splash amd_iommu=on amd_iommu=pt vfio_pci.ids=10de:1b06,10de:10ef,1102:0010 kvm.ignore_msrs=1",
        ),
    ],
)
def test_real_grub_settings_are_read_as_grub_reads_them(tmp_path: Path, capture: str, expected: str) -> None:
    host = Host(tmp_path, "rtx5090", running=True)
    host.write("/etc/default/grub", shared("real_hosts", capture, "etc_default_grub.txt").read_text())
    assert read(host.machine).cmdline.others.split() == expected.split()


def test_a_card_with_a_forgotten_audio_function_is_half_bound(tmp_path: Path) -> None:
    """The WTR MAX's CPU with a Blackwell card: the ids name the card's first function only."""
    host = Host(tmp_path, "wtr-max")
    for path in ("modprobe.d/vfio.conf", "default/grub", "modules"):
        captured = f"etc_{re.sub('[/.]', '_', path)}.txt"
        host.write(f"/etc/{path}", shared("real_hosts", "pve84-8845hs-rtx5060ti", captured).read_text())
    host.booted().output("update-initramfs -u -k all && update-grub")
    host.reboot()
    found = read(host.machine)
    assert ",".join(found.vfio_files.values()) == "10de:2d04"
    want = plan.wanted(found, settings({"rtx5060ti": {"match": "10de:2d04"}}))
    assert want.by_hand == ["0000:01:00.0"]
    assert want.vfio_words.startswith("homelab.vfio=0000:01:00.1=10de:22eb")


@pytest.mark.parametrize(
    ("case", "gpu", "vm", "bound", "change"),
    [
        (
            "two-options-two-roms",
            {"match": "1002:164e"},
            {"vmid": 100, "gpus": [{"gpu": "igpu", "takeOver": True}]},
            ["0000:18:00.0"],
            {"hostpci0": "mapping=igpu,pcie=1,x-vga=1,romfile=raphael_vbios.bin"},
        ),
        (
            "mapping-of-one-function",
            {"match": "1002:1638", "allowConsole": True, "mapping": "vega-igpu"},
            {"vmid": 223, "gpus": ["igpu"]},
            ["0000:04:00.0"],
            {},
        ),
    ],
)
def test_functions_that_an_owner_gives_one_by_one_stay_as_they_are(
    tmp_path: Path, case: str, gpu: dict[str, Any], vm: dict[str, Any], bound: list[str], change: dict[str, str]
) -> None:
    machine = Host(tmp_path, str(shared("cases5", f"{case}.yaml")), running=True).machine
    found, host, guest = read(machine), settings({"igpu": gpu}), Vm.model_validate({"host": "pve", **vm})
    want = plan.wanted(found, host, [guest])
    assert (list(want.functions), want.by_hand, want.vfio_words) == (bound, bound, ""), "no reboot is needed"
    decided = judge_vm(seen_of(found, guest.vmid), preview.wish_of("guest", guest, host, want.gpus), found)
    assert (decided.change, decided.refusals) == (change, [])


def test_a_second_option_whose_mapping_was_removed_is_told_before_anything_is_done(tmp_path: Path) -> None:
    machine = Host(tmp_path, str(shared("cases5", "mapping-removed.yaml")), running=True).machine
    found, host = read(machine), settings({"gpu": {"address": "01:00", "mapping": "gpu-1"}})
    guest = Vm.model_validate({"host": "pve", "vmid": 100, "gpus": ["gpu"]})
    text, errors = told(found, host, {"worker": guest})
    assert errors == [] and "there is no mapping gpu-2 for this node (mappings: gpu-1); make the mapping again" in text
    assert "or take the option out: `qm set 100 --delete hostpci1`" in text


@pytest.mark.parametrize(
    ("case", "gpus"),
    [
        ("two-vms-in-turn", {"gpu": {"address": "2f:00"}}),
        ("two-cards-one-vm", {"first": {"address": "01:00"}, "second": {"address": "21:00"}}),
        ("two-cards-one-vm", {"first": {"address": "01:00"}}),
    ],
)
def test_no_card_that_goes_to_a_vm_is_to_be_the_screen(tmp_path: Path, case: str, gpus: dict[str, Any]) -> None:
    machine = Host(tmp_path, str(shared("cases5", f"{case}.yaml")), running=True).machine
    (error,) = gates.check(read(machine), settings(gpus))[1]
    assert error.next.startswith(f"accept it with gpus.{next(iter(gpus))}.allowConsole: true")


@pytest.mark.parametrize("nvidia", [{}, {"nvidia": {}}])
def test_a_card_whose_memory_has_no_room_is_refused_before_a_driver_gets_it(
    tmp_path: Path, nvidia: dict[str, Any]
) -> None:
    machine = Host(tmp_path, str(shared("cases5", "bar-without-address.yaml")), running=True).machine
    line = "pci 0000:2c:00.0: BAR 1 [mem size 0x800000000 64bit pref]: can't assign; no space"
    (machine.state / "root/dev/kmsg").write_text(f"{line}\n", encoding="utf-8")
    found = facts.parse(answered(machine, guests=True, signs=kernel_log.filter_of_lines()))
    (refused,) = gates.check(found, settings({"egpu": {"address": "2c:00", "use": "lxc"}}, **nvidia))[1]
    assert line in refused.found and "Above 4G Decoding" in refused.next


def test_vt_d_off_in_the_firmware_is_seen_through_the_kernels_enabled(tmp_path: Path) -> None:
    """pve-b660-vtd-off-in-bios: the command line asks for it, the kernel says "enabled", and there is no group."""
    assert (
        shared("real_hosts", "pve-b660-vtd-off-in-bios", "dmesg_iommu.txt").read_text().strip() == "DMAR: IOMMU enabled"
    )
    machine = Host(tmp_path, "firmware-off", running=True).machine
    found = read(machine)
    assert "DMAR: IOMMU enabled" in found.iommu.kernel_log
    with pytest.raises(HomelabError, match="switched on in the firmware"):
        raise_all(gates.check(found, settings({"gpu": {"address": "01:00"}}))[1])


@pytest.mark.parametrize(("capture", "uses"), [("pve-lxc-rtx3060", True), ("pve-lxc-wrong-majors", True)])
def test_real_containers_that_use_a_card_are_seen(capture: str, uses: bool) -> None:
    from tests.unit.hosts import desktop

    lines = shared("real_hosts", capture, "lxc_conf.txt").read_text()
    guests = asdict(desktop().guests) | {"running": [], "configs": [{"kind": "lxc", "id": 100, "lines": lines}]}
    found = desktop(guests=guests, nvidia_minors={"0000:01:00.0": 0})
    assert bool(gates.containers(found, "gpu", settings().gpus["rtx5090"], "0000:01:00")) is uses


def test_a_stranded_kernel_log_from_intel_and_amd_is_shown_to_people(tmp_path: Path) -> None:
    """i5-9400f: an Intel host that prints an AMD-Vi line. The lines are shown, and nothing is concluded from them."""
    assert "AMD-Vi" in shared("real_hosts", "i5-9400f-rx580-rx550", "dmesg_iommu.txt").read_text()
    machine = Host(tmp_path, "intel-grub-bios", running=True).machine
    found = read(machine)
    strange = replace(found, iommu=dataclasses.replace(found.iommu, kernel_log="AMD-Vi: not available"))
    host = settings({"gpu": {"address": "03:00", "allowConsole": True}})
    assert plan.wanted(strange, host).iommu_words == "intel_iommu=on iommu=pt"
    without = replace(strange, iommu=dataclasses.replace(strange.iommu, groups=0))
    (refused,) = plan.without_groups(without)
    assert refused.found == "none; the kernel says: AMD-Vi: not available"


def test_a_card_that_two_vms_have_in_turn_by_hand_stays_with_both(tmp_path: Path) -> None:
    machine = Host(tmp_path, str(shared("cases5", "two-vms-in-turn.yaml")), running=True).machine
    found = read(machine)
    host = settings({"gpu": {"match": "1002:744c", "mapping": "rx7900xt", "allowConsole": True}})
    guest = Vm.model_validate({"host": "forge", "vmid": 101, "gpus": [{"gpu": "gpu", "takeOver": True}]})
    now = reading.of_reading(found, host)
    then = reading.planned(now, judged(found, Settings("forge", host, {"ai": guest}, stack="p/s")))
    guests = [one.line for one in tree.of_host("forge", now, then).walk() if one.kind == "guest"]
    assert guests == ["~ VM 101 (ai)", "VM 105 (arcade)"]
