"""Remarks on a host's cards: what is good to know of them and stops nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from homelab.cards import consoles, released, remapping, unfit
from homelab.cards.group_gates import leaving_functions
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Host


def remarks(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[str]:
    """Remarks on the cards, which refuse nothing: a sentence each."""
    sentences = [*remapping.remarks(facts, host, slots)]
    for name, slot in slots.items():
        sentences += unfit.remarks(facts, f"gpus.{name}", slot) if host.gpus[name].may_leave else []
        if host.gpus[name].use == "vm":
            sentences += _card_remarks(facts, host, name, slot)
        else:
            sentences += _vgpu_remarks(facts, name, slot)
            sentences += _unknown_binding_remarks(facts, name, slot)
            sentences += _taken_back_remarks(facts, host, name, slots)
            sentences += _named_remarks(facts, host, name, slots)
    of_vms = [slot for name, slot in slots.items() if host.gpus[name].use == "vm"]
    if of_vms and facts.vfio_mentions:
        sentences.append(f"vfio-pci is also in files of others, left as they are: {', '.join(facts.vfio_mentions)}")
    return [*sentences, *_keyboard_remarks(facts, of_vms)]


def _card_remarks(facts: HostFacts, host: Host, name: str, slot: str) -> Iterator[str]:
    functions, in_group = facts.functions(slot), facts.others_in_group(slot)
    left = [device for device in facts.in_slot(slot) if device not in functions and device not in in_group]
    if left := [device for device in left if not _given_apart(facts, slot, device.address)]:
        yield f"gpus.{name}: in the same slot, but left with the host: {'; '.join(map(facts.describe, left))}"
    path = facts.path_of(slot).split(";")
    if len(path) > 1 and not any(_given_apart(facts, slot, address) for address in path):
        yield (
            f"gpus.{name}: its mapping offers {path[0]} alone, since Proxmox VE compares a mapping's id with each of "
            f"its functions; all of them ({', '.join(path)}) go with byAddress"
        )
    if owner := next((device.physfn for device in functions), ""):
        yield (
            f"gpus.{name} is a virtual function of {owner}: Proxmox VE binds it when its VM starts. You make it "
            "yourself (sysfs.conf, a module's option), at each boot before the VM starts"
        )
    yield from consoles.remarks(facts, host, f"gpus.{name}", slot)
    leaving = [device.address for device in leaving_functions(facts, slot) if device.driver != "vfio-pci"]
    if holders := facts.holders_of(leaving):
        yield f"gpus.{name} is in use by {', '.join(map(str, holders))}: after the reboot the card is gone for them"
    if any(facts.pluggable(device.address) for device in functions):
        yield (
            f"gpus.{name} hangs on an external port (Thunderbolt, USB4): connect it and switch it on before the host "
            "starts; homelab binds none that comes later, but leaves ids for vfio-pci that you have set and that do"
        )


def _given_apart(facts: HostFacts, slot: str, address: str) -> bool:
    """Whether a VM has a function of the slot by an option of its own, which doesn't give the card's graphics."""
    graphics_function = facts.path_of(slot).partition(";")[0]
    return any(
        facts.options_of(address, user.vmid).keys() - facts.options_of(graphics_function, user.vmid).keys()
        for user in facts.users_of(address)
    )


def _keyboard_remarks(facts: HostFacts, vm_slots: list[str]) -> Iterator[str]:
    addresses = {device.address for slot in vm_slots for device in leaving_functions(facts, slot)}
    keyboards = [keyboard for keyboard in facts.vital if keyboard.kind == "keyboard"]
    if keyboards and all(addresses.intersection(keyboard.devices) for keyboard in keyboards):
        yield (
            f"the host's last keyboard goes with a card: {', '.join(keyboard.name for keyboard in keyboards)}; its "
            "console takes no input then"
        )


def _vgpu_remarks(facts: HostFacts, name: str, slot: str) -> Iterator[str]:
    """The remark on a card of NVIDIA's that stays with a host of vGPUs: one sentence or none (DualCoder/vgpu_unlock
    issue 51, novidio/unraid-novidio-vgpu-driver issue 11)."""
    if facts.vgpu_signs and any(device.is_nvidia for device in facts.functions(slot)):
        yield (
            f"gpus.{name}: the host has NVIDIA's vGPU driver ({'; '.join(facts.vgpu_signs)}), which is for VMs: "
            "nvidia-smi works with it on the host and in containers, and CUDA doesn't, unless somebody has merged it "
            "with the ordinary driver"
        )


def _unknown_binding_remarks(facts: HostFacts, name: str, slot: str) -> Iterator[str]:
    """The remark on a card that stays and that something unknown has put on vfio-pci, or kept for it: one sentence or
    none. A rule of udev's leaves a function without a driver where vfio-pci was loaded before."""
    homelab_bound = bound_by_word(facts.cmdline.running)
    bound = [
        f"{device.address} is on {device.driver or 'no driver'}"
        for device in facts.functions(slot)
        if device.driver == "vfio-pci" or (not device.driver and facts.vfio_mentions)
        if device.address not in homelab_bound and not facts.kept_by_hand(device)
    ]
    if bound and not any(user.running for user in facts.users_of(slot)):
        places = ", ".join(facts.vfio_mentions) or "driverctl, a script, or a VM that had it"
        yield f"gpus.{name}: {', '.join(bound)}, not by this program, and that stays so: look at {places}"


def _taken_back_remarks(facts: HostFacts, host: Host, name: str, slots: Mapping[str, str]) -> Iterator[str]:
    """The remark on a card that stays and that homelab's word takes from other configuration: one sentence or none."""
    bound = [device for device in facts.functions(slots[name]) if facts.kept_by_hand(device)]
    if bound and (word := released.word(facts, host, slots)):
        kept = ", ".join(sorted(released.kept(facts, host, slots)))
        yield (
            f"gpus.{name}: {', '.join(device.address for device in bound)} is on vfio-pci by "
            f"{', '.join(facts.who_binds(bound))}: from the next start on {word} on the kernel "
            "command line counts instead, until `pulumi destroy`; nothing else is changed there"
            + (f"; {kept}, which the same ids name, stays on vfio-pci by homelab.vfio=" if kept else "")
        )


def _named_remarks(facts: HostFacts, host: Host, name: str, slots: Mapping[str, str]) -> Iterator[str]:
    """The remark on a card that stays, and that other configuration than this program's names for vfio-pci, without
    effect so far: one sentence or none."""
    named = [device for device in facts.functions(slots[name]) if facts.named_at_next_boot(device)]
    stronger = released.stronger_than_words(facts, named)
    is_there = any(device.driver == "vfio-pci" for device in named)
    if named and not is_there and (stronger or not released.word(facts, host, slots)):
        yield (
            f"gpus.{name}: {', '.join(facts.who_binds(named))} names {', '.join(device.address for device in named)} "
            "for vfio-pci, without effect so far; from the next start on the card may be there, without the host's "
            "driver: "
            + (f"{stronger}: take that out there" if stronger else "takeOver: true for the host keeps it with the host")
        )
