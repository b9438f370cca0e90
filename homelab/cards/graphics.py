"""Gates and remarks for AMD's and Intel's graphics as cards of VMs, beyond those for every card (graphics.yaml has the
data). Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from homelab import tables
from homelab.cards import ids as card_ids
from homelab.cards import remapping, resets
from homelab.errors import HomelabError
from homelab.facts.classes import DISPLAY, INTEL
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Gpu

# Where every Intel processor has its graphics.
INTEGRATED = "0000:00:02.0"


class RebindingRow(tables.SourcedRow):
    """Kernels that crash when a function is unbound from this driver."""

    driver: str
    kernels: tuple[str, ...] = Field(min_length=1)
    why: str


class RomRow(card_ids.CardRow):
    """Cards that need a ROM file in a guest. `place`: where the ROM comes from."""

    place: str = Field(alias="from")
    why: str


class UnstartedRow(card_ids.CardRow):
    """Cards that their own driver must start before vfio-pci has them. `only_reset`: the kernel's only way to reset
    them."""

    driver: str
    only_reset: str = Field(alias="only-reset")
    why: str


class Data(BaseModel):
    """The content of graphics.yaml, which explains its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rebinding: tuple[RebindingRow, ...]
    roms: tuple[RomRow, ...]
    unstarted: tuple[UnstartedRow, ...]


@functools.cache
def data() -> Data:
    """graphics.yaml, parsed and checked."""
    return Data.model_validate(tables.read(Path(__file__).with_suffix(".yaml")))


def rebound(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: no function of the card is unbound from a running driver on a kernel that crashes of it.

    What is bound at boot never had another driver. Proxmox VE unbinds virtual functions and members of the group when
    the VM starts (PVE::SysFSTools::pci_dev_bind_to_vfio).
    """
    leaving = [device for device in facts.functions(slot) if device.physfn]
    leaving += [device for device in facts.others_in_group(slot) if device.address in gpu.allow_group_members]
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) taken from the host while it runs",
            found=f"the kernel {facts.kernel}, and {'; '.join(map(facts.describe, on_driver))} on {row.driver}",
            why=f"{row.why} ({row.source}); the start of a VM with it would do that",
            next="update the host's kernel (`apt full-upgrade`), reboot, and run `pulumi up` again",
        )
        for row in data().rebinding
        if (on_driver := [device for device in leaving if device.driver == row.driver]) and facts.kernel in row.kernels
    ]


def unstarted(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: the card isn't one that fails if vfio-pci has it before its own driver has started it, which is so after
    each boot with this program's word."""
    display = next((device for device in facts.functions(slot) if device.is_display and not device.physfn), None)
    row = next((row for row in data().unstarted if display is not None and row.has(display)), None)
    if row is None or display is None or gpu.allow_unstarted or _runs_since_boot(facts, slot):
        return
    reset_methods = resets.methods(facts, display.address)
    if reset_methods is not None and set(reset_methods) - {row.only_reset}:
        return
    yield HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) for a VM, on vfio-pci from the host's start on",
        found=f"it is a card of the kind {row.name}, which "
        + (
            f"is reset by {', '.join(reset_methods) or 'nothing'}"
            if reset_methods is not None
            else "the kernel doesn't say how it resets"
        ),
        why=f"{row.why} ({row.source}); {row.driver} has to start it first, and this program binds it before that",
        next=f"leave the card with {row.driver} (gpus.{name}.use: host or lxc); a hookscript of your own can take "
        "it from there when a VM starts. To try it in a VM all the same, if you can switch the host off when "
        f"it doesn't start, set gpus.{name}.allowUnstarted: true",
    )


def _runs_since_boot(facts: HostFacts, slot: str) -> bool:
    """Whether a VM runs with the card, which has been on vfio-pci since the boot."""
    homelab_bound = bound_by_word(facts.cmdline.running)
    since_start = all(device.address in homelab_bound or facts.kept_by_hand(device) for device in facts.functions(slot))
    return since_start and remapping.runs_in_vm(facts, slot)


def rom_remarks(facts: HostFacts, name: str, slot: str, *, has_file: bool) -> list[str]:
    """Remarks on a card's ROM, which a VM without a ROM file may lack or find changed: a sentence each.

    :param name: of the settings.
    """
    functions = facts.functions(slot)
    display = next((device for device in functions if device.is_display and not device.physfn), None)
    if display is None or has_file:
        return []
    for row in data().roms:
        if row.has(display):
            return [
                f"gpus.{name}: {row.why}: docs/troubleshooting.md#a-rom-file-for-a-card says how to make it from "
                f"{row.place}, then set romfile"
            ]
    if integrated_of(functions) is not None:
        return [
            f"gpus.{name}: processor graphics have no ROM for UEFI of their own: the VM shows nothing on them until "
            "its system's driver starts (up to Comet Lake, legacy-igd=1 in a hostpci line of your own changes that; "
            "takeOver keeps it)"
        ]
    if display.boot_vga:
        return [
            f"gpus.{name}: the host's firmware has used this card, and may have left a changed copy of its ROM: if the "
            "VM shows nothing on it, docs/troubleshooting.md#a-rom-file-for-a-card says how to make a file of it "
            "for romfile"
        ]
    return []


def integrated_of(functions: Sequence[Device]) -> Device | None:
    """Intel's processor graphics, if they are the card."""
    return next(
        (
            device
            for device in functions
            if device.address == INTEGRATED and device.vendor == INTEL and device.class_code.startswith(DISPLAY)
        ),
        None,
    )
