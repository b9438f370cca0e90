"""What must hold before a host is changed, in the order in which it is checked. A gate that can't be decided is closed.

Each gate is a function from facts and settings to errors, so that a preview and an `up` refuse the same things with the same
words. Opting out is one named setting per gate.
"""

from __future__ import annotations

from homelab.errors import HomelabError
from homelab.host.classes import NVIDIA
from homelab.host.facts import Device, HostFacts, Vital, bound_by_word
from homelab.settings import Gpu, Host


def resolve(facts: HostFacts, gpus: dict[str, Gpu]) -> tuple[dict[str, str], list[HomelabError]]:
    """GPU name -> slot (``0000:01:00``), and what can't be resolved: no such card, several, or one under two names."""
    slots: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, gpu in gpus.items():
        devices = [device for device in facts.devices if _is(device, gpu)]
        virtual = [device for device in devices if device.physfn]
        found = sorted({device.slot for device in devices if not device.physfn})
        if virtual and not found:
            errors.append(_virtual(facts, name, virtual[0]))
        elif len(found) == 1 and found[0] not in slots.values():
            slots[name] = found[0]
        elif len(found) == 1:
            errors.append(_twice(name, next(other for other, slot in slots.items() if slot == found[0]), found[0]))
        else:
            errors.append(_unresolved(facts, name, gpu, found))
    return slots, errors


def _is(device: Device, gpu: Gpu) -> bool:
    if gpu.address is not None and gpu.address not in (device.slot, device.address):
        return False
    # It is what makes a card, also by address alone: buses are renumbered when hardware changes.
    return device.is_display and (gpu.match is None or device.id == gpu.match)


def _cards(facts: HostFacts) -> str:
    return "; ".join(facts.card(device.address) for device in facts.display_devices) or "no graphics card at all"


def _twice(name: str, other: str, slot: str) -> HomelabError:
    return HomelabError(
        wanted=f"gpus.{name} and gpus.{other} to be two cards",
        found=f"both are the one in {slot}",
        why="one card can be given away only once",
        next="correct their `match` or `address`",
    )


def _unresolved(facts: HostFacts, name: str, gpu: Gpu, found: list[str]) -> HomelabError:
    wanted = " at ".join(part for part in (gpu.match or "a graphics card", gpu.address) if part)
    if found:
        return HomelabError(
            wanted=f"gpus.{name}: one card ({wanted})",
            found=f"{len(found)}: {', '.join(found)}",
            why="identical cards can't be told apart by their id",
            next=f'add `address: "{found[0]}"` (or another of them) to gpus.{name}',
        )
    # Something else may be there by that id or address, such as the card's audio function.
    other = next((one for one in facts.devices if not one.is_display and _named(one, gpu)), None)
    if other is not None:
        card = next((one for one in facts.functions(other.slot) if one.is_display), None)
        return HomelabError(
            wanted=f"gpus.{name}: a card ({wanted})",
            found=f"{facts.describe(other)}"
            + (f"; the graphics card of its slot is {facts.describe(card)}" if card else ""),
            why="a card is named by its graphics function; what else belongs to it follows",
            next=f'set `address: "{card.slot}"` or `match: {card.id}`'
            if card
            else "correct `match` or `address` (see `lspci -nn`)",
        )
    return HomelabError(
        wanted=f"gpus.{name}: a card ({wanted})",
        found=f"graphics cards here: {_cards(facts)}",
        why="nothing is bound in place of a card that isn't there",
        next="correct `match` or `address`; if the card is missing from `lspci -nn`, look at its power and its slot",
    )


def _named(device: Device, gpu: Gpu) -> bool:
    by_address = gpu.address in (None, device.address) or (gpu.match is not None and gpu.address == device.slot)
    return by_address and gpu.match in (None, device.id)


def _virtual(facts: HostFacts, name: str, device: Device) -> HomelabError:
    return HomelabError(
        wanted=f"gpus.{name}: a card",
        found=f"{facts.describe(device)} is a virtual function of {device.physfn} (SR-IOV)",
        why="virtual functions are made while the host runs, long after its initramfs: homelab can't bind them at boot",
        next="give it to the VM with a PCI mapping of your own (Datacenter -> Resource Mappings), which needs no binding at boot",
    )


