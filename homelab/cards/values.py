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
    for name in sorted(cards.keys() & gpus.keys()):
        attributes: dict[Attribute, str] = {}
        if reset := gpus[name].reset:
            attributes["reset_method"] = reset
        if gpus[name].keep_awake:
            attributes |= {"d3cold_allowed": "0", "power/control": "on"}
        values += [
            Value(address=function["address"], id=function["id"], attribute=attribute, value=value)
            for function in cards[name]["functions"]
            for attribute, value in attributes.items()
        ]
    return Wanted(values=tuple(values))
