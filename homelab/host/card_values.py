"""The settings about the reset and the power management of cards, as lines for the host. Pure; it reads nothing of a
host."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.settings import Gpu
from homelab.shapes import CardPlan


def lines(cards: Mapping[str, CardPlan], gpus: Mapping[str, Gpu]) -> list[str]:
    """The lines of card_values.sh: address, vendor:device, attribute, value.

    :param cards: as HostProbe puts them out.
    :param gpus: those of the settings.
    """
    value_lines: list[str] = []
    for name, card in sorted(cards.items()):
        gpu = gpus.get(name)
        for function in card["functions"] if gpu else []:
            function_key = f"{function['address']} {function['id']}"
            if gpu and gpu.reset:
                value_lines.append(f"{function_key} reset_method {gpu.reset}")
            if gpu and gpu.keep_awake:
                value_lines += [f"{function_key} d3cold_allowed 0", f"{function_key} power/control on"]
    return value_lines