def tools(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """What the scripts call, and a boot loader that is known for certain."""
    errors = []
    if facts.missing_tools:
        errors.append(
            HomelabError(
                wanted="the commands that configure and verify the boot",
                found=f"missing: {', '.join(facts.missing_tools)}",
                why="the change could not be made, or not be verified",
                next="install their packages (initramfs-tools, pciutils, util-linux, grub or proxmox-kernel-helper)",
            )
        )
    if not facts.loader:
        errors.append(
            HomelabError(
                wanted="to know which boot loader makes the kernel command line",
                found=facts.loader_clues,
                why="the wrong one would be configured without effect",
                next="see `proxmox-boot-tool status`; take the UUID of an ESP that the host isn't started from any more out of "
                "/etc/kernel/proxmox-boot-uuids, and run `pulumi up` again",
            )
        )
    return errors


def iommu(facts: HostFacts, host: Host) -> list[HomelabError]:
    """The IOMMU can be on: the firmware offers it, nothing on the command line switches it off for good."""
    if not (host.wants_iommu or host.gives_cards):
        return []
    errors = []
    intel = facts.cpu_vendor == "GenuineIntel"
    name = "Intel VT-d" if intel else "AMD-Vi (IOMMU)"
    if not facts.iommu.tables and facts.iommu.groups == 0:
        errors.append(
            HomelabError(
                wanted=f"{name} switched on in the firmware",
                found=f"no {'DMAR' if intel else 'IVRS'} table in /sys/firmware/acpi/tables, and no IOMMU group",
                why="without it no PCI device can be given to a guest, whatever the kernel is told",
                next=f"enter the firmware setup (BIOS/UEFI) of the host, switch on {name}, and run `pulumi up` again",
            )
        )
    words = facts.cmdline.others.split()
    # intel_iommu=on after intel_iommu=off wins; the others are never taken back (arch/x86/kernel/pci-dma.c, amd/init.c).
    for word in ("iommu=off", *(() if intel else ("amd_iommu=off",))):
        if word in words:
            errors.append(
                HomelabError(
                    wanted="an IOMMU that the kernel uses",
                    found=f"{word} on the kernel command line, put there by somebody else",
                    why="the kernel never takes that word back, whatever follows it",
                    next=f"remove {word} (/etc/default/grub, or /etc/kernel/cmdline), and run `pulumi up` again",
                )
            )
    return errors


def room(facts: HostFacts, host: Host) -> list[HomelabError]:
    """/boot takes the new initramfs, which is written beside the old one (the largest one, plus a tenth)."""
    made = any(file.path.endswith("/init-top/homelab-vfio") and file.state == "ok" for file in facts.managed)
    needed = facts.largest_initramfs * 11 // 10
    if not host.gives_cards or (made and not facts.stale_initramfs) or facts.boot_free >= needed:
        return []
    return [
        HomelabError(
            wanted=f"room on /boot for a new initramfs ({needed // 2**20 + 1} MiB)",
            found=f"{facts.boot_free // 2**20} MiB free",
            why="update-initramfs would fail half-way and leave kernels without the binding",
            next="remove old kernels (`apt autoremove --purge`; `dpkg -l 'proxmox-kernel-*'`), then run `pulumi up` again",
        )
    ]


def one_function(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """No function of the card has virtual functions: vfio-pci refuses a card with SR-IOV on (drivers/vfio/pci/vfio_pci_core.c)."""
    shared = [device for device in facts.functions(slot) if device.vfs]
    if not shared:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) whole",
            found="; ".join(
                f"{facts.describe(device)} has {device.vfs} virtual functions (SR-IOV)" for device in shared
            ),
            why="vfio-pci takes no card that is split into virtual functions, and who uses one of them would lose it",
            next=f"switch them off where they are switched on (`echo 0 >/sys/bus/pci/devices/{shared[0].address}/sriov_numvfs`; "
            "a module's option such as i915.max_vfs, sysfs.conf), or give virtual functions to VMs with PCI mappings of your own",
        )
    ]


