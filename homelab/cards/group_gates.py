"""The gates of what leaves the host with a card: its IOMMU groups, and what they carry. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from homelab.cards import remapping
from homelab.errors import HomelabError
from homelab.facts import acs
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Gpu, Host

# What makes groups smaller (drivers/pci/pci.c, pci_acs_enabled); with AER: firmware of ASRock's (dockur/windows issue
# 22).
_FIRMWARE = "switch ACS on in the firmware's setup, with IOMMU and AER, which some boards want for it"


def without_group(facts: HostFacts, slot: str) -> list[Device]:
    """The functions of a card that are in no IOMMU group, although the host has groups."""
    return [device for device in facts.functions(slot) if device.group is None] if facts.iommu.groups else []


def grouped(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: every function of the card is in an IOMMU group, if the host has groups. The word igfx_off leaves Intel's
    processor graphics out (drivers/iommu/intel/iommu.c, disable_igfx_iommu)."""
    if outside := without_group(facts, slot):
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
            else "look for it in `dmesg | grep -iE 'DMAR|AMD-Vi'`; an update of the firmware may put it under the "
            "IOMMU",
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
    others = [device for device in facts.others_in_group(slot) if device.address not in gpu.allow_group_members]
    if others and not without_group(facts, slot):
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) alone in its IOMMU group",
            found=f"it shares its {predicted(facts)}IOMMU group with {'; '.join(map(facts.describe, others))}",
            why="starting a VM with the card takes every device of the group from the host; with a disk or a "
            "network card it goes down",
            next=f"{_FIRMWARE}, or put the card into another slot; a device that may leave the host with the card is "
            f"named in gpus.{name}.allowGroupMembers{remapping.override_hint(facts, slot)}",
        )


def predicted(facts: HostFacts) -> str:
    """`predicted `, for messages, while the host has no groups; else empty."""
    return "" if facts.iommu.groups else "predicted "


def _carried(facts: HostFacts, devices: Sequence[Device], *, with_unknown: bool = True) -> list[str]:
    """The storage and the network that the host can't do without, and that devices carry, a text each.

    :param with_unknown: also what carries it nobody knows, if one of the devices may be it.
    """
    needs = [need for need in facts.vital if need.kind != "keyboard"]
    found = [
        f"{facts.describe(device)} carries {', '.join(names)}"
        for device in devices
        if (names := [need.name for need in needs if device.address in need.devices])
    ]
    doubtful = "; ".join(facts.describe(device) for device in devices if device.may_carry)
    if with_unknown and doubtful:
        found += [f"what carries {need.name} isn't known: {need.trouble}; {doubtful}" for need in needs if need.trouble]
    return found


def vital(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no storage or network that the host can't do without leaves with the card or its groups. No setting opens
    it."""
    found = _carried(facts, leaving_functions(facts, slot))
    if found and not without_group(facts, slot):
        is_predicted = not facts.iommu.groups and _carried(facts, facts.others_in_group(slot))
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) without anything that the host can't do without",
            found=f"of the card, or in its {predicted(facts)}IOMMU group: {'; '.join(found)}",
            why="a VM's start takes it from the host, which then loses its disk or its network and goes down; no "
            "setting allows that",
            next=f"{_FIRMWARE}, put the card into another slot, or connect the disk or the network cable to another "
            f"controller{'' if is_predicted else remapping.override_hint(facts, slot)}; or, if the host can do without "
            "it, end what uses it (`umount`, `zpool export`, `vgchange -an` for a guest's LVM, `ip link set NAME "
            "down`); then run `pulumi up` again" + (remapping.SWITCH_ON if is_predicted else ""),
        )


def split_groups(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> Iterator[HomelabError]:
    """A gate: iommu.acsOverride splits no card from a function that carries storage or network of the host.

    Functions that the override splits can reach each other's memory past the IOMMU: a guest with the card could write
    to the root disk's controller. If the functions that carry them are unknown, a card that this program has bound
    already, under the same override, isn't refused.
    """
    override = acs.override(f"{acs.WORD}={host.iommu.acs_override or ''}", facts.kernel)
    if not override:
        return
    is_running, bound = not (override - facts.acs_running), bound_by_word(facts.cmdline.running)
    for name, slot in slots.items():
        if not host.gpus[name].may_leave:
            continue
        is_bound = is_running and all(function.address in bound for function in facts.functions(slot))
        if found := _carried(facts, remapping.taken_apart(facts, slot), with_unknown=not is_bound):
            yield HomelabError(
                wanted=f"gpus.{name} ({facts.card(slot)}) taken out of its IOMMU group by iommu.acsOverride",
                found=f"in the card's IOMMU group without the override: {'; '.join(found)}",
                why="the override only hides that these devices can reach each other past the IOMMU: a guest with the "
                "card could write to the host's disk or network controller, and so into the host; no setting allows "
                "that",
                next="put the card, or the disk or the network cable, into another slot or controller",
            )


def staying_cards_apart(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> Iterator[HomelabError]:
    """A gate: no card that stays with the host is in the group of a card that a VM gets."""
    for name, other in itertools.permutations(slots, 2):
        is_one_left = gpus[name].may_leave and not gpus[other].may_leave
        if is_one_left and any(
            device in facts.functions(slots[other]) for device in facts.others_in_group(slots[name])
        ):
            yield HomelabError(
                wanted=f"gpus.{other} ({facts.card(slots[other])}) with the host (use: {gpus[other].use}) while a VM "
                f"has gpus.{name} ({facts.card(slots[name])})",
                found=f"both are in one {predicted(facts)}IOMMU group",
                why=f"a VM's start with {name} takes every device of the group from the host, {other} too",
                next="put one of them into another slot, or give both to the same VM",
            )
