"""The gates of what leaves the host with a card: its IOMMU groups, and what they carry. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from homelab.cards import remapping
from homelab.errors import HomelabError
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts
from homelab.settings import Gpu
from remote_scripts.reading.answer import Vital


def without_group(facts: HostFacts, slot: str) -> list[Device]:
    """The functions of a card that are in no IOMMU group, although the host has groups."""
    return [device for device in facts.functions(slot) if device.group is None] if facts.iommu.groups else []


def grouped(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: every function of the card is in an IOMMU group, if the host has groups. The word igfx_off leaves Intel's
    processor graphics out (drivers/iommu/intel/iommu.c, disable_igfx_iommu)."""
    outside = without_group(facts, slot)
    if not outside:
        return
    words = [word for word in facts.cmdline.running.split() if "igfx_off" in word]
    yield HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) in an IOMMU group",
        found=f"the host has {facts.iommu.groups} groups, and in none of them is "
        f"{'; '.join(map(facts.describe, outside))}"
        + (f"; the kernel was started with {' '.join(words)}" if words else ""),
        why="the IOMMU doesn't translate for it: Proxmox VE refuses to give such a device to a VM",
        next="take igfx_off out of where the words are (/etc/default/grub, or /etc/kernel/cmdline), "
        f"{new_entries(facts)}, and reboot"
        if words
        else "look for it in `dmesg | grep -iE 'DMAR|AMD-Vi'`; an update of the firmware may put it under the IOMMU",
    )


def new_entries(facts: HostFacts) -> str:
    """The command that brings changed words of the kernel command line into the boot entries."""
    return "`proxmox-boot-tool refresh`" if facts.loader == "systemd-boot" else "`update-grub`"


def leaving_functions(facts: HostFacts, slot: str) -> list[Device]:
    """The functions that a VM's start with the card takes from the host: the card's and those of its groups."""
    return [*facts.functions(slot), *([] if without_group(facts, slot) else facts.others_in_group(slot))]


def isolation(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: the card's IOMMU groups hold nothing but the card, bridges and what `allowGroupMembers` names, since a
    VM's start takes the whole group from the host."""
    if without_group(facts, slot):
        return
    others = [device for device in facts.others_in_group(slot) if device.address not in gpu.allow_group_members]
    if not others:
        return
    yield HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) alone in its IOMMU group",
        found=f"it shares its {predicted(facts)}IOMMU group with {'; '.join(map(facts.describe, others))}",
        why="starting a VM with the card takes every device of the group from the host; with a disk or a "
        "network card it goes down",
        next="put the card into another slot, or switch ACS on in the firmware; a device that may leave the host "
        f"with the card is named in gpus.{name}.allowGroupMembers{remapping.override_hint(facts, slot)}",
    )


def predicted(facts: HostFacts) -> str:
    """`predicted `, for messages, while the host has no groups; else empty."""
    return "" if facts.iommu.groups else "predicted "


def vital(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no storage or network that the host can't do without leaves with the card or its groups. No setting opens
    it."""
    if without_group(facts, slot):
        return
    leaving = {device.address: device for device in leaving_functions(facts, slot)}
    needs = [need for need in facts.vital if need.kind != "keyboard"]
    for address, device in leaving.items():
        carried = [need.name for need in needs if address in need.devices]
        if carried:
            yield _carrier_error(facts, name, slot, device, carried)
    doubtful = [device for device in leaving.values() if device.may_carry]
    unknown = [need for need in needs if need.trouble]
    if doubtful and unknown:
        yield _unknown_carrier_error(facts, name, slot, doubtful, unknown)


def _carrier_error(facts: HostFacts, name: str, slot: str, device: Device, carried: list[str]) -> HomelabError:
    is_own = device.address in {function.address for function in facts.functions(slot)}
    relation = "is a function of the card" if is_own else f"is in the card's {predicted(facts)}IOMMU group"
    return HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) without anything that the host can't do without",
        found=f"{facts.describe(device)}, which {relation}, carries {', '.join(carried)}",
        why="a VM's start takes it from the host, which then loses its disk or its network and goes down; no "
        "setting allows that",
        next="connect the disk or the network cable to another controller, or put the card into another slot; or, "
        "if the host can do without it, end what uses it (`umount`, `zpool export`, `vgchange -an` for a guest's LVM, "
        "`ip link set NAME down`); then run `pulumi up` again"
        + ("" if is_own or facts.iommu.groups else remapping.SWITCH_ON),
    )


def _unknown_carrier_error(
    facts: HostFacts, name: str, slot: str, doubtful: list[Device], unknown: list[Vital]
) -> HomelabError:
    return HomelabError(
        wanted=f"to know what carries {', '.join(need.name for need in unknown)}, before a device that may carry it "
        f"leaves the host with gpus.{name} ({facts.card(slot)})",
        found="; ".join(need.trouble for need in unknown)
        + f"; with the card go {'; '.join(map(facts.describe, doubtful))}",
        why="a VM's start would take its own disk or network from the host, which then goes down; no setting allows "
        "that",
        next="put the card into a slot where it is alone in its group",
    )


def staying_cards_apart(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """A gate: no card that stays with the host is in the group of a card that a VM gets."""
    return [
        HomelabError(
            wanted=f"gpus.{other_name} ({facts.card(other_slot)}) with the host (use: {gpus[other_name].use}) while a "
            f"VM has gpus.{name} ({facts.card(slot)})",
            found=f"both are in one {predicted(facts)}IOMMU group",
            why=f"a VM's start with {name} takes every device of the group from the host, {other_name} too",
            next="put one of them into another slot, or give both to the same VM",
        )
        for name, slot in slots.items()
        for other_name, other_slot in slots.items()
        if gpus[name].may_leave
        and not gpus[other_name].may_leave
        and any(device in facts.functions(other_slot) for device in facts.others_in_group(slot))
    ]
