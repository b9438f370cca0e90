"""Open or proprietary kernel modules: which flavours cards and branch allow, and which one is chosen."""

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
    """The flavours that a card works with. An unknown card counts as a new one, which needs the open modules, as in
    NVIDIA's own driver assistant."""
    generation = request.generations[device]
    return generation.flavours if generation else ("open",)


def allowed_by_branch(request: Request) -> tuple[Flavour, ...]:
    """The flavours that the request's branch has; a newer branch than the data's counts as its newest."""
    if request.branch is not None:
        return request.branch.flavours
    newest = request.data.newest_branch
    later = request.driver is not None and request.driver.branch > newest
    return request.data.branches[newest].flavours if later else _BOTH


def choose(request: Request) -> Choice | None:
    """The flavour that settings, all cards and the branch allow, open where both are; None where none is."""
    wanted = request.settings.flavour
    cards = [allowed_by_card(request, device) for device in request.generations]
    possible = [
        flavour
        for flavour in _BOTH
        if flavour in allowed_by_branch(request) and all(flavour in allowed for allowed in cards)
    ]
    if wanted != "auto":
        return Choice(wanted, "the settings say so") if wanted in possible else None
    if not possible:
        return None
    return Choice(possible[0], _why(request, possible))


def _why(request: Request, possible: list[Flavour]) -> str:
    names = sorted(
        {
            generation.name if generation else f"the unknown card {device}"
            for device, generation in request.generations.items()
        }
    )
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
