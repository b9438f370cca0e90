"""What must hold before a host is changed, in the order in which it is checked. A gate that can't be decided is closed.

Each gate is a function from facts and settings to errors, so that a preview and an `up` refuse the same things with the same
words. Opting out is one named setting per gate.
"""

from __future__ import annotations

from host.errors import HomelabError
from host.facts import NVIDIA, Device, HostFacts
from settings import Gpu, Host


def resolve(facts: HostFacts, gpus: dict[str, Gpu]) -> tuple[dict[str, str], list[HomelabError]]:
    """GPU name -> slot (``0000:01:00``), and what can't be resolved: no such card, several, or one under two names."""
    slots: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, gpu in gpus.items():
        found = sorted({device.slot for device in facts.devices if _is(device, gpu)})
        if len(found) == 1 and found[0] not in slots.values():
            slots[name] = found[0]
        elif len(found) == 1:
            errors.append(_twice(name, next(other for other, slot in slots.items() if slot == found[0]), found[0]))
        else:
            errors.append(_unresolved(facts, name, gpu, found))
    return slots, errors


def _is(device: Device, gpu: Gpu) -> bool:
    if gpu.address is not None and device.slot != gpu.address:
        return False
    # By address alone, the card must still be a graphics card: buses are renumbered when hardware changes.
    return device.id == gpu.match if gpu.match else device.class_code.startswith("03")


def _cards(facts: HostFacts) -> str:
    return "; ".join(f"{device.address} [{device.id}]" for device in facts.display_devices) or "no graphics card at all"


def _twice(name: str, other: str, slot: str) -> HomelabError:
    return HomelabError(
        f"gpus.{name} and gpus.{other} to be two cards",
        f"both are the one in {slot}",
        "one card can be given away only once",
        "correct their `match` or `address`",
    )


def _unresolved(facts: HostFacts, name: str, gpu: Gpu, found: list[str]) -> HomelabError:
    wanted = " at ".join(part for part in (gpu.match or "a graphics card", gpu.address) if part)
    if found:
        return HomelabError(
            f"gpus.{name}: one card ({wanted})",
            f"{len(found)}: {', '.join(found)}",
            "identical cards can't be told apart by their id",
            f'add `address: "{found[0]}"` (or another of them) to gpus.{name}',
        )
    return HomelabError(
        f"gpus.{name}: a card ({wanted})",
        f"graphics cards here: {_cards(facts)}",
        "nothing is bound in place of a card that isn't there",
        "correct `match` or `address`; if the card is missing from `lspci -nn`, look at its power and its slot",
    )


