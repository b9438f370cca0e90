"""What AMD's and Intel's graphics need as cards of VMs, beyond what holds for every card (graphics.yaml has the data).

Gates and notes. Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.host import card_ids, remapping, resets
from homelab.host.classes import DISPLAY, INTEL
from homelab.host.devices import Device
from homelab.host.facts import HostFacts, bound_by_word
from homelab.settings import Gpu

# Where every Intel processor has its graphics; legacy mode knows no other place (PVE::QemuServer::PCI).
INTEGRATED = "0000:00:02.0"
_GVT_G = "i915.enable_gvt=1"


class _CrashRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report"]


class RebindingRow(_CrashRow):
    """Kernels that crash when this driver lets a device go."""

    driver: str
    kernels: tuple[str, ...] = Field(min_length=1)
    why: str


class NamedRow(_CrashRow):
    """Cards of one kind."""

    name: str
    ids: tuple[card_ids.Ids, ...] = Field(min_length=1)


class RomRow(NamedRow):
    """Cards that a guest wants a ROM file for."""

    place: str = Field(alias="from")
    why: str


class UnstartedRow(NamedRow):
    """Cards that their own driver must have started before vfio-pci has them. `only_reset`: the one way in which the
    kernel resets them."""

    driver: str
    only_reset: str = Field(alias="only-reset")
    why: str


class Data(BaseModel):
    """graphics.yaml; see there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rebinding: tuple[RebindingRow, ...]
    gvt_g: tuple[NamedRow, ...]
    legacy_igd: tuple[NamedRow, ...]
    roms: tuple[RomRow, ...]
    unstarted: tuple[UnstartedRow, ...]


@functools.cache
def data() -> Data:
    """The data."""
    return Data.model_validate(tables.read(Path(__file__).with_suffix(".yaml")))


def rebound(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """Nothing of the card is taken from a running driver on a kernel that crashes of it.

    What is bound at boot never was on one. A virtual function, and what goes along as a member of the group, Proxmox VE
    takes from its driver when the VM starts (PVE::SysFSTools::pci_dev_bind_to_vfio).
    """
    going = [one for one in facts.functions(slot) if one.physfn]
    going += [one for one in facts.others_in_group(slot) if one.address in gpu.allow_group_members]
    errors = []
    for row in data().rebinding:
        held = [one for one in going if one.driver == row.driver]
        if held and facts.kernel in row.kernels:
            errors.append(
                HomelabError(
                    wanted=f"gpus.{name} ({facts.card(slot)}) taken from the host while it runs",
                    found=f"the kernel {facts.kernel}, and {'; '.join(map(facts.describe, held))} on {row.driver}",
                    why=f"{row.why} ({row.source}); the start of a VM with it would do that",
                    next="update the host's kernel (`apt full-upgrade`), reboot, and run `pulumi up` again",
                )
            )
    return errors


def unstarted(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card isn't one that dies where vfio-pci has it before its own driver has started it, as the word for the next
    boot would have it."""
    shown = next((one for one in facts.functions(slot) if one.is_display and not one.physfn), None)
    row = next((row for row in data().unstarted if shown is not None and card_ids.names(row.ids, shown)), None)
    if row is None or shown is None or gpu.allow_unstarted or _does_it_already(facts, slot):
        return []
    ways = resets.methods(facts, shown.address)
    if ways is not None and set(ways) - {row.only_reset}:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) for a VM, on vfio-pci from the host's start on",
            found=f"it is a card of the kind {row.name}, which "
            + (
                f"is reset by {', '.join(ways) or 'nothing'}"
                if ways is not None
                else "the kernel doesn't say how it resets"
            ),
            why=f"{row.why} ({row.source}); {row.driver} has to start it first, and this program binds it before that",
            next=f"leave the card with {row.driver} (gpus.{name}.use: host or lxc); a hookscript of your own can "
            "take it from there when a VM starts. If it "
            "starts in a VM all the same, and you can switch the host off should it not, "
            f"gpus.{name}.allowUnstarted: true",
        )
    ]


def _does_it_already(facts: HostFacts, slot: str) -> bool:
    """A VM runs with the card, which has been on vfio-pci since the host's start."""
    ours = bound_by_word(facts.cmdline.running)
    since_start = all(one.address in ours or facts.kept_by_hand(one) for one in facts.functions(slot))
    return since_start and remapping.has_it_now(facts, slot)


def gvt_g(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """Nobody counts on GVT-g where the processor's graphics never had it."""
    shown = _integrated(facts.functions(slot))
    words = f"{facts.cmdline.others} {facts.cmdline.running}".split()
    if shown is None or _GVT_G not in words or any(card_ids.names(row.ids, shown) for row in data().gvt_g):
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) for a VM, on a host that is told to divide it by GVT-g",
            found=f"{_GVT_G} on the kernel command line, and graphics of a kind that GVT-g doesn't know",
            why="GVT-g ended with the 10th generation of Intel's processors (Comet Lake): the word has no effect, "
            "and no virtual card will come",
            next=f"take {_GVT_G} out (/etc/default/grub, or /etc/kernel/cmdline): the VM then gets the card as a "
            "whole; newer generations are divided "
            "by SR-IOV, where their driver has it, and a virtual function is a card of its own here",
        )
    ]


