"""What must hold before a host is changed, in the order in which it is checked. A gate that can't be decided is closed.

Each gate is a function from facts and settings to errors, so that a preview and an `up` refuse the same things with the
same words. Opting out is one named setting per gate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from homelab.errors import HomelabError
from homelab.host import consoles, fabric, graphics, ha, kernel_log, options, released, remapping, resets
from homelab.host.classes import NVIDIA, SECURITY_PROCESSOR, USB
from homelab.host.devices import Device
from homelab.host.facts import CardUser, HostFacts, Vital, bound_by_word
from homelab.settings import Gpu, Host


def resolve(facts: HostFacts, gpus: dict[str, Gpu]) -> tuple[dict[str, str], list[HomelabError]]:
    """GPU name -> slot (`0000:01:00`), and what can't be resolved: no such card, several, or one under two names."""
    slots: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, gpu in gpus.items():
        devices = [device for device in facts.devices if _is(device, gpu)]
        # A virtual function is a card of its own, named by its address.
        found = sorted({device.slot for device in devices if not device.physfn}) or sorted(
            device.address for device in devices if device.physfn
        )
        if len(found) == 1 and found[0] not in slots.values():
            slots[name] = found[0]
        elif len(found) == 1:
            errors.append(_twice(name, next(other for other, slot in slots.items() if slot == found[0]), found[0]))
        else:
            errors.append(_unresolved(facts, name, gpu, found))
    return slots, errors


def choosing(facts: HostFacts, gpus: dict[str, Gpu]) -> HostFacts:
    """The same reading, in which a card is the functions that the settings name for it (`functions`), where they do."""
    named = {name: gpu for name, gpu in gpus.items() if gpu.functions}
    slots = resolve(facts, named)[0]
    return facts.model_copy(update={"chosen": {slot: gpus[name].functions for name, slot in slots.items()}})


def _is(device: Device, gpu: Gpu) -> bool:
    # Settings leave out the ".0" of a function. A slot may hold eight virtual functions, and each is another card.
    first = device.address.removesuffix(".0")
    if gpu.address is not None and gpu.address not in (device.address, first if device.physfn else device.slot):
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


# Of April 2024. Every container's dev[n] options are there from 8.1 on.
_OLDEST = (8, 2)


