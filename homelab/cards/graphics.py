"""Gates and remarks for AMD's and Intel's graphics as cards of VMs, and their virtual functions, beyond those for every
card. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from homelab.cards import remapping, unfit
from homelab.errors import HomelabError
from homelab.facts.classes import AMD, INTEL
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Gpu

# Where every Intel processor has its graphics.
INTEGRATED = "0000:00:02.0"
# Kernels that crash when amdgpu lets a card go to vfio-pci while the host runs (proxmox/pve-kernel, changelog of
# 7.0.14-3, which reverted the change).
_CRASHING = ("7.0.14-1-pve", "7.0.14-2-pve")
# The first qemu-server with hostpci's driver=keep (its changelog), of Proxmox VE 9.1.
_KEEPS_SINCE = (9, 0, 25)


def keep_refused(facts: HostFacts, name: str) -> Iterator[HomelabError]:
    """The refusal of `driver: keep` where this host's Proxmox VE doesn't know it, or its version is unknown.

    :param name: of the card or use that has the option, for messages.
    """
    version = facts.packages.get("qemu-server", "")
    if tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])) < _KEEPS_SINCE:
        yield HomelabError(
            wanted=f"{name}: driver: keep",
            found=f"qemu-server {version}" if version else "the version of qemu-server can't be told",
            why=f"Proxmox VE knows it since qemu-server {'.'.join(map(str, _KEEPS_SINCE))} (9.1); an older one refuses "
            "the change",
            next="update the host (`apt full-upgrade`), or take the option out",
        )


def rebound(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no function of the card is unbound from amdgpu on a kernel that crashes of it.

    What is bound at boot never had another driver. Proxmox VE unbinds virtual functions and members of the group when
    the VM starts (PVE::SysFSTools::pci_dev_bind_to_vfio).
    """
    leaving = [device for device in facts.functions(slot) if device.physfn]
    leaving += [device for device in facts.others_in_group(slot) if device.address in gpu.allow_group_members]
    on_amdgpu = [facts.describe(device) for device in leaving if device.driver == "amdgpu"]
    if on_amdgpu and facts.kernel in _CRASHING:
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) taken from the host while it runs",
            found=f"the kernel {facts.kernel}, and {'; '.join(on_amdgpu)} on amdgpu",
            why="this kernel crashes when amdgpu lets a card go to vfio-pci while the host runs; the start of a VM "
            "with it would do that",
            next="update the host's kernel (`apt full-upgrade`), reboot, and run `pulumi up` again",
        )


def unstarted(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: the card isn't one that fails if vfio-pci has it before its own driver has started it, which is so after
    each boot with this program's word."""
    display = facts.display_of(slot)
    # Navi 48 (Radeon RX 9070, RX 9070 XT, AI PRO R9700). A guide for an RX 9070 XT beside an ASPEED console says it
    # (Proxmox VE 9.1.8, Linux 6.17.13, ROMED8-2T). With another reset than the bus's, nothing is known against it.
    if display is None or display.vendor != AMD or not "7550" <= display.device <= "755f":
        return
    others = {*(facts.reset_methods(display.address) or ())} - {"bus"}
    if not gpu.allow_unstarted and not others and not _runs_since_boot(facts, slot):
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) for a VM, on vfio-pci from the host's start on",
            found="it is a card of the kind Navi 48; the kernel resets it by "
            + (facts.resets_of([display]) or "a way that it doesn't say"),
            why="where vfio-pci had it from the host's start on, the reset at the VM's start broke the switch on the "
            'card ("broken device, retraining failed", "stuck in D3"), and only switching the host off helped; amdgpu '
            "has to start it first, and this program binds it before that",
            next=f"leave the card with amdgpu (gpus.{name}.use: host or lxc); a hookscript of your own can take it "
            "from there when a VM starts. To try it in a VM all the same, if you can switch the host off when it "
            f"doesn't start, set gpus.{name}.allowUnstarted: true",
        )


def _runs_since_boot(facts: HostFacts, slot: str) -> bool:
    """Whether a VM runs with the card, which has been on vfio-pci since the boot."""
    homelab_bound = bound_by_word(facts.cmdline.running)
    since_start = all(device.address in homelab_bound or facts.kept_by_hand(device) for device in facts.functions(slot))
    return since_start and remapping.runs_in_vm(facts, slot)


def rom_remarks(facts: HostFacts, name: str, slot: str, *, has_file: bool) -> Iterator[str]:
    """Remarks on a card's ROM, which a VM without a ROM file may lack or find changed: a sentence each.

    :param name: of the settings.
    """
    display = facts.display_of(slot)
    if display is None or has_file:
        return
    if display.address == INTEGRATED and display.vendor == INTEL:
        yield (
            f"gpus.{name}: processor graphics have no ROM for UEFI of their own: the VM shows nothing on them until "
            "its system's driver starts (up to Comet Lake, legacy-igd=1 in a hostpci line of your own and machine: pc "
            "change that; takeOver keeps it)"
        )
    elif display.boot_vga or any(row.has(display) and not row.own_rom for row in unfit.rows()):
        yield (
            f"gpus.{name}: it has no ROM of its own, or the host's firmware may have left a changed copy of it: if the "
            "VM shows nothing on it, docs/troubleshooting.md#a-rom-file-for-a-card says how to make a file for romfile"
        )
