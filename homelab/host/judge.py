"""What is judged of a host by its settings. Pure: preview, refresh, `up` and doctor ask the same functions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from homelab.cards import mapping, resolving
from homelab.cards import remarks as card_remarks
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from homelab.findings import Finding, Judged, Turn
from homelab.host import handover, plan, stack_folder
from homelab.host.plan import Wanted
from homelab.settings import Host, Vm
from homelab.shapes import BOOT_LAYERS


@dataclass(frozen=True)
class JudgedHost(Judged):
    """What a host is to be, and what isn't as it must be."""

    want: Wanted
    """The plan; of a host that is refused, an empty one."""
    drift: dict[str, list[str]]
    """Layer -> its differences from the plan: what the next `up` mends, a refresh's drift."""


def judge_host(
    facts: HostFacts, host: Host, vms: Collection[Vm] = (), had: Wanted | None = None, stack: str = "", agent: str = ""
) -> JudgedHost:
    """What is planned for a host, and what is judged of it.

    :param vms: of this host.
    :param had: the plan of an earlier run, of which the settings may have lost cards; by default it is theirs.
    :param stack: PROJECT/STACK; empty: it isn't known.
    :param agent: the version of the stack's agent there; empty: any.
    """
    slots, _ = resolving.resolve(facts, host.gpus)
    cards = {f"gpus.{name}": [one.address for one in facts.functions(slot)] for name, slot in slots.items()}
    # What the kernel says of the host's IOMMU as a whole is judged by what the host has.
    troubles = kernel_log.troubles(facts, facts.cluster.node, cards, with_host=False)
    next_boot = [HomelabError(**facts.next_boot)] if facts.next_boot else []
    lasting = [one.error for one in troubles if not one.harmless]
    lost = (_left_off(one.said) for one in facts.owed if one.is_lost)
    met = Finding.of(*next_boot, *lost, *_sunk(facts, host), *_lost_partitions(facts), *lasting)
    try:
        want = had or plan.wanted(facts, host, vms)
    except HomelabError as error:
        return JudgedHost([*Finding.of(error, turn=Turn.REFUSED), *met], [], Wanted("", "", {}, []), {})
    want = replace(want, gpus={name: card for name, card in want.gpus.items() if name in host.gpus})
    drift = plan.drift(facts, want)
    # Without a folder of the stack's there may have been no `up`.
    kept = facts.agents.get(stack_folder.owner(stack, host.name))
    if (had or kept is not None) and facts.boot_lacks is None:  # whoever decides on a reboot notes it
        drift["iommu"].append("the host has no note of what its boot should have")
    is_lost = kept != agent if agent else kept == ""
    drift["agent"] = ["this program's agent is missing on the host, or changed"] if is_lost else []
    lines = list(dict.fromkeys(line for lines in drift.values() for line in lines))
    findings = Finding.of_steps(
        f"the host {facts.cluster.node} configured as the settings have it",
        lines,
        "it was changed since the last `pulumi up`, or that has never run, or was cut short",
    )
    if not any(drift[layer] for layer in BOOT_LAYERS):  # else the verification comes after the boot that ends it
        findings += Finding.of(*plan.verify(facts, host, want))
    # Also of a plan that was made earlier, and has passed its gates: anybody changes mappings.
    findings += Finding.of(*mapping.refused(facts, host, slots), turn=Turn.REFUSED)
    remarks = [*card_remarks.remarks(facts, host, slots), *(one.said for one in facts.owed if not one.is_lost)]
    return JudgedHost([*findings, *met], remarks, want, drift)


def verified(facts: HostFacts, host: Host, name: str, want: Wanted) -> tuple[list[HomelabError], list[str]]:
    """The verification after a boot: what isn't as planned, and what need not stop the run, a sentence each.

    :param name: the host's, for messages.
    """
    cards = {f"{name}, gpus.{gpu}": [one["address"] for one in card["functions"]] for gpu, card in want.gpus.items()}
    troubles = kernel_log.troubles(facts, name, cards, with_host=bool(want.functions))
    errors = [*plan.verify(facts, host, want), *(one.error for one in troubles if one.stops)]
    return errors, [one.remark for one in troubles if not one.stops]


def _left_off(said: str) -> HomelabError:
    return HomelabError(
        wanted="each guest that homelab has switched off running again",
        found=said,
        why="a run of homelab was killed in that moment; against its owner none is started",
        next="start it if it is to run; else leave it off: the next change of it by `pulumi up` forgets that",
    )


# State in which a handover has stopped (handover.has_sunk) -> why it matters, and what to do.
_SINKS = {
    "HELD": (
        "the card is with the host, and a VM didn't get it, or its driver doesn't answer for it",
        "mend what is found, then start the VM; the details are in /var/lib/homelab/handover/log",
    ),
    "STUCK": (
        "NVIDIA's driver waits in the kernel for something that still uses the card, and whatever touches the card "
        "next waits, too: nothing is tried while it waits",
        "reboot the host: it then has the card, and containers start as they do at boot; "
        "/var/lib/homelab/handover/log names who had it",
    ),
    "DEAD": (
        "the card doesn't answer as it should; a driver that is given such a card can take the host down",
        "switch the host off and on (a reboot leaves the card its power); if it happens again, look at how the card is "
        "reset, as homelab show says it",
    ),
}


def _sunk(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """Errors of shared cards whose handover has stopped."""
    for name in host.hands_over:
        if handover.has_sunk(facts, name):
            why, step = _SINKS[handover.record_of(facts, name).state]
            wanted = f"gpus.{name} handed over whole, or not at all"
            yield HomelabError(wanted=wanted, found=handover.state_text(facts, name), why=why, next=step)


def _lost_partitions(facts: HostFacts) -> Iterator[HomelabError]:
    """The error for ESPs that proxmox-boot-tool should keep, and can't."""
    warnings = facts.boot_warnings.strip()
    if not warnings:
        return
    yield HomelabError(
        wanted="every boot partition (ESP) that proxmox-boot-tool keeps",
        found=kernel_log.excerpt(warnings),
        why="new kernels and command lines don't reach one that is gone; if the firmware boots from it, they never "
        "come into effect",
        next="see `proxmox-boot-tool status`; drop a disk that was taken out with `proxmox-boot-tool clean`, give "
        "a new one its own with `proxmox-boot-tool format PARTITION` and `proxmox-boot-tool init PARTITION`",
    )
