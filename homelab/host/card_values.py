"""What the settings say of how cards are reset and whether they may sleep, as the host takes it. Pure; it reads nothing
of a host."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.settings import Gpu
from homelab.shapes import CardPlan


def lines(cards: Mapping[str, CardPlan], gpus: Mapping[str, Gpu]) -> list[str]:
    """The lines of card_values.sh: address, vendor:device, attribute, value.

    :param cards: as HostProbe puts them out.
    :param gpus: those of the settings.
    """
    found: list[str] = []
    for name, card in sorted(cards.items()):
        gpu = gpus.get(name)
        for function in card["functions"] if gpu else []:
            about = f"{function['address']} {function['id']}"
            if gpu and gpu.reset:
                found.append(f"{about} reset_method {gpu.reset}")
            if gpu and gpu.keep_awake:
                found += [f"{about} d3cold_allowed 0", f"{about} power/control on"]
    return found