def release(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """Proxmox VE itself. What isn't one has no version, and no guests either."""
    if not facts.pve or tuple(int(number) for number in re.findall(r"\d+", facts.pve)[:2]) >= _OLDEST:
        return []
    return [
        HomelabError(
            wanted="Proxmox VE 8.2 or later on the host",
            found="pveversion gives no answer" if facts.pve == "unknown" else f"Proxmox VE {facts.pve}",
            why="older ones lack options by which guests get their cards; nothing was changed",
            next="see on the host what keeps pveversion from answering, then run `pulumi up` again"
            if facts.pve == "unknown"
            else "update the host (`apt full-upgrade`), reboot, then run `pulumi up` again",
        )
    ]


def writable(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """The cluster, where the host is in one: without a quorum no guest and no mapping can be changed, and none started
    after a reboot."""
    if facts.cluster.quorate:
        return []
    return [
        HomelabError(
            wanted=f"the node {facts.cluster.node} in a cluster that takes changes",
            found="it has no quorum (`pvecm status`): most of the cluster's votes are missing",
            why="/etc/pve can only be read then: guests can't be changed or started, and a reboot would leave them "
            "off; nothing was changed",
            next="bring the missing nodes back, or wait until they are, then run `pulumi up` again",
        )
    ]


def listed(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """The guests that run. One that isn't known to run would lose its card, or its power, unasked."""
    programs = {"vm": ("VMs", "qm"), "lxc": ("containers", "pct")}
    return [
        HomelabError(
            wanted=f"to know which {guests} run",
            found=f"`{program} list` gave no answer",
            why="each guest would count as off, and its card as unused; nothing is done on such a basis",
            next=f"see what `{program} list` says on the host (the service pve-cluster, a storage or a guest may "
            "hang); when it answers, run `pulumi up` again",
        )
        for guests, program in (programs[kind] for kind in facts.guests.unlisted)
    ]


def readable(facts: HostFacts) -> list[HomelabError]:
    """Every file that is decided by: what is in none of its lines is nobody's, and what can't be read may be
    anybody's."""
    if not facts.unreadable:
        return []
    return [
        HomelabError(
            wanted="to read every file that tells who has a card, and what the host can't do without",
            found="; ".join(facts.unreadable),
            why="what stands in what can't be read would count as nothing: a card that a guest uses, as free; "
            "nothing is done on such a basis",
            next="read it on the host yourself (what is below /etc/pve is served by the service pve-cluster); mend "
            "what keeps it from being read, or remove it, "
            "and run `pulumi up` again",
        )
    ]


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
                next="see `proxmox-boot-tool status`; remove from /etc/kernel/proxmox-boot-uuids the UUID of each "
                "ESP that the host no longer starts "
                "from, and run `pulumi up` again",
            )
        )
    return errors


def iommu(facts: HostFacts, host: Host) -> list[HomelabError]:
    """The IOMMU can be on: the firmware offers it, nothing on the command line switches it off for good."""
    if not (host.wants_iommu or host.gives_cards):
        return []
    errors = []
    intel = remapping.is_intel(facts)
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
    # intel_iommu=on after intel_iommu=off wins; the others are never taken back (arch/x86/kernel/pci-dma.c,
    # amd/init.c).
    for word in ("iommu=off", *(() if intel else ("amd_iommu=off",))):
        if word in words:
            errors.append(
                HomelabError(
                    wanted="an IOMMU that the kernel uses",
                    found=f"{word} on the kernel command line, which this program didn't put there",
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
            next="remove old kernels (`apt autoremove --purge`; `dpkg -l 'proxmox-kernel-*'`), then run `pulumi up` "
            "again",
        )
    ]


def named_functions(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The functions that the settings name for the card are there, belong to its slot or its own switch, and its
    picture is among them."""
    if not gpu.functions:
        return []
    around = {device.address: device for device in facts.around(slot)}
    shown = next((one for one in around.values() if one.slot == slot and one.is_display and not one.physfn), None)
    wrong = []
    for address in gpu.functions:
        device = facts.by_address.get(address)
        if device is None:
            wrong.append(f"{address} is not there")
        elif address not in around:
            wrong.append(f"{facts.describe(device)} is neither in the card's slot nor behind a switch on the card")
        elif device.is_bridge or device.physfn:
            wrong.append(
                f"{facts.describe(device)} is a {'bridge' if device.is_bridge else 'virtual function (SR-IOV)'}"
            )
    if shown is not None and shown.address not in gpu.functions:
        wrong.append(f"the graphics function, {shown.address}, is not among them")
    if not wrong:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name}.functions to be functions of the card at {slot}",
            found="; ".join(wrong),
            why="what is named there is bound to vfio-pci at boot: it must be this card's, whatever else the host has",
            next="take the list out: a virtual function is a card of its own"
            if not around
            else f"name functions of {', '.join(around)}, the graphics function among them; what shares only the "
            "IOMMU group is named in "
            f"gpus.{name}.allowGroupMembers",
        )
    ]


def one_function(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """No function of the card has virtual functions: vfio-pci refuses a card with SR-IOV on
    (drivers/vfio/pci/vfio_pci_core.c)."""
    shared = [device for device in facts.functions(slot) if device.vfs]
    if not shared:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) whole",
            found="; ".join(
                f"{facts.describe(device)} has {device.vfs} virtual functions (SR-IOV)" for device in shared
            ),
            why="vfio-pci takes no card that is split into virtual functions, and whoever uses one of them would "
            "lose it",
            next="switch them off where they are switched on "
            f"(`echo 0 >/sys/bus/pci/devices/{shared[0].address}/sriov_numvfs`; "
            "a module's option such as i915.max_vfs, sysfs.conf), or give one of them to the VM: "
            f"gpus.{name}.address with its address",
        )
    ]


def virtual_function(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A virtual function (SR-IOV) can be given away: it has a group of its own, and the host's driver has the card that
    it is of."""
    device = facts.by_address.get(slot)
    if device is None or not device.physfn:
        return []
    wanted = f"gpus.{name} ({facts.card(slot)}), a virtual function, for a VM"
    why = "Proxmox VE binds a virtual function when a VM with it starts, which it can do only under a running IOMMU"
    errors = []
    if not facts.iommu.groups:
        errors.append(
            HomelabError(
                wanted=wanted,
                found="the host has no IOMMU groups yet",
                why=why,
                next=f"run `pulumi up` with iommu.enable: true and without gpus.{name} first, then add it",
            )
        )
    owner = facts.by_address.get(device.physfn)
    if owner is None or owner.driver == "vfio-pci":
        errors.append(
            HomelabError(
                wanted=wanted,
                found=f"the card that it is of, {device.physfn}, is {'not there' if owner is None else 'on vfio-pci'}",
                why="the virtual functions of such a card need a VFIO token, for which Proxmox VE has no option",
                next=f"give {device.physfn} back to the host's driver, which makes its virtual functions",
            )
        )
    if gpu.passthrough_test:
        errors.append(
            HomelabError(
                wanted=f"gpus.{name}.passthroughTest for a card that is bound at boot",
                found=f"{device.address} is a virtual function of {device.physfn} (SR-IOV)",
                why="the test takes a card that is on vfio-pci already; a virtual function gets there when its VM "
                "starts",
                next=f"take gpus.{name}.passthroughTest out",
            )
        )
    return errors


def divided(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card isn't set up to be divided among VMs (NVIDIA vGPU, mediated devices): it is left as it is."""
    states = {device.address: facts.card_states.get(device.address) for device in facts.functions(slot)}
    ways = {address: state.divided for address, state in states.items() if state is not None and state.divided}
    if not ways:
        return []
    said = {"vgpu": "NVIDIA's vGPU driver", "mdev": "mediated devices (mdev_supported_types)"}
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) as a whole for a VM",
            found="; ".join(f"{address} is set up for {said.get(way, way)}" for address, way in ways.items()),
            why="it can serve several VMs, which would lose it; and Proxmox VE refuses a mapping of such a card "
            "that isn't marked for mdev",
            next="use it as it is set up (hostpci with mdev=, a mapping of your own), and take it out of the "
            "settings; or remove the vGPU driver, "
            "i915.enable_gvt or what else divides it, reboot, and run `pulumi up` again",
        )
    ]


