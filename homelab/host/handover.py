"""Cards that containers and a VM have in turn: what the host is told of them, and what stands against changing anything while one is away. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.host.classes import GRAPHICS
from homelab.shapes import CardPlan

if TYPE_CHECKING:
    from homelab.host.facts import HostFacts


def card_line(name: str, card: CardPlan, vmids: Sequence[int]) -> str:
    """A card as `scripts.handover` takes it, its graphics function first.

    :param name: in the settings; ``vmids``: of the VMs that may take it.
    """
    functions = sorted(card["functions"], key=lambda one: not one["class"].startswith(GRAPHICS))
    words = ",".join(f"{one['address']}={one['id']}" for one in functions)
    return f"{name} {words} {','.join(str(vmid) for vmid in vmids) or '-'}"


def refused(facts: HostFacts) -> list[HomelabError]:
    """What an `up` that changes something refuses in the same words (lib/handover/rest.sh)."""
    if not facts.handover.away:
        return []
    return [
        HomelabError(
            wanted="this host's shared cards with the host",
            found=facts.handover.away,
            why="NVIDIA's driver and containers can't be changed, verified or given back while a card of theirs is away; nothing was changed",
            next="shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor explains it)",
        )
    ]


def said(facts: HostFacts, name: str) -> str:
    """Where a card is that is handed over, in words; nothing where it is simply with the host."""
    about = facts.handover.of_card(name)
    state, vm = about.get("state", ""), about.get("vm", "")
    if not state or (about.get("boot") != facts.boot_id.strip() and state != "DEAD"):
        return ""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(int(about.get("since") or 0)))
    if state == "VM":
        return f"with VM {vm} since {since}"
    if state in ("HELD", "STUCK", "DEAD"):
        return f"{state} since {since}: {about.get('why', '')}"
    return f"on its way to or from VM {vm} ({state})"
