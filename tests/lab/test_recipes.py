"""Hosts that other projects and forums have set up, by their own commands: what `homelab init` says of it, what is made of it, and that all of it comes back.

Each recipe is what its script or page has an owner type, or types itself, as of 2026. What a guest has by hand: tests/lab/test_vm_transaction.py;
from `init` to `destroy`: tests/e2e/test_by_hand.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homelab.cards import remapping
from homelab.cards import remarks as card_remarks
from homelab.host import gates, plan
from tests.kept_systems import KeptSystems
from tests.lab.boots_kit import BootingHost, layers_of
from tests.lab.test_real_hosts import read
from tests.sampling import sample
from tests.unit.hosts import settings


@dataclass(frozen=True)
class Outcome:
    """What homelab makes of a recipe for one use of the card.

    ``refused``: a part of what was found and of what is next, where it is refused; else ``words``: of the binding; ``drivers``: by the
    functions' addresses, after the next start, where that is looked at; ``remark``: a part of one.
    """

    use: str
    refused: str = ""
    words: str = ""
    drivers: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """``card``: in the settings; ``restarted``: whether its owner has restarted the host since."""

    scenario: str
    commands: str
    card: dict[str, str]
    outcomes: tuple[Outcome, ...]
    restarted: bool = True


CARD, SOUND = "0000:01:00.0", "0000:01:00.1"
ON_VFIO = {CARD: "vfio-pci", SOUND: "vfio-pci"}
# A blacklist of the owner's counts: no driver takes it by itself.
WITHOUT_NOUVEAU = {CARD: "", SOUND: "snd_hda_intel"}
BOUND = f"homelab.vfio={CARD}=10de:2b85,{SOUND}=10de:22e8 {plan.NVIDIA_BLACKLIST}"
OF_NVIDIA = ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm")
RTX5090 = {"match": "10de:2b85"}
TAKE_OVER = {"takeOver": True}

PROXMENUX_RULE = "/etc/udev/rules.d/10-proxmenux-vfio-bind.rules"
_RULE = 'SUBSYSTEM==\\"pci\\", KERNEL==\\"{}\\", ATTR{{driver_override}}=\\"vfio-pci\\"'
# add_gpu_vm.sh: a card of NVIDIA's by its address; ids for none, as two cards may have the same.
PROXMENUX = f"""
sed -i '/GRUB_CMDLINE_LINUX_DEFAULT=/ s|"$| amd_iommu=on iommu=pt"|' /etc/default/grub
update-grub
printf '%s\\n' vfio vfio_iommu_type1 vfio_pci >>/etc/modules
printf 'softdep %s pre: vfio-pci\\n' {" ".join(OF_NVIDIA)} >>/etc/modprobe.d/vfio.conf
mkdir -p /etc/proxmenux
printf '%s\\n' {CARD} {SOUND} >/etc/proxmenux/vfio-bind.bdfs
printf '%s\\n' "{_RULE.format(CARD)}" "{_RULE.format(SOUND)}" >{PROXMENUX_RULE}
printf 'blacklist %s\\n' {" ".join(OF_NVIDIA)} >/etc/modprobe.d/proxmenux-nvidia-vfio-blacklist.conf
echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' >>/etc/modprobe.d/iommu_unsafe_interrupts.conf
echo 'options kvm ignore_msrs=1' >>/etc/modprobe.d/kvm.conf
printf '%s\\n' 'blacklist nouveau' 'blacklist lbm-nouveau' 'options nouveau modeset=0' >>/etc/modprobe.d/blacklist.conf
update-initramfs -u -k all
"""
# As it was written earlier: ids, and nobody may load NVIDIA's driver.
PROXMENUX_BEFORE = f"""
sed -i '/GRUB_CMDLINE_LINUX_DEFAULT=/ s|"$| amd_iommu=on iommu=pt"|' /etc/default/grub
update-grub
printf '%s\\n' vfio vfio_iommu_type1 vfio_pci >>/etc/modules
echo 'options vfio-pci ids=10de:2b85,10de:22e8 disable_vga=1' >>/etc/modprobe.d/vfio.conf
printf 'blacklist %s\\n' nouveau {" ".join(OF_NVIDIA)} nvidiafb >>/etc/modprobe.d/blacklist.conf
printf 'install %s /bin/false\\n' {" ".join(OF_NVIDIA)} >/etc/modprobe.d/nvidia-blacklist.conf
update-initramfs -u -k all
"""
PECU = """
mkdir -p /etc/pecu
cp /etc/default/grub /etc/pecu/grub.bak.20260801_101500
sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT="[^"]*"/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on iommu=pt video=efifb:off initcall_blacklist=sysfb_init pcie_acs_override=downstream vfio-pci.disable_vga=1 kvm.ignore_msrs=1"/' /etc/default/grub
update-grub
printf '%s\\n' '# VFIO modules for GPU passthrough' vfio vfio_pci vfio_iommu_type1 >/etc/modules-load.d/vfio.conf
printf 'blacklist %s\\n' nouveau nvidia nvidiafb >/etc/modprobe.d/blacklist-gpu.conf
echo 'options vfio-pci ids=10de:2b85,10de:22e8 disable_vga=1 disable_idle_d3=1' >/etc/modprobe.d/vfio.conf
echo 'options kvm ignore_msrs=1 report_ignored_msrs=0' >/etc/modprobe.d/kvm.conf
echo '# options vfio_iommu_type1 allow_unsafe_interrupts=1' >/etc/modprobe.d/vfio_iommu_type1.conf
update-initramfs -u -k all
"""
# Proxmox VE's own page "PCI(e) Passthrough", on systemd-boot.
WIKI = """
sed -i '1s/$/ intel_iommu=on iommu=pt/' /etc/kernel/cmdline
printf '%s\\n' vfio vfio_iommu_type1 vfio_pci >>/etc/modules
echo 'options vfio-pci ids=10de:2786,10de:22bc' >/etc/modprobe.d/vfio.conf
printf 'softdep %s pre: vfio-pci\\n' nouveau snd_hda_intel >>/etc/modprobe.d/vfio.conf
printf 'blacklist %s\\n' nouveau nvidia >/etc/modprobe.d/blacklist.conf
update-initramfs -u -k all; proxmox-boot-tool refresh
"""
# "The Ultimate Beginner's Guide to GPU Passthrough" (reddit), from which most others were copied.
BEGINNERS = """
sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT="[^"]*"/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on iommu=pt pcie_acs_override=downstream,multifunction nofb nomodeset video=vesafb:off,efifb:off"/' /etc/default/grub
update-grub
printf '%s\\n' vfio vfio_iommu_type1 vfio_pci vfio_virqfd >>/etc/modules
echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' >/etc/modprobe.d/iommu_unsafe_interrupts.conf
echo 'options kvm ignore_msrs=1' >/etc/modprobe.d/kvm.conf
printf 'blacklist %s\\n' radeon nouveau nvidia >>/etc/modprobe.d/blacklist.conf
echo 'options vfio-pci ids=10de:2b85,10de:22e8 disable_vga=1' >/etc/modprobe.d/vfio.conf
update-initramfs -u -k all
"""
FIRST, SECOND = "0000:1d:00", "0000:1e:00"
TWINS_BY_IDS = """
sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT="[^"]*"/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on iommu=pt vfio-pci.ids=10de:2204,10de:1aef"/' /etc/default/grub
echo vfio-pci >>/etc/initramfs-tools/modules
update-grub; update-initramfs -u -k all
"""
# As forums advise where two cards have the same ids.
TWIN_BY_SCRIPT = f"""
cat >/etc/initramfs-tools/scripts/init-top/bind_vfio.sh <<'END'
#!/bin/sh
case $1 in prereqs) exit 0 ;; esac
for function in {SECOND}.0 {SECOND}.1; do
  echo vfio-pci >"$HOMELAB_SYSROOT/sys/bus/pci/devices/$function/driver_override"
