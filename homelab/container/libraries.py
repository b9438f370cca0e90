"""Packages by which programs in a container use its Intel and AMD cards (`containers.NAME.libraries`), and refusals
where there are none.

Pure; libraries.yaml has the data. Only inside a container its distribution is known for certain, so that the layer
chooses there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from homelab import tables
from homelab.container import makers
from homelab.errors import HomelabError
from homelab.facts.classes import AMD, INTEL
from homelab.facts.host import HostFacts
from homelab.settings import Container
from homelab.shapes import CardPlan
from remote_scripts.both.card_libraries import Choice

_MAKERS = {INTEL: "intel", AMD: "amd"}
# Proxmox VE's names (ostype) of distributions with apt.
WITH_APT = ("debian", "ubuntu", "devuan", "unmanaged")


class DistributionRow(tables.SourcedRow):
    """A release of a distribution. `packages`: maker -> use -> package names; `lacks`: the same -> what isn't
    packaged."""

    id: str
    version: str
    packages: dict[str, dict[str, str]]
    lacks: dict[str, dict[str, str]] = {}


@functools.cache
def rows() -> tuple[DistributionRow, ...]:
    """All rows of libraries.yaml; read once."""
    found = tables.read(Path(__file__).with_suffix(".yaml"))["distributions"]
    return tuple(DistributionRow.model_validate(row) for row in found)


def makers_of(container: Container, gpus: Mapping[str, CardPlan]) -> list[str]:
    """Makers of a container's cards that need packages: `intel`, `amd`; a card for screens alone needs none.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    """
    ids = {
        makers.display_function(card)["id"].partition(":")[0] for card in makers.other_cards(container, gpus).values()
    }
    return sorted(_MAKERS[vendor] for vendor in ids if vendor in _MAKERS)


def choices(uses: Iterable[str], maker_names: Iterable[str]) -> tuple[Choice, ...]:
    """What each distribution has.

    :param uses: `video`, `compute`.
    :param maker_names: those of `makers_of`.
    """
    wanted = [(maker, use) for maker in sorted(maker_names) for use in sorted(uses)]
    found = []
    for row in rows():
        names = [name for maker, use in wanted for name in row.packages.get(maker, {}).get(use, "").split()]
        lacking = "; ".join(row.lacks[maker][use] for maker, use in wanted if use in row.lacks.get(maker, {}))
        found.append(Choice(id=row.id, version=row.version, packages=tuple(dict.fromkeys(names)), lacking=lacking))
    return tuple(found)


def refusals(name: str, container: Container, facts: HostFacts, gpus: Mapping[str, CardPlan]) -> Iterator[HomelabError]:
    """Refusals of packages in a container: none of its cards needs any, or none are known for its distribution."""
    wanted = f"containers.{name}.libraries: {', '.join(container.libraries)}"
    config = facts.guests.config(container.ctid)
    distribution = config.values.get("ostype", "unmanaged") if config and config.kind == "lxc" else "unmanaged"
    if container.libraries and not makers_of(container, gpus):
        yield HomelabError(
            wanted=wanted,
            found="no card of Intel's or AMD's among its gpus",
            why="these packages are for their cards; NVIDIA's libraries have to be of the host's driver's version",
            next=f"take containers.{name}.libraries out, or write containers.{name}.nvidia for a card of NVIDIA's",
        )
    elif container.libraries and distribution not in WITH_APT:
        known = ", ".join(f"{row.id.capitalize()} {row.version}" for row in rows())
        yield HomelabError(
            wanted=wanted,
            found=f"container {container.ctid} is {distribution} (`pct config {container.ctid}`)",
            why=f"packages are known for {known} alone; the card itself works in any container",
            next=f"take containers.{name}.libraries out, and install its own VA-API drivers inside yourself",
        )