def _outside(facts: HostFacts, slot: str) -> list[Device]:
    """The functions of a card that are in no group, although the host has groups."""
    return [device for device in facts.functions(slot) if device.group is None] if facts.iommu.groups else []


def grouped(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """Every function of the card is in an IOMMU group, where there are groups."""
    outside = _outside(facts, slot)
    if not outside:
        return []
    words = [word for word in facts.cmdline.running.split() if "igfx_off" in word]
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) in an IOMMU group",
            found=f"the host has {facts.iommu.groups} groups, and in none of them is {'; '.join(map(facts.describe, outside))}"
            + (f"; the kernel was started with {' '.join(words)}" if words else ""),
            why="the IOMMU doesn't translate for it: Proxmox VE refuses to give such a device to a VM",
            next=f"take igfx_off out of where the words are (/etc/default/grub, or /etc/kernel/cmdline), {_new_entries(facts)}, and reboot"
            if words
            else "look for it in `dmesg | grep -iE 'DMAR|AMD-Vi'`; an update of the firmware may put it under the IOMMU",
        )
    ]


def _new_entries(facts: HostFacts) -> str:
    """What brings changed words of the kernel command line into the boot entries."""
    return "`proxmox-boot-tool refresh`" if facts.loader == "systemd-boot" else "`update-grub`"


def _going(facts: HostFacts, slot: str) -> list[Device]:
    """Everything that a VM's start with the card takes from the host."""
    return [*facts.functions(slot), *([] if _outside(facts, slot) else facts.others_in_group(slot))]


def isolation(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card's IOMMU group holds nothing but the card and bridges: starting a VM takes the whole group from the host."""
    if _outside(facts, slot):
        return []  # without a group, nothing can be said of what is in it
    others = [device for device in facts.others_in_group(slot) if device.address not in gpu.allow_group_members]
    if not others:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) alone in its IOMMU group",
            found=f"with it in the {predicted(facts)}group: {'; '.join(map(facts.describe, others))}",
            why="starting a VM with the card takes every device of the group from the host; with a disk or a network card it goes down",
            next="put the card into another slot, or switch ACS on in the firmware; a device that may go along is named in "
            f"gpus.{name}.allowGroupMembers",
        )
    ]


def predicted(facts: HostFacts) -> str:
    """``predicted `` while there are no groups to be read."""
    return "" if facts.iommu.groups else "predicted "


def vital(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """Nothing that the host can't do without goes with the card, or as a member of its group. No setting opens this gate."""
    if _outside(facts, slot):
        return []
    going = {device.address: device for device in _going(facts, slot)}
    errors = []
    needed = [one for one in facts.vital if one.kind != "keyboard"]
    for address, device in going.items():
        carried = [one.name for one in needed if address in one.devices]
        if carried:
            errors.append(_carries(facts, name, slot, device, carried))
    doubtful = [device for device in going.values() if device.may_carry]
    unknown = [one for one in needed if one.trouble]
    if doubtful and unknown and not errors:
        errors.append(_unknown_carrier(facts, name, slot, doubtful, unknown))
    return errors


def _carries(facts: HostFacts, name: str, slot: str, device: Device, carried: list[str]) -> HomelabError:
    own = device.address in {one.address for one in facts.functions(slot)}
    how = "is a function of the card" if own else f"is in the card's {predicted(facts)}IOMMU group"
    return HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) without anything that the host can't do without",
        found=f"{facts.describe(device)}, which {how}, carries {', '.join(carried)}",
        why="a VM's start takes it from the host, which then loses its disk or its network and goes down; no setting allows that",
        next="connect the disk or the network cable to another controller, or put the card into another slot, and run `pulumi up` again"
        + ("" if own or facts.iommu.groups else SWITCH_ON),
    )


# A prediction may hold too much; what the group really is, the running IOMMU tells.
SWITCH_ON = "; or run it with iommu.enable: true and without the card first: once the IOMMU is on, the real groups are read instead"