def resettable(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card answers, isn't one that a reset is known to break, and can be reset as the settings want it."""
    gone = sorted({device.address for device in facts.functions(slot)} & set(facts.lost))
    lost = [kernel_log.lost(f"gpus.{name}", gone)] if gone else []
    about = f"gpus.{name}"
    return lost + resets.refused(facts, about, slot) + resets.refused_choice(facts, about, gpu, slot)


def vgpu_host(facts: HostFacts, host: Host) -> list[HomelabError]:
    """NVIDIA's driver isn't installed over its vGPU driver, which is another one."""
    signs = [f"the module {name} is loaded" for name in facts.modules if name == "nvidia_vgpu_vfio"]
    signs += ["/usr/bin/nvidia-vgpu-mgr is there"] if facts.vgpu_manager else []
    if host.nvidia is None or not signs:
        return []
    return [
        HomelabError(
            wanted="NVIDIA's driver on the host (nvidia)",
            found=f"NVIDIA's vGPU driver: {'; '.join(signs)}",
            why="that driver is licensed, and another one in its place takes the cards from the VMs that share them",
            next="take nvidia of this host out of the settings; or remove the vGPU driver yourself (its installer "
            "has --uninstall) and run `pulumi up` again",
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
    ]


def new_entries(facts: HostFacts) -> str:
    """What brings changed words of the kernel command line into the boot entries."""
    return "`proxmox-boot-tool refresh`" if facts.loader == "systemd-boot" else "`update-grub`"


def _going(facts: HostFacts, slot: str) -> list[Device]:
    """Everything that a VM's start with the card takes from the host."""
    return [*facts.functions(slot), *([] if _outside(facts, slot) else facts.others_in_group(slot))]


def isolation(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card's IOMMU group holds nothing but the card and bridges: starting a VM takes the whole group from the
    host."""
    if _outside(facts, slot):
        return []  # without a group, nothing can be said of what is in it
    others = [device for device in facts.others_in_group(slot) if device.address not in gpu.allow_group_members]
    if not others:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) alone in its IOMMU group",
            found=f"with it in the {predicted(facts)}group: {'; '.join(map(facts.describe, others))}",
            why="starting a VM with the card takes every device of the group from the host; with a disk or a "
            "network card it goes down",
            next="put the card into another slot, or switch ACS on in the firmware; a device that may leave the "
            "host with the card is named in "
            f"gpus.{name}.allowGroupMembers{remapping.offered(facts, slot)}",
        )
    ]


def predicted(facts: HostFacts) -> str:
    """`predicted ` while there are no groups to be read."""
    return "" if facts.iommu.groups else "predicted "


def vital(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """Nothing that the host can't do without goes with the card, or as a member of its group. No setting opens this
    gate."""
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
        why="a VM's start takes it from the host, which then loses its disk or its network and goes down; no "
        "setting allows that",
        next="connect the disk or the network cable to another controller, or put the card into another slot, and "
        "run `pulumi up` again" + ("" if own or facts.iommu.groups else SWITCH_ON),
    )


# A prediction may hold too much; what the group really is, the running IOMMU tells.
SWITCH_ON = (
    "; or run it with iommu.enable: true and without the card first: once the IOMMU is on, the real groups are read "
    "instead"
)


def _unknown_carrier(
    facts: HostFacts, name: str, slot: str, doubtful: list[Device], unknown: list[Vital]
) -> HomelabError:
    return HomelabError(
        wanted=f"to know what carries {', '.join(one.name for one in unknown)}, before anything that may carry it "
        f"goes with gpus.{name} ({facts.card(slot)})",
        found="; ".join(one.trouble for one in unknown)
        + f"; with the card go {'; '.join(map(facts.describe, doubtful))}",
        why="a VM's start would take its own disk or network from the host, which then goes down; no setting allows "
        "that",
        next="put the card into a slot where it is alone in its group",
    )


def kept(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """No card that stays with the host is in the group of one that a VM gets."""
    errors = []
    staying = {name: slot for name, slot in slots.items() if not gpus[name].may_leave}
    for name, slot in slots.items():
        if not gpus[name].may_leave:
            continue
        going = {device.address for device in facts.others_in_group(slot)}
        for other, place in staying.items():
            if going & {device.address for device in facts.functions(place)}:
                errors.append(
                    HomelabError(
                        wanted=f"gpus.{other} ({facts.card(place)}) with the host (use: {gpus[other].use}) while a "
                        f"VM has gpus.{name} ({facts.card(slot)})",
                        found=f"both are in one {predicted(facts)}IOMMU group",
                        why=f"a VM's start with {name} takes every device of the group from the host, {other} too",
                        next="put one of them into another slot, or give both to the same VM",
                    )
                )
    return errors


def by_hand(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> list[HomelabError]:
    """A card that stays with the host isn't bound to vfio-pci by other configuration than this program's, unless it may
    take the card from that (takeOver)."""
    return [
        error
        for name, slot in slots.items()
        if host.gpus[name].use != "vm"
        for error in _bound_by_hand(facts, host, name, slot, slots)
    ]


def _bound_by_hand(facts: HostFacts, host: Host, name: str, slot: str, slots: Mapping[str, str]) -> list[HomelabError]:
    # Also one that our word binds as well (takeOver): that configuration binds it as soon as our word is gone.
    bound = [device for device in facts.functions(slot) if facts.kept_by_hand(device)]
    gpu, kept = host.gpus[name], released.kept_bound(facts, host, slots, bound)
    # What our word has taken back, and would no longer.
    back = [] if host.take_over or released.at_work(facts) is None else facts.functions(slot)
    back = [device for device in back if device not in bound and facts.named_at_next_boot(device)]
    bound += back
    if not bound or (host.take_over and not kept):
        return []
    binds = facts.who_binds(bound) or ["vfio-pci's ids"]
    ids = sorted({device.id for device in bound if facts.named_by_ids(device)})
    steps = [f"take {', '.join(ids)} out there", "`update-initramfs -u -k all`"] if ids else []
    if any("on the kernel command line" in one for one in binds):
        steps.append(new_entries(facts))
    # Where no driver of the host's is loaded that takes the card, driverctl ends with an error, and keeps its file,
    # unless it is told not to look for one.
    steps += [
        f"`driverctl --noprobe unset-override {device.address}` while no VM runs with it"
        for device in bound
        if facts.has_override(device)
    ]
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver (use: {gpu.use})",
            found=f"{', '.join(device.address for device in bound)} on "
            f"vfio-pci{' from the next start on' if back else ''}, by {', '.join(binds)}"
            + (f"; {kept}" if kept and host.take_over else ""),
            why="that was not written by this program, which doesn't take it away: the card would stay without the "
            "host's driver",
            next=(
                ""
                if kept
                else "set takeOver: true for the host: a word of this program's then counts instead, until "
                "`pulumi destroy`; or "
            )
            + f"{', '.join(steps)}, reboot, and run `pulumi up` again; or set gpus.{name}.use: vm",
        )
    ]


def taken_out(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A card that goes back to the host's driver has left its VM before.

    The host restarts before anything is taken out of a VM: one that starts with the host would take the card from that
    driver.
    """
    return _still_with(facts, name, gpu, slot, facts.users_of(slot, facts.cluster.node))


def without_hook(
    facts: HostFacts, host: Host, slots: Mapping[str, str], hooked: Mapping[str, Collection[int]]
) -> list[HomelabError]:
    """The same of cards that are handed over from then on (use: shared): a VM that starts with the host has the
    hookscript by then, or not the card.

    :param hooked: card's name -> ids of the VMs that are given the hookscript before the host restarts: the adopted
        ones that may take it.
    """
    errors = []
    for name, slot in slots.items():
        if host.gpus[name].use == "shared":
            users = facts.users_of(slot, facts.cluster.node)
            starting = [user for user in users if user.onboot or ha.is_kept_started(facts, user.vmid)]
            bare = [user for user in starting if user.vmid not in hooked.get(name, ())]
            errors += _still_with(facts, name, host.gpus[name], slot, bare)
    return errors


def _still_with(facts: HostFacts, name: str, gpu: Gpu, slot: str, users: list[CardUser]) -> list[HomelabError]:
    if not users or not (facts.bound_by_us(slot) or any(map(facts.kept_by_hand, facts.functions(slot)))):
        return []
    first = f"set gpus.{name}.use: vm again, without a container, and take {name}"
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver from its next start on (use: {gpu.use})",
            found=f"it is bound for VMs, and {_naming(facts, slot, users)}",
            why=_COMES_FIRST,
            next=_out_first(facts, slot, users, first, f"set use: {gpu.use}"),
        )
    ]


def left_with_vm(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[HomelabError]:
    """The same of a card that the settings no longer name, where NVIDIA's driver is going to have it.

    :param slots: of all cards that the settings name.
    """
    if len(slots) < len(host.gpus) or not (host.nvidia or facts.nvidia.version or facts.nvidia.installed):
        return []
    leaving = {
        device.slot
        for device in facts.display_devices
        if device.vendor == NVIDIA
        and device.slot not in slots.values()
        and facts.bound_by_us(device.address)
        and not facts.named_at_next_boot(device)  # that keeps it on vfio-pci
    }
    users = {slot: facts.users_of(slot, facts.cluster.node) for slot in sorted(leaving)}
    return [
        HomelabError(
            wanted=f"{facts.card(slot)} with NVIDIA's driver from the host's next start on, since no card of gpus "
            "is it",
            found=f"it is bound for VMs (homelab.vfio), and {_naming(facts, slot, having)}",
            why=_COMES_FIRST,
            next=_out_first(
                facts, slot, having, "put it back into gpus with use: vm, and take it", "take it out of gpus"
            ),
        )
        for slot, having in users.items()
        if having
    ]


_COMES_FIRST = (
    "the host restarts before a card is taken out of a VM: a VM that starts then would take the card from its new "
    "driver; "
    "nothing was changed"
)


def _naming(facts: HostFacts, slot: str, users: list[CardUser]) -> str:
    """Which VMs have the card, by which options."""
    options = {user: ", ".join(_lines_of(facts, slot, user)) for user in users}
    return "; ".join(f"{user} has it ({lines or 'it runs with it'})" for user, lines in options.items())


def _lines_of(facts: HostFacts, slot: str, user: CardUser) -> list[str]:
    """The options by which a VM has the card, as they stand there."""
    config = facts.guests.config(user.vmid)
    keys = facts.options_of(slot, user.vmid, facts.cluster.node)
    return [f"{key}: {config.values.get(key) or config.now[key]}" for key in keys] if config else []


def _out_first(facts: HostFacts, slot: str, users: list[CardUser], first: str, then: str) -> str:
    """How the card leaves the VMs before the host restarts.

    :param first: what is done to the settings for that, if this program gave it to one.
    :param then: what is done to them afterwards.
    """
    ours = [user for user in users if facts.given_by_us(slot, user.vmid)]
    steps = [_by_hand(facts, slot, user) for user in users if user not in ours]
    if not ours:
        return f"{'; '.join(steps)}; then run `pulumi up` again"
    given = ", ".join(map(str, ours))
    otherwise = "; ".join(_by_hand(facts, slot, user) for user in ours)
    steps.append(
        f"{first} out of the VM's gpus: `pulumi up` then takes it out of {given}. If it is still there after that "
        "(a VM had it before, or Pulumi's "
        f"state doesn't know the VM any more), {otherwise}"
    )
    return f"first {'; '.join(steps)}. After that {then}: a second `pulumi up` restarts the host"


def _by_hand(facts: HostFacts, slot: str, user: CardUser) -> str:
    keys = ",".join(facts.options_of(slot, user.vmid, facts.cluster.node))
    command = f"; note that line, which nothing else keeps: `qm set {user.vmid} --delete {keys}`" if keys else ""
    return f"shut {user} down, if it runs, and take the card out of it{command}"


def console(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """Neither the card nor a member of its group is the screen on which the firmware and the host's console show."""
    screens = consoles.screens(facts, _going(facts, slot))
    if gpu.allow_console or not screens:
        return []
    own = screens[0] in facts.functions(slot)
    which = "this card" if own else f"{facts.describe(screens[0])}, which is in its {predicted(facts)}IOMMU group,"
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) not to be the host's console",
            found=f"the firmware uses {which} as its screen "
            f"({'boot_vga' if screens[0].boot_vga else 'the kernel draws into its memory'})",
            why="once it is bound, the host shows nothing on its screen after the boot menu; it can be reached over "
            "the network only",
            next="make the other card the primary one in the firmware, or accept it with "
            f"gpus.{name}.allowConsole: true (the boot entry 'without GPU passthrough' gives the screen back)",
        )
    ]


