"""What a person or another program has set up on a host for its cards already, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable

from homelab.host.facts import HostFacts
from homelab.init.cards import Card

# Words of the kernel command line that guides to passthrough name, without what follows the equals sign.
_WORDS = (
    *("amd_iommu", "intel_iommu", "iommu", "pcie_acs_override", "modprobe.blacklist", "module_blacklist"),
    *("initcall_blacklist", "video", "nofb", "nomodeset", "textonly", "pci", "pcie_aspm", "rd.driver.pre"),
    *("vfio_iommu_type1.allow_unsafe_interrupts", "vfio-pci.disable_vga", "vfio-pci.disable_idle_d3"),
    *("kvm.ignore_msrs", "kvm.report_ignored_msrs", "i915.modeset", "nouveau.modeset", "i915.enable_gvt"),
)


def present(facts: HostFacts, cards: Iterable[Card], node: str) -> list[str]:
    """A sentence for each.

    :param node: the host's name in Proxmox VE.
    """
    cards = list(cards)
    lines = []
    words = [word for word in facts.cmdline.others.split() if word.partition("=")[0] in _WORDS]
    if words:
        lines.append(f"{' '.join(words)} on the kernel command line: kept, and not added a second time")
    # Those with ids are told below, with the cards that they bind.
    others = [
        line for line in facts.module_lines if not (line.partition(": ")[0] in facts.vfio_files and "ids=" in line)
    ]
    if others:
        lines.append(f"{'; '.join(others)}: kept")
    functions = {card.key: facts.functions(card.place) for card in cards}
    for source in facts.who_binds([device for devices in functions.values() for device in devices]):
        keys = [key for key, devices in functions.items() if source in facts.who_binds(devices)]
        lines.append(
            f"{source}: kept; {', '.join(keys)} counts as bound by it, and the plan says so. With takeOver: true for "
            "the host a word of this program's counts instead, until `pulumi destroy`"
        )
    for card in cards:
        for user in facts.users_of(card.place, node):
            config = facts.guests.config(user.vmid)
            for option in facts.options_of(card.place, user.vmid, node):
                value = config.values[option] if config else ""
                lines.append(
                    f"{option}: {value} of VM {user.vmid}: if the VM keeps {card.key}, `pulumi up` takes it over with "
                    "its other options, and `pulumi destroy` puts it back as it is"
                )
        for config in facts.containers_with(card.place):
            lines.append(
                f"lines of container {config.id} for {card.key}: kept; they count towards what it needs, and "
                "`pulumi destroy` leaves them"
            )
    return lines