def _unknown_carrier(
    facts: HostFacts, name: str, slot: str, doubtful: list[Device], unknown: list[Vital]
) -> HomelabError:
    return HomelabError(
        wanted=f"to know what carries {', '.join(one.name for one in unknown)}, before anything that may carry it goes with gpus.{name} ({facts.card(slot)})",
        found="; ".join(one.trouble for one in unknown)
        + f"; with the card go {'; '.join(map(facts.describe, doubtful))}",
        why="a VM's start would take its own disk or network from the host, which then goes down; no setting allows that",
        next="put the card into a slot where it is alone in its group",
    )


def kept(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """No card that stays with the host is in the group of one that a VM gets."""
    errors = []
    staying = {name: slot for name, slot in slots.items() if gpus[name].use != "vm"}
    for name, slot in slots.items():
        if gpus[name].use != "vm":
            continue
        going = {device.address for device in facts.others_in_group(slot)}
        for other, place in staying.items():
            if going & {device.address for device in facts.functions(place)}:
                errors.append(
                    HomelabError(
                        wanted=f"gpus.{other} ({facts.card(place)}) with the host (use: {gpus[other].use}) while a VM has gpus.{name} ({facts.card(slot)})",
                        found=f"both are in one {predicted(facts)}IOMMU group",
                        why=f"a VM's start with {name} takes every device of the group from the host, {other} too",
                        next="put one of them into another slot, or give both to the same VM",
                    )
                )
    return errors


def by_hand(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A card that stays with the host isn't bound to vfio-pci by other configuration than this program's, which it leaves alone."""
    bound = [device for device in facts.functions(slot) if device.address in facts.bound_by_hand()]
    if not bound:
        return []
    binds = facts.who_binds(bound) or ["vfio-pci's ids"]
    by_words = any("on the kernel command line" in one for one in binds)
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver (use: {gpu.use})",
            found=f"{', '.join(device.address for device in bound)} on vfio-pci, by {', '.join(binds)}",
            why="that was not written by this program, which doesn't take it away: the card would stay without the host's driver",
            next=f"take {', '.join(sorted({device.id for device in bound}))} out there, `update-initramfs -u -k all`"
            + (f", {_new_entries(facts)}" if by_words else "")
            + f", reboot, and run `pulumi up` again; or set gpus.{name}.use: vm",
        )
    ]


def console(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """Neither the card nor a member of its group is the screen on which the firmware and the host's console show."""
    screens = [device for device in _going(facts, slot) if device.boot_vga]
    if gpu.allow_console or not screens:
        return []
    own = screens[0] in facts.functions(slot)
    which = "this card" if own else f"{facts.describe(screens[0])}, which is in its {predicted(facts)}IOMMU group,"
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) not to be the host's console",
            found=f"the firmware uses {which} as its screen (boot_vga)",
            why="once it is bound, the host shows nothing on its screen after the boot menu; it can be reached over the network only",
            next="make the other card the primary one in the firmware, or accept it with "
            f"gpus.{name}.allowConsole: true (the boot entry 'without GPU passthrough' gives the screen back)",
        )
    ]


def containers(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """No container uses the card, or another one of its group, through the host's driver."""
    mine = {device.address for device in _going(facts, slot)}
    minors = {minor for address, minor in facts.nvidia_minors.items() if address in mine}
    users = [
        guest.id
        for guest in facts.guests.configs
        if guest.kind == "lxc"
        and guest.id not in gpu.allow_containers
        and any(entry.takes(f"/dev/nvidia{minor}") for entry in guest.container.entries for minor in minors)
    ]
    if not users:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) free to be taken from the host",
            found=f"containers that use it: {', '.join(str(ctid) for ctid in users)}",
            why="on vfio-pci the card has no /dev/nvidia node any more: these containers would not start, or run without it",
            next=f"take the card out of them first, or accept it with gpus.{name}.allowContainers: {users}",
        )
    ]