# Of NVIDIA's major, what is above has other uses (NV_MINOR_DEVICE_NUMBER_REGULAR_MAX, nv-chardev-numbers.h: 247).
_NVIDIA_MINORS = 248


def containers(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """No container uses the card, or another one of its group, through the host's driver."""
    mine = {device.address for device in _going(facts, slot)}
    nodes = [f"/dev/nvidia{minor}" for address, minor in facts.nvidia_minors.items() if address in mine]
    if any(facts.by_address[one].driver == "nvidia" for one in mine - facts.nvidia_minors.keys()):
        # Which number it has, the driver doesn't say: it may be any that it has given to no other card.
        others = {minor for address, minor in facts.nvidia_minors.items() if address not in mine}
        nodes += [f"/dev/nvidia{minor}" for minor in range(_NVIDIA_MINORS) if minor not in others]
    drm = [one for address, one in facts.drm.items() if address in mine and facts.by_address[address].vendor != NVIDIA]
    nodes += [f"/dev/dri/{name}" for one in drm for name in (one.card, one.render) if name]
    users = [
        guest.id
        for guest in facts.guests.configs
        if guest.kind == "lxc"
        and guest.id not in gpu.allow_containers
        and any(entry.takes(node) for entry in guest.container.entries for node in nodes)
    ]
    if not users:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) free to be taken from the host",
            found=f"containers that use it: {', '.join(str(ctid) for ctid in users)}",
            why="on vfio-pci the card has no node in /dev any more: these containers would not start, or run "
            "without it",
            next=f"take the card out of them first, or accept it with gpus.{name}.allowContainers: {users}",
        )
    ]