done
modprobe -i vfio-pci
END
chmod +x /etc/initramfs-tools/scripts/init-top/bind_vfio.sh
printf '%s\\n' vfio vfio_iommu_type1 vfio-pci >>/etc/initramfs-tools/modules
update-initramfs -u -k all
"""
# driverctl 0.115 of Debian 13: `driverctl set-override 0000:01:00.0 vfio-pci`, and the same of .1.
OVERRIDES = f"""
mkdir -p /etc/driverctl.d
echo vfio-pci >/etc/driverctl.d/pci-{CARD}
echo vfio-pci >/etc/driverctl.d/pci-{SOUND}
"""
RECIPES: dict[str, Recipe] = {
    "ProxMenux": Recipe(
        "rtx5090",
        PROXMENUX,
        RTX5090,
        (
            Outcome("vm", words=BOUND, drivers=ON_VFIO),
            *(
                Outcome(use, remark=f"{CARD} is on no driver, {SOUND} is on no driver, .* look at {PROXMENUX_RULE}", more=more)
                for use, more in (("lxc", {}), ("host", TAKE_OVER))
            ),
        ),
    ),
    "ProxMenux, before": Recipe(
        "rtx5090",
        PROXMENUX_BEFORE,
        RTX5090,
        (
            Outcome("vm", drivers=ON_VFIO),
            Outcome("host", refused=f"{CARD}, {SOUND} on vfio-pci, by /etc/modprobe.d/vfio.conf.*set takeOver: true"),
            Outcome("lxc", words="vfio-pci.ids=", drivers=WITHOUT_NOUVEAU, remark="vfio-pci.ids= .*counts instead", more=TAKE_OVER),
            Outcome(
                "host",
                refused="nvidia-blacklist.conf: install nvidia /bin/false.*take nvidia out there",
                more={**TAKE_OVER, "nvidia": {"driver": "580"}},
            ),
        ),
    ),
    "PECU": Recipe(
        "rtx5090",
        PECU,
        RTX5090,
        (
            Outcome("vm", drivers=ON_VFIO, remark="pcie_acs_override=downstream .set by hand, and left as it is."),
            Outcome("vm", words=BOUND, drivers=ON_VFIO, more=TAKE_OVER),
            Outcome("lxc", words="vfio-pci.ids=", drivers=WITHOUT_NOUVEAU, more=TAKE_OVER),
        ),
    ),
    "Proxmox VE's page, systemd-boot": Recipe(
        "intel-zfs",
        WIKI,
        {"match": "10de:2786"},
        (
            Outcome("vm", drivers=ON_VFIO),
            Outcome("host", words="vfio-pci.ids=", drivers=WITHOUT_NOUVEAU, more=TAKE_OVER),
        ),
    ),
    "a beginner's guide": Recipe(
        "rtx5090",
        BEGINNERS,
        RTX5090,
        (
            Outcome("vm", drivers=ON_VFIO, remark="pcie_acs_override=downstream,multifunction .set by hand"),
            Outcome("host", words="vfio-pci.ids=", drivers=WITHOUT_NOUVEAU, more=TAKE_OVER),
        ),
    ),
    "a beginner's guide, without its restart": Recipe(
        "rtx5090",
        BEGINNERS,
        RTX5090,
        (
            Outcome("vm", words=BOUND, drivers=ON_VFIO),
            Outcome("host", remark="without effect so far; .*takeOver: true for the host keeps it"),
            Outcome("host", words="vfio-pci.ids=", drivers=WITHOUT_NOUVEAU, more=TAKE_OVER),
        ),
        restarted=False,
    ),
    "driverctl": Recipe(
        "rtx5090",
        OVERRIDES,
        RTX5090,
        (
            Outcome("vm", drivers=ON_VFIO),
            Outcome("host", refused=f"{CARD}, {SOUND} on vfio-pci, by /etc/driverctl.d/pci-{CARD}.*driverctl --noprobe unset-override"),
        ),
    ),
    "ids of two cards": Recipe(
        "two-identical",
        TWINS_BY_IDS,
        {"match": "10de:2204", "address": "1d:00"},
        (
            Outcome("host", refused="set takeOver: true for the host"),
            Outcome(
                "host",
                words=f"homelab.vfio={SECOND}.0=10de:2204,{SECOND}.1=10de:1aef vfio-pci.ids=",
                drivers={
                    f"{FIRST}.0": "nouveau",
                    f"{FIRST}.1": "snd_hda_intel",
                    f"{SECOND}.0": "vfio-pci",
                    f"{SECOND}.1": "vfio-pci",
                },
                remark=f"{SECOND}.0, {SECOND}.1, which the same ids name, stays on vfio-pci",
                more=TAKE_OVER,
            ),
        ),
    ),
    "a script for one of two": Recipe(
        "two-identical",
        TWIN_BY_SCRIPT,
        {"match": "10de:2204", "address": "1e:00"},
        (
            Outcome(
                "vm",
                words=f"homelab.vfio={SECOND}.0=10de:2204,{SECOND}.1=10de:1aef",
                drivers={f"{FIRST}.0": "nouveau", f"{SECOND}.0": "vfio-pci", f"{SECOND}.1": "vfio-pci"},
            ),
            Outcome("lxc", remark="that stays so: look at .*bind_vfio.sh"),
        ),
    ),
}  # fmt: skip


def below_the_root(commands: str) -> str:
    """A recipe as it is typed on a simulated host."""
    return re.sub(r"(?<=[ >])(?=/etc/)", '"$HOMELAB_ROOT"', commands)


def made(recipe: Recipe, folder: Path) -> BootingHost:
    machine = BootingHost(folder, recipe.scenario)
    machine.output(below_the_root(recipe.commands))
    if recipe.restarted:
        machine.restart()
    return machine


OUTCOMES = [(name, number) for name, recipe in RECIPES.items() for number in range(len(recipe.outcomes))]
WITH_RESTART = [(name, number) for name, number in OUTCOMES if RECIPES[name].outcomes[number].drivers]
TRIED = [("ids of two cards", 1), *sample(WITH_RESTART, 4, "what is made of recipes")]


@pytest.mark.parametrize(("name", "number"), OUTCOMES)
def test_what_is_made_of_it_comes_back_byte_for_byte(kept_systems: KeptSystems, name: str, number: int) -> None:
    """Each recipe's host is made once, and brought back for each of its tests."""
    recipe = RECIPES[name]
    machine = kept_systems.take(("recipe", name), lambda folder: made(recipe, folder))
    outcome = recipe.outcomes[number]
    stock, before = machine.files(), machine.drivers()
    wanted = settings({"card": {**recipe.card, "use": outcome.use}}, **outcome.more)
    facts = remapping.to_be(read(machine.machine), wanted)
    slots, errors = gates.check(facts, wanted)
    if outcome.refused:
        assert any(re.search(outcome.refused, f"{error.found}; {error.next}") for error in errors), errors
        return
    assert errors == []
    remarks = card_remarks.remarks(facts, wanted, slots)
    assert any(re.search(outcome.remark, remark) for remark in remarks) or not outcome.remark, remarks
    want = plan.wanted(facts, wanted)
    assert want.vfio_words == outcome.words
    if (name, number) not in TRIED:
        return
    layers = layers_of(want)
    machine.all("apply", *layers)
    machine.restart()
    drivers = machine.drivers()
    assert {address: drivers.get(address, "") for address in outcome.drivers} == outcome.drivers
    again = remapping.to_be(read(machine.machine), wanted)
    assert plan.wanted(again, wanted).words == want.words, "the next run changes nothing"
    assert not [*plan.verify(again, wanted, want)] and not any(plan.drift(again, want).values())
    machine.all("revert", *reversed(layers))
    assert machine.files() == stock
    machine.restart()
    if recipe.restarted:
        assert machine.drivers() == before
