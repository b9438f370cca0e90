"""Open or proprietary kernel modules: what cards and branch allow, and which of it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from homelab.nvidia.compatibility import Flavour
from homelab.nvidia.request import Request

_BOTH: tuple[Flavour, ...] = ("open", "proprietary")


@dataclass(frozen=True)
class Choice:
    """The flavour to take, and why."""

    flavour: Flavour
    why: str


def allowed_by_card(request: Request, device: str) -> tuple[Flavour, ...]:
    """What a card works with. An unknown one is taken for a new one, as NVIDIA's own driver assistant takes it: open
    alone."""
    generation = request.generations[device]
    return generation.flavours if generation else ("open",)


def allowed_by_branch(request: Request) -> tuple[Flavour, ...]:
    """What a branch has; newer branches than those known are taken to have what the newest known has."""
    if request.branch is not None:
        return request.branch.flavours
    newest = request.data.newest_branch
    later = request.driver is not None and request.driver.branch > newest
    return request.data.branches[newest].flavours if later else _BOTH


def choose(request: Request) -> Choice | None:
    """The flavour that all cards and the branch allow, open where both are; None where there is none."""
    wanted = request.settings.flavour
    cards = [allowed_by_card(request, device) for device in request.generations]
    possible = [f for f in _BOTH if f in allowed_by_branch(request) and all(f in allowed for allowed in cards)]
    if wanted != "auto":
        return Choice(wanted, "the settings say so") if wanted in possible else None
    if not possible:
        return None
    return Choice(possible[0], _why(request, possible))


def _why(request: Request, possible: list[Flavour]) -> str:
    names = sorted({one.name if one else f"the unknown card {device}" for device, one in request.generations.items()})
    cards = ", ".join(names)
    if not cards:
        return "open modules are NVIDIA's choice from Turing on; the cards aren't known yet"
    if len(possible) == 2:
        return f"NVIDIA's choice from Turing on ({cards})"
    if possible == ["proprietary"]:
        return f"{cards}: the open modules need a GSP, which cards have from Turing on"
    if not all(allowed_by_card(request, device) == ("open",) for device in request.generations):
        return f"{request.driver.text if request.driver else 'the driver'} has no other"
    return f"{cards}: works with the open modules alone"