def handed_over(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A card that containers and a VM have in turn is NVIDIA's, as a whole."""
    device = next((one for one in facts.functions(slot) if one.is_display), None)
    if device is not None and device.vendor == NVIDIA and not device.physfn:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) in turn for containers and a VM (use: shared)",
            found="it is not one of NVIDIA's, as a whole",
            why="only for NVIDIA's driver is it known when a card can be taken from it while the host runs",
            next=f"set gpus.{name}.use: vm, or lxc",
        )
    ]


def whole_boards(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """A card that NVSwitches join with others doesn't go to a VM without them. Whether it is one VM that has them all,
    homelab/vm/plan.py knows."""
    given = [slot for name, slot in slots.items() if gpus[name].use == "vm"]
    away = {name: slot for name, slot in slots.items() if gpus[name].may_leave}
    return [
        error
        for name, slot in away.items()
        for error in fabric.refused(facts, name, gpus[name], slot, given if slot in given else [slot])
    ]


def check(facts: HostFacts, host: Host) -> tuple[dict[str, str], list[HomelabError]]:
    """All gates.

    :returns: the slot of each GPU that could be resolved, and every reason not to go on.
    """
    facts = remapping.to_be(facts, host)
    slots, unresolved = resolve(facts, host.gpus)
    errors = [
        *release(facts, host),
        *readable(facts),
        *tools(facts, host),
        *writable(facts, host),
        *listed(facts, host),
        *iommu(facts, host),
        *remapping.refused(facts, host),
        *room(facts, host),
        *vgpu_host(facts, host),
        *unresolved,
    ]
    errors += by_hand(facts, host, slots)
    for name, slot in slots.items():
        gpu = host.gpus[name]
        for gate in GATES[gpu.use]:
            errors += gate(facts, name, gpu, slot)
    errors += whole_boards(facts, host.gpus, slots)
    return slots, errors + kept(facts, host.gpus, slots) + remapping.split(facts, host, slots)


# What is checked of a card that goes to a VM, before anything is changed; of one that stays; and once there are real
# groups.
GIVEN = (
    named_functions,
    one_function,
    virtual_function,
    divided,
    options.migratable,
    graphics.gvt_g,
    graphics.rebound,
    graphics.unstarted,
    resettable,
    grouped,
    isolation,
    vital,
    remapping.one_to_one,
    console,
    containers,
)
STAYING = (taken_out,)
# Of one that a VM takes in turn, both: while it is away, and while it is with the host.
HANDED_OVER = (
    handed_over,
    one_function,
    virtual_function,
    divided,
    resettable,
    grouped,
    isolation,
    vital,
    remapping.one_to_one,
    console,
)
GATES = {"vm": GIVEN, "lxc": STAYING, "host": STAYING, "shared": HANDED_OVER}
VERIFIED = (graphics.rebound, grouped, isolation, vital, consoles.freed, remapping.one_to_one)


def remarks(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[str]:
    """What is no reason to refuse a card, and must not come as a surprise: a sentence each."""
    given = {name: slot for name, slot in slots.items() if host.gpus[name].use == "vm"}
    return [
        *remapping.remarks(facts, host, slots),
        *consoles.without_effect(facts, host, given),
        *(said for name, slot in given.items() for said in _about(facts, host, name, slot)),
        *_keyboards(facts, given),
        *fabric.remarks(facts, given),
        *(said for name, slot in slots.items() if name not in given for said in _stays_bound(facts, name, slot)),
        *(said for name, slot in slots.items() if name not in given for said in _taken_back(facts, host, name, slots)),
    ]


def _about(facts: HostFacts, host: Host, name: str, slot: str) -> list[str]:
    said = []
    mine = facts.functions(slot)
    left = [
        device for device in facts.in_slot(slot) if device not in mine and device not in facts.others_in_group(slot)
    ]
    if left:
        said.append(f"gpus.{name}: in the same slot, but left with the host: {'; '.join(map(facts.describe, left))}")
    path = facts.path_of(slot)
    if host.api and ";" in path:
        shown = next(device for device in mine if device.is_display)
        said.append(
            f"gpus.{name}: its mapping offers {shown.address} alone, since Proxmox VE compares a mapping's id with "
            "each of its functions; "
            f"all of them ({path.replace(';', ', ')}) go with byAddress"
        )
    owner = next((device.physfn for device in mine if device.physfn), None)
    if owner:
        said.append(
            f"gpus.{name} is a virtual function of {owner}: Proxmox VE binds it when its VM starts. What makes it "
            "(sysfs.conf, a module's option) is left "
            "to you, and must have made it before the VM starts"
        )
    said += resets.remarks(facts, f"gpus.{name}", slot)
    said += consoles.remarks(facts, host, f"gpus.{name}", slot)
    said += _named_to_go(facts, name, host.gpus[name], mine)
    holders = facts.using(device.address for device in _going(facts, slot) if device.driver != "vfio-pci")
    if holders:
        said.append(
            f"gpus.{name} is in use by {', '.join(map(str, holders))}: after the reboot the card is gone for them"
        )
    if any(facts.pluggable(device.address) for device in mine):
        said.append(
            f"gpus.{name} hangs on an external port (Thunderbolt, USB4): it must be connected and on when the host "
            "starts; "
            "homelab binds none that comes later"
            + ("; ids for vfio-pci that were set by hand do bind it, so takeOver leaves them" if host.take_over else "")
        )
    return said


def _named_to_go(facts: HostFacts, name: str, gpu: Gpu, mine: list[Device]) -> list[str]:
    """What of the functions that the settings name may surprise."""
    said = []
    for device in mine if gpu.functions else []:
        if device.class_code.startswith(USB):
            said.append(
                f"gpus.{name}: {facts.describe(device)} leaves the host with the card, and so does what is plugged "
                "into it"
            )
        elif device.class_code.startswith(SECURITY_PROCESSOR):
            said.append(
                f"gpus.{name}: {facts.describe(device)} leaves the host with the card: reports differ on whether a "
                "guest's driver needs it; if the VM "
                "starts only once for each boot of the host, try first without it"
            )
    return said


def _keyboards(facts: HostFacts, given: dict[str, str]) -> list[str]:
    going = {device.address for slot in given.values() for device in _going(facts, slot)}
    keyboards = [one for one in facts.vital if one.kind == "keyboard"]
    lost = [one for one in keyboards if going.intersection(one.devices)]
    if not lost or len(lost) < len(keyboards):
        return []
    return [
        f"the host's last keyboard goes with a card: {', '.join(one.name for one in lost)}; its console takes no "
        "input then"
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


def _taken_back(facts: HostFacts, host: Host, name: str, slots: Mapping[str, str]) -> list[str]:
    """A card that stays, and that a word of ours takes from what somebody else has configured."""
    bound = [device for device in facts.functions(slots[name]) if facts.kept_by_hand(device)]
    word = released.word(facts, host, slots)
    if not bound or not word:
        return []
    return [
        f"gpus.{name}: {', '.join(device.address for device in bound)} is on vfio-pci by "
        f"{', '.join(facts.who_binds(bound))}: from the next start on {word} on the kernel "
        "command line counts instead, until `pulumi destroy`; nothing else is changed there"
    ]


def nvidia_stays(facts: HostFacts, bound: set[str]) -> bool:
    """Does an NVIDIA graphics card stay with the host, given the addresses that go to vfio-pci?"""
    return any(device.vendor == NVIDIA and device.address not in bound for device in facts.display_devices)
