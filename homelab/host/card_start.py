"""What became of a VM's cards when it was started, by what is true afterwards. Pure.

A reset that failed isn't enough to tell. Of a card of several functions without a reset of their own (FLR), the kernel
lists the bus reset for the first function and refuses it once the others are there (drivers/pci/pci.c,
pci_parent_bus_reset); Proxmox VE says "failed to reset PCI device", goes on (PVE::QemuServer::PCI, prepare_pci_device),
and QEMU resets the whole bus (hw/vfio/pci.c, vfio_pci_hot_reset). Its VM is well.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from homelab.errors import HomelabError
from homelab.host import kernel_log, resets
from homelab.host.facts import HostFacts
from homelab.messages import compiled, messages
from homelab.properties import parse

_NOT_RESET = re.compile(r"failed to reset PCI device '([^']+)'")


@dataclass
class Outcome:
    """`errors`: a card is lost; `remarks`: what may come as a surprise; `explained`: what Proxmox VE says and is as it
    should be."""

    errors: list[HomelabError] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)


def functions_of(facts: HostFacts, vmid: int, node: str) -> list[str]:
    """The functions that a VM has, as qemu-server notes it while it runs; of one that is off, those that its
    configuration may give it."""
    lines = (line.split() for line in facts.guests.reservations.splitlines())
    reserved = [words[0] for words in lines if words[1:2] == [str(vmid)]]
    if reserved:
        return sorted(reserved)
    config = facts.guests.config(vmid)
    options = [parse(key, value) for key, value in config.now.items() if key.startswith("hostpci")] if config else []
    places = [place for option in options for place in facts.guests.places_of(option, node)]
    return sorted({one.address for place in places for one in facts.functions(place)})


def judged(before: HostFacts, after: HostFacts, functions: list[str], start_log: list[str], vm: str) -> Outcome:
    """What a start has led to.

    :param before: the host before the start: what was so by then is not of this start.
    :param functions: those that the VM has.
    :param start_log: of its start's task.
    :param vm: for messages, such as `VM 103 (sandbox)`.
    """
    card = f"the card of {vm}"
    since = after.model_copy(update={"kernel_log": "\n".join(_new(before.kernel_log, after.kernel_log))})
    outcome = Outcome()
    if gone := [one for one in functions if one not in after.by_address]:
        outcome.errors.append(
            kernel_log.lost(card, gone).retold(found=f"{', '.join(gone)} can't be found on the PCI bus any more")
        )
    for trouble in kernel_log.of_card(since, card, [one for one in functions if one not in before.lost]):
        if trouble.stops:
            outcome.errors.append(trouble.error)
        else:
            outcome.remarks.append(f"{trouble.error.found}: {trouble.error.why}; {trouble.error.next}")
    for sign in kernel_log.of_start("\n".join(start_log)):
        if sign.lost:
            line = next((line for line in start_log if compiled(sign.pattern).search(line)), sign.name)
            outcome.errors.append(
                HomelabError(wanted=f"{card}, awake", found=f"QEMU says: {line}", why=sign.why, next=sign.next)
            )
    for address in sorted({match[1] for line in start_log if (match := _NOT_RESET.search(line))}):
        ways = ", ".join(resets.methods(after, address) or ["unknown"])
        if resets.works_alone(after, address) is False:
            outcome.explained.append(
                f"that {address} could not be reset is normal: it has no reset of its own, and QEMU resets the "
                "whole card where the VM has all of it"
            )
        else:
            outcome.remarks.append(
                f"{address} could not be reset when {vm} started (its resets: {ways}), and answers all the same: it "
                "may be as its last user left "
                "it. If the guest's driver fails on it, shut the VM down and restart the host"
            )
    return outcome


def _new(before: str, after: str) -> list[str]:
    """The lines that came to the kernel's log. Where `journalctl` didn't answer in time, `dmesg` did (lib/common.sh),
    and begins each line in another way."""
    said, lines = set(before.splitlines()), after.splitlines()
    if not said.isdisjoint(lines):
        return [line for line in lines if line not in said]
    earlier = Counter(message.text for message in messages(before))
    new = []
    for message in messages(after):
        earlier[message.text] -= 1
        if earlier[message.text] < 0:
            new += message.raw
    return new
