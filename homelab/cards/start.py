"""The state of a VM's cards after the VM's start, compared with the host before it. Pure.

A failed reset alone doesn't mean that a card is lost. A card may have several functions without a reset of their own
(FLR). The kernel then lists the bus reset for the first function, but refuses it once the others are there
(drivers/pci/pci.c, pci_parent_bus_reset). Proxmox VE says "failed to reset PCI device" and goes on
(PVE::QemuServer::PCI, prepare_pci_device), and QEMU resets the whole bus (hw/vfio/pci.c, vfio_pci_hot_reset). Such a VM
is well.
"""

from __future__ import annotations

from dataclasses import replace

from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from remote_scripts.both.symptoms import Context
from remote_scripts.pve import reservations
from remote_scripts.pve.properties import parse


def functions_of(facts: HostFacts, vmid: int) -> list[str]:
    """Addresses of the functions that a VM has, by qemu-server's reservations while it runs; of a VM that is off, those
    that its configuration may give it."""
    reserved = [known.address for known in reservations.parse(facts.guests.reservations) if known.vmid == vmid]
    if reserved:
        return sorted(reserved)
    config = facts.guests.config(vmid)
    options = [parse(*option) for option in config.devices(current=True)] if config else []
    places = [place for option in options for place in facts.places_of(option)]
    return sorted({function.address for place in places for function in facts.functions(place)})


def outcome_of(
    before: HostFacts, after: HostFacts, functions: list[str], start_log: list[str], vm: str
) -> tuple[list[HomelabError], list[str]]:
    """The result of a VM's start for its cards: errors of lost cards, and remarks on what may surprise the user.

    :param before: the host before the start; trouble that is in it already isn't the start's.
    :param after: the host after the start.
    :param functions: addresses of those that the VM has.
    :param start_log: lines of the log of the start's task.
    :param vm: for messages, such as `VM 103 (sandbox)`.
    """
    card = f"the card of {vm}"
    earlier = {*before.kernel_log.splitlines()}
    new_lines = [line for line in after.kernel_log.splitlines() if line not in earlier]
    gone = [address for address in functions if address not in after.by_address]
    since_start = replace(after, kernel_log="\n".join(new_lines))
    found = kernel_log.of_card(since_start, card, [address for address in functions if address not in before.lost])
    found += [kernel_log.lost(card, f"{', '.join(gone)} can't be found on the PCI bus any more")] if gone else []
    found += [one for one in kernel_log.of_text("\n".join(start_log), Context(card)) if one.stops or one.harmless]
    found = kernel_log.stories(found)
    return [one.error for one in found if one.stops], [one.remark for one in found if not one.stops]