def legacy(facts: HostFacts, name: str, slot: str) -> list[HomelabError]:
    """`legacyIgd`: only Intel's processor graphics, in their own place and as one function, have this mode
    (PVE::QemuServer::PCI)."""
    functions = facts.functions(slot)
    if [one.address for one in functions] == [INTEGRATED] and functions[0].vendor == INTEL:
        return []
    return [
        HomelabError(
            wanted=f"{name} in legacy mode (legacyIgd)",
            found=f"it is {facts.card(slot)}" + (f", {len(functions)} functions" if len(functions) > 1 else ""),
            why=f"only Intel's processor graphics at {INTEGRATED}, alone in their slot, have that mode: Proxmox VE "
            "refuses to start such a VM",
            next="take legacyIgd out",
        )
    ]


def _has_legacy_mode(device: Device) -> bool:
    """Does QEMU switch legacy mode on for it? The card has to be a VGA controller on the host, which the firmware makes
    the first screen alone."""
    return device.class_code.startswith("0300") and any(card_ids.names(row.ids, device) for row in data().legacy_igd)


def legacy_remarks(facts: HostFacts, name: str, slot: str) -> list[str]:
    """What `legacyIgd` doesn't bring on newer graphics: a sentence.

    :param name: of the settings.
    """
    shown = _integrated(facts.functions(slot))
    if shown is None or _has_legacy_mode(shown):
        return []
    reason = (
        "Intel's graphics after Comet Lake have no BIOS for legacy mode, and from version 10.1 on QEMU doesn't "
        "switch it on for them"
        if shown.class_code.startswith("0300")
        else "the host's firmware doesn't use these graphics for its screen, and QEMU has no legacy mode for such "
        "ones (make them the first display in its set-up)"
    )
    return [
        f"gpus.{name}: {reason}: the VM shows nothing on them before its system's driver starts. Without legacyIgd "
        "the VM can have q35 and UEFI, and "
        "computes and encodes as well; a screen from the start takes a romfile for UEFI and x-igd-lpc=on in the "
        "VM's `args`, which only root can write"
    ]


def rom_remarks(facts: HostFacts, name: str, slot: str, *, romfile: str | None, legacy_igd: bool) -> list[str]:
    """What a VM may see of the card's ROM, where it is given no file for it: a sentence each.

    :param name: of the settings.
    """
    functions = facts.functions(slot)
    shown = next((one for one in functions if one.is_display and not one.physfn), None)
    if shown is None or romfile or legacy_igd:
        return []
    for row in data().roms:
        if card_ids.names(row.ids, shown):
            return [
                f"gpus.{name}: {row.why}: docs/troubleshooting.md#a-rom-file-for-a-card says how to make it from "
                f"{row.place}, then set romfile"
            ]
    if (integrated := _integrated(functions)) is not None:
        instead = (
            " (a VM with SeaBIOS and machine pc can have legacyIgd instead)" if _has_legacy_mode(integrated) else ""
        )
        return [
            f"gpus.{name}: processor graphics have no ROM for UEFI of their own: the VM shows nothing on them until "
            f"its system's driver starts{instead}"
        ]
    if shown.boot_vga:
        return [
            f"gpus.{name}: the host's firmware has used this card, and may have left a changed copy of its ROM: if "
            "the VM shows nothing on it, "
            "docs/troubleshooting.md#a-rom-file-for-a-card says how to make a file of it, for romfile; best while "
            "another card is the host's screen"
        ]
    return []


def _integrated(functions: Sequence[Device]) -> Device | None:
    """Intel's processor graphics, if they are the card."""
    return next(
        (
            one
            for one in functions
            if one.address == INTEGRATED and one.vendor == INTEL and one.class_code.startswith(DISPLAY)
        ),
        None,
    )
