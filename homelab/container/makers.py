"""A container's cards by maker: NVIDIA's, and those whose driver makes nodes in /dev/dri; the latter as words for
the host's agent.

Pure, and without imports that read a host: each run of the program needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from homelab.facts.classes import GRAPHICS, NVIDIA
from homelab.shapes import CardFunction, CardPlan, SharedCard
from remote_scripts.notes.container_note import Cards

if TYPE_CHECKING:
    from homelab.settings import Container, Gpu


def display_function(card: CardPlan) -> CardFunction:
    """A card's graphics function, else its first one."""
    graphics = (function for function in card["functions"] if function["class"].startswith(GRAPHICS))
    return next(graphics, card["functions"][0])


def is_nvidia(card: CardPlan) -> bool:
    """Whether a card is NVIDIA's."""
    return display_function(card)["id"].startswith(f"{NVIDIA}:")


def other_cards(container: Container, gpus: Mapping[str, CardPlan]) -> dict[str, CardPlan]:
    """The cards of makers other than NVIDIA that the settings give to a container: name -> card.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    """
    return {name: gpus[name] for name in container.cards if name in gpus and not is_nvidia(gpus[name])}


def may_have_nvidia(container: Container, gpus: Mapping[str, Gpu]) -> bool:
    """Whether a container may get a card of NVIDIA's. Only the host knows the maker of a card that is named by its
    address.

    :param gpus: the cards of its host, by name.
    """
    return not container.gpus or any(
        gpus[name].match is None or gpus[name].is_nvidia for name in container.gpus if name in gpus
    )


def any_nvidia(containers: Iterable[Container], gpus: Mapping[str, CardPlan]) -> bool:
    """Whether any container uses NVIDIA's driver: not those without cards, nor those with cards of other makers
    alone."""
    return any(
        bool(container.numbers) or any(name in gpus and is_nvidia(gpus[name]) for name in container.cards)
        for container in containers
    )


def cards_of(
    container: Container, minors: Iterable[int], functions: Iterable[str], shared: Mapping[str, SharedCard]
) -> Cards:
    """A container's cards, for the host's agent.

    :param minors: numbers of /dev/nvidiaN.
    :param functions: addresses of NVIDIA's cards' display functions.
    :param shared: cards of other makers.
    """
    return Cards(
        method=container.method,
        minors=tuple(int(minor) for minor in minors),
        functions=tuple(functions),
        cards=tuple(words(shared).split()),
    )


def addresses(cards: Cards) -> set[str]:
    """Those of the cards' display functions."""
    return {*cards.functions, *(word.partition("=")[0] for word in cards.cards)}


def words(shared: Mapping[str, SharedCard]) -> str:
    """Cards as words for the agent: `0000:00:02.0=render 0000:c6:00.0=render,kfd`."""
    return " ".join(sorted(f"{card['address']}={','.join(card['kinds'])}" for card in shared.values()))
