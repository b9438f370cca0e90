"""The settings about the reset and the power management of cards, as the host's layer card_values takes them."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.settings import Gpu
from homelab.shapes import CardPlan
from remote_scripts.both.card_values import Attribute, Value, Wanted


def wanted(cards: Mapping[str, CardPlan], gpus: Mapping[str, Gpu]) -> Wanted:
    """What the layer card_values is to set.

    :param cards: as HostProbe puts them out.
    :param gpus: those of the settings.
    """
    values: list[Value] = []
    for name, card in sorted(cards.items()):
        gpu = gpus.get(name)
        for function in card["functions"] if gpu else []:
            attributes: list[tuple[Attribute, str]] = []
            if gpu and gpu.reset:
                attributes.append(("reset_method", gpu.reset))
            if gpu and gpu.keep_awake:
                attributes += [("d3cold_allowed", "0"), ("power/control", "on")]
            values += [
                Value(address=function["address"], id=function["id"], attribute=attribute, value=value)
                for attribute, value in attributes
            ]
    return Wanted(values=tuple(values))