def tools(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """What the scripts call, and a boot loader that is known for certain."""
    errors = []
    if facts.missing_tools:
        errors.append(
            HomelabError(
                "the commands that configure and verify the boot",
                f"missing: {', '.join(facts.missing_tools)}",
                "the change could not be made, or not be verified",
                "install their packages (initramfs-tools, pciutils, util-linux, grub or proxmox-kernel-helper)",
            )
        )
    if not facts.loader:
        errors.append(
            HomelabError(
                "to know which boot loader makes the kernel command line",
                facts.loader_clues,
                "the wrong one would be configured without effect",
                "see `proxmox-boot-tool status`; drop ESPs that are no longer used with `proxmox-boot-tool clean`",
            )
        )
    return errors


def iommu(facts: HostFacts, host: Host) -> list[HomelabError]:
    """The IOMMU can be on: the firmware offers it, nothing on the command line switches it off for good."""
    wants_vfio = any(gpu.use == "vm" for gpu in host.gpus.values())
    if not (host.iommu.enable or wants_vfio):
        return []
    errors = []
    intel = facts.cpu_vendor == "GenuineIntel"
    name = "Intel VT-d" if intel else "AMD-Vi (IOMMU)"
    if not facts.iommu.tables and facts.iommu.groups == 0:
        errors.append(
            HomelabError(
                f"{name} switched on in the firmware",
                f"no {'DMAR' if intel else 'IVRS'} table in /sys/firmware/acpi/tables, and no IOMMU group",
                "without it no PCI device can be given to a guest, whatever the kernel is told",
                f"enter the firmware setup (BIOS/UEFI) of the host, switch on {name}, and run `pulumi up` again",
            )
        )
    words = facts.cmdline.others.split()
    # intel_iommu=on after intel_iommu=off wins; the others are never taken back (arch/x86/kernel/pci-dma.c, amd/init.c).
    for word in ("iommu=off", *(() if intel else ("amd_iommu=off",))):
        if word in words:
            errors.append(
                HomelabError(
                    "an IOMMU that the kernel uses",
                    f"{word} on the kernel command line, put there by somebody else",
                    "the kernel never takes that word back, whatever follows it",
                    f"remove {word} (/etc/default/grub, or /etc/kernel/cmdline), and run `pulumi up` again",
                )
            )
    return errors


def room(facts: HostFacts, host: Host) -> list[HomelabError]:
    """/boot takes the new initramfs, which is written beside the old one (the largest one, plus a tenth)."""
    made = any(file.path.endswith("/init-top/homelab-vfio") and file.state == "ok" for file in facts.managed)
    needed = facts.largest_initramfs * 11 // 10
    wants_vfio = any(gpu.use == "vm" for gpu in host.gpus.values())
    if not wants_vfio or (made and not facts.stale_initramfs) or facts.boot_free >= needed:
        return []
    return [
        HomelabError(
            f"room on /boot for a new initramfs ({needed // 2**20 + 1} MiB)",
            f"{facts.boot_free // 2**20} MiB free",
            "update-initramfs would fail half-way and leave kernels without the binding",
            "remove old kernels (`apt autoremove --purge`; `dpkg -l 'proxmox-kernel-*'`), then run `pulumi up` again",
        )
    ]


def isolation(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card's IOMMU group holds nothing but the card and bridges: starting a VM takes the whole group from the host."""
    others = [
        device
        for device in facts.group_of(slot)
        if device.slot != slot and not device.is_bridge and device.address not in gpu.allow_group_members
    ]
    if not others:
        return []
    return [
        HomelabError(
            f"gpus.{name} ({slot}) alone in its IOMMU group",
            f"with it in the group: {'; '.join(facts.describe(device) for device in others)}",
            "starting a VM with the card takes every device of the group from the host; with a disk or a network card it goes down",
            "put the card into another slot, or switch ACS on in the firmware; a device that may go along is named in "
            f"gpus.{name}.allowGroupMembers",
        )
    ]


def console(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """The card isn't the screen on which the firmware and the host's console show."""
    if gpu.allow_console or not any(device.boot_vga for device in facts.functions(slot)):
        return []
    return [
        HomelabError(
            f"gpus.{name} ({slot}) not to be the host's console",
            "the firmware uses this card as its screen (boot_vga)",
            "once it is bound, the host shows nothing on its screen after the boot menu; it can be reached over the network only",
            "make the other card the primary one in the firmware, or accept it with "
            f"gpus.{name}.allowConsole: true (the boot entry 'without GPU passthrough' gives the screen back)",
        )
    ]


def containers(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """No container uses the card through the host's driver."""
    minors = {minor for address, minor in facts.nvidia_minors.items() if address.rpartition(".")[0] == slot}
    users = [
        guest.id
        for guest in facts.guests.configs
        if guest.kind == "lxc"
        and guest.id not in gpu.allow_containers
        and any(f"/dev/nvidia{minor}{end}" in f"{guest.lines}\n" for minor in minors for end in " ,\n")
    ]
    if not users:
        return []
    return [
        HomelabError(
            f"gpus.{name} ({slot}) free to be taken from the host",
            f"containers that use it: {', '.join(str(ctid) for ctid in users)}",
            "on vfio-pci the card has no /dev/nvidia node any more: these containers would not start, or run without it",
            f"take the card out of them first, or accept it with gpus.{name}.allowContainers: {users}",
        )
    ]


def check(facts: HostFacts, host: Host) -> tuple[dict[str, str], list[HomelabError]]:
    """All gates. Returns the slot of each GPU that could be resolved, and every reason not to go on."""
    slots, unresolved = resolve(facts, host.gpus)
    errors = [*tools(facts, host), *iommu(facts, host), *room(facts, host), *unresolved]
    for name, slot in slots.items():
        gpu = host.gpus[name]
        if gpu.use == "vm":
            for gate in (isolation, console, containers):
                errors += gate(facts, name, gpu, slot)
    return slots, errors


def nvidia_stays(facts: HostFacts, bound: set[str]) -> bool:
    """Does an NVIDIA graphics card stay with the host, given the addresses that go to vfio-pci?"""
    return any(device.vendor == NVIDIA and device.address not in bound for device in facts.display_devices)