def check(facts: HostFacts, host: Host) -> tuple[dict[str, str], list[HomelabError]]:
    """All gates. Returns the slot of each GPU that could be resolved, and every reason not to go on."""
    slots, unresolved = resolve(facts, host.gpus)
    errors = [*tools(facts, host), *iommu(facts, host), *room(facts, host), *unresolved]
    for name, slot in slots.items():
        gpu = host.gpus[name]
        for gate in GIVEN if gpu.use == "vm" else STAYING:
            errors += gate(facts, name, gpu, slot)
    return slots, errors + kept(facts, host.gpus, slots)


# What is checked of a card that goes to a VM, before anything is changed; of one that stays; and once there are real groups.
GIVEN = (one_function, grouped, isolation, vital, console, containers)
STAYING = (by_hand,)
VERIFIED = (grouped, isolation, vital)


def remarks(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[str]:
    """What is no reason to refuse a card, and must not come as a surprise: a sentence each."""
    given = {name: slot for name, slot in slots.items() if host.gpus[name].use == "vm"}
    return [
        *(said for name, slot in given.items() for said in _about(facts, host, name, slot)),
        *_keyboards(facts, given),
        *(said for name, slot in slots.items() if name not in given for said in _stays_bound(facts, name, slot)),
    ]


def _about(facts: HostFacts, host: Host, name: str, slot: str) -> list[str]:
    said = []
    mine = facts.functions(slot)
    left = [
        device for device in facts.in_slot(slot) if device not in mine and device not in facts.others_in_group(slot)
    ]
    if left:
        said.append(f"gpus.{name}: stays with the host, though in its slot: {'; '.join(map(facts.describe, left))}")
    path = facts.path_of(slot)
    if host.api and ";" in path:
        shown = next(device for device in mine if device.is_display)
        said.append(
            f"gpus.{name}: its mapping offers {shown.address} alone, since Proxmox VE compares a mapping's id with each of its functions; "
            f"all of them ({path.replace(';', ', ')}) go with byAddress"
        )
    holders = facts.using(device.address for device in _going(facts, slot) if device.driver != "vfio-pci")
    if holders:
        said.append(
            f"gpus.{name} is in use by {', '.join(map(str, holders))}: after the reboot the card is gone for them"
        )
    if any(facts.pluggable(device.address) for device in mine):
        said.append(
            f"gpus.{name} hangs on an external port (Thunderbolt, USB4): it must be connected and on when the host starts; "
            "homelab binds none that comes later"
            + ("; ids for vfio-pci that were set by hand do, so takeOver leaves these" if host.take_over else "")
        )
    return said


def _keyboards(facts: HostFacts, given: dict[str, str]) -> list[str]:
    going = {device.address for slot in given.values() for device in _going(facts, slot)}
    keyboards = [one for one in facts.vital if one.kind == "keyboard"]
    lost = [one for one in keyboards if going.intersection(one.devices)]
    if not lost or len(lost) < len(keyboards):
        return []
    return [
        f"the host's last keyboard goes with a card: {', '.join(one.name for one in lost)}; its console takes no input then"
    ]


def _stays_bound(facts: HostFacts, name: str, slot: str) -> list[str]:
    """On vfio-pci by means that aren't known here: nothing is promised of it."""
    ours = bound_by_word(facts.cmdline.running)
    bound = [
        device.address
        for device in facts.functions(slot)
        if device.driver == "vfio-pci" and device.address not in ours and device.address not in facts.bound_by_hand()
    ]
    if not bound or any(user.running for user in facts.guests.users_of(facts.path_of(slot), "")):
        return []
    where = (
        f"look at {', '.join(facts.vfio_mentions)}"
        if facts.vfio_mentions
        else "driverctl, a script, or a VM that had it"
    )
    return [f"gpus.{name}: {', '.join(bound)} is on vfio-pci, not by this program, and stays there: {where}"]


def nvidia_stays(facts: HostFacts, bound: set[str]) -> bool:
    """Does an NVIDIA graphics card stay with the host, given the addresses that go to vfio-pci?"""
    return any(device.vendor == NVIDIA and device.address not in bound for device in facts.display_devices)
