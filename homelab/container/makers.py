"""Which of a container's cards are NVIDIA's and which of another maker, whose driver makes nodes in /dev/dri; the
latter as the scripts take them.

Pure, and without what reads a host: each run of the program needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from homelab.host.classes import GRAPHICS, NVIDIA
from homelab.shapes import CardFunction, CardPlan, SharedCard

if TYPE_CHECKING:
    from homelab.host.facts import DrmNodes
    from homelab.settings import Container


def shown(card: CardPlan) -> CardFunction:
    """The function that makes it a card."""
    return next((one for one in card["functions"] if one["class"].startswith(GRAPHICS)), card["functions"][0])


def is_nvidia(card: CardPlan) -> bool:
    """Is it one of NVIDIA's?"""
    return shown(card)["id"].startswith(f"{NVIDIA}:")


def others(container: Container, gpus: Mapping[str, CardPlan]) -> dict[str, CardPlan]:
    """The cards of other makers that the settings give to a container: name -> card.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    """
    return {name: gpus[name] for name in container.gpus or [] if name in gpus and not is_nvidia(gpus[name])}


def any_nvidia(containers: Iterable[Container], gpus: Mapping[str, CardPlan]) -> bool:
    """Does a container use NVIDIA's driver? One without cards doesn't, nor one whose cards are all of other makers."""
    return any(
        bool(container.numbers) or any(name in gpus and is_nvidia(gpus[name]) for name in container.gpus or [])
        for container in containers
    )


def words(shared: Mapping[str, SharedCard]) -> str:
    """As the scripts take them: `0000:00:02.0=render 0000:c6:00.0=render,kfd`."""
    return " ".join(sorted(f"{card['address']}={','.join(card['kinds'])}" for card in shared.values()))


def nodes(words: str, drm: Mapping[str, DrmNodes]) -> list[str]:
    """The paths that the words of `words` mean now; of a card without a driver none.

    :param drm: PCI address -> its nodes.
    """
    found: dict[str, None] = {}
    for word in words.split():
        address, _, kinds = word.partition("=")
        one = drm.get(address)
        for kind in kinds.split(",") if one is not None else ():
            name = "" if one is None else one.render if kind == "render" else one.card
            if kind == "kfd" or name:
                found["/dev/kfd" if kind == "kfd" else f"/dev/dri/{name}"] = None
    return list(found)
