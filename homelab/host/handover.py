"""Cards that containers and a VM have in turn: as the host hands them over, their state, and the refusals while one is
away. Pure."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.facts.classes import GRAPHICS
from homelab.settings import Host, Vm
from homelab.shapes import CardPlan
from remote_scripts.notes.card import Card
from remote_scripts.notes.record import Record

if TYPE_CHECKING:
    from homelab.facts.host import HostFacts

# States in which a handover ends, other than with the host or with a VM.
_SINKS = ("HELD", "STUCK", "DEAD")


def card(name: str, card: CardPlan, vmids: Sequence[int]) -> Card:
    """A card as the host hands it over, its graphics function first.

    :param name: in the settings.
    :param vmids: of the VMs that may take it.
    """
    functions = sorted(card["functions"], key=lambda function: not function["class"].startswith(GRAPHICS))
    return Card(name=name, functions={function["address"]: function["id"] for function in functions}, vms=tuple(vmids))


def refused(facts: HostFacts) -> Iterator[HomelabError]:
    """The refusal while a shared card is away; notes/handover.py has the same words."""
    if facts.handover.away:
        yield HomelabError(
            wanted="this host's shared cards with the host",
            found=facts.handover.away,
            why="NVIDIA's driver and containers can't be changed, verified or given back while one of their cards "
            "is away; nothing was changed",
            next=f"shut down the VM that has it ({facts.handover.away}), which gives the card back, then run `pulumi "
            "up` again (STUCK or DEAD: homelab doctor explains it)",
        )


def takers(host: Host, vms: Iterable[Vm]) -> dict[str, list[int]]:
    """The ids of the VMs that may take each shared card.

    :param vms: those of this host.
    """
    return {gpu: [vm.vmid for vm in vms if gpu in vm.cards] for gpu in host.hands_over}


def cards_of(host: Host, vms: Collection[Vm], cards: Mapping[str, CardPlan]) -> tuple[Card, ...]:
    """All shared cards, as the host hands them over.

    :param cards: the host's, by name.
    """
    return tuple(card(gpu, cards[gpu], vmids) for gpu, vmids in takers(host, vms).items())


def record_of(facts: HostFacts, name: str) -> Record:
    """What is noted of a card. A state of an earlier boot doesn't count."""
    record = facts.handover.cards.get(name, Record())
    return record if record.boot == facts.boot_id.strip() else Record()


def has_sunk(facts: HostFacts, name: str) -> bool:
    """Whether a card is in a state from which it doesn't come back by itself, with or without a running VM."""
    return record_of(facts, name).state in _SINKS


def state_text(facts: HostFacts, name: str) -> str:
    """The state of a card that is handed over, in words; empty: it is with the host."""
    path = f"/var/lib/homelab/handover/{name}.state"
    if unread := [text for text in facts.unreadable if text.startswith(f"{path}: ")]:
        return f"not known: its state can't be read ({unread[0]})"
    record = record_of(facts, name)
    if record.state == "HOST":
        return ""
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.since))
    if record.state == "VM":
        return f"with VM {record.vm} since {at}"
    if record.state in _SINKS:
        return f"{record.state} since {at}: {record.why}"
    return f"on its way to or from VM {record.vm} ({record.state}) since {at}"
