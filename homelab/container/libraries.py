"""Packages by which programs in a container use its Intel and AMD cards (`containers.NAME.libraries`): which there are,
and where there are none.

Pure; libraries.yaml has the data. Which distribution a container is, is known for certain only inside: the script
chooses its line there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from homelab import tables
from homelab.container import makers
from homelab.errors import HomelabError
from homelab.host.classes import AMD, INTEL
from homelab.host.facts import HostFacts
from homelab.settings import Container
from homelab.shapes import CardPlan, CardUse

# What the step is called inside (remote_scripts/card_libraries.sh).
LAYER = "libraries"
_MAKERS = {INTEL: "intel", AMD: "amd"}
_Maker = Literal["intel", "amd"]
# Proxmox VE's names of what has apt.
_WITH_APT = ("debian", "ubuntu", "devuan", "unmanaged")


class LookInside(Protocol):
    """What a reading of the container says of steps there (homelab/nvidia/reading.py)."""

    @property
    def steps(self) -> frozenset[str]:
        """Those that were carried out."""

    @property
    def drift(self) -> tuple[str, ...]:
        """What isn't as they left it."""


class DistributionRow(BaseModel):
    """A release of a distribution."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    version: str
    packages: dict[_Maker, dict[CardUse, str]]
    lacks: dict[_Maker, dict[CardUse, str]] = {}
    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report"]


class LibraryData(BaseModel):
    """libraries.yaml; see there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distributions: tuple[DistributionRow, ...]
    others: dict[str, str]

    @property
    def names(self) -> str:
        """For a message."""
        return ", ".join(f"{row.id.capitalize()} {row.version}" for row in self.distributions)


@functools.cache
def data() -> LibraryData:
    """The data."""
    return LibraryData.model_validate(tables.read(Path(__file__).with_suffix(".yaml")))


def makers_of(container: Container, gpus: Mapping[str, CardPlan]) -> list[str]:
    """Whose cards a container gets that need packages: `intel`, `amd`; a driver for screens alone has none.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    """
    ids = {makers.shown(card)["id"].partition(":")[0] for card in makers.others(container, gpus).values()}
    return sorted(_MAKERS[vendor] for vendor in ids if vendor in _MAKERS)


def choices(uses: Iterable[str], whose: Iterable[str]) -> str:
    """What card_libraries.sh chooses from: a line for each distribution, of its id, its version, the packages and what
    it lacks, `-` for neither; tabs between.

    :param uses: `video`, `compute`.
    :param whose: as `makers_of` gives it.
    """
    wanted = [(maker, use) for maker in sorted(whose) for use in sorted(uses)]
    lines = []
    for row in data().distributions:
        packages: dict[str, None] = {}
        lacking = []
        for maker, use in wanted:
            packages |= dict.fromkeys(_of(row.packages, maker, use).split())
            lacking += [text] if (text := _of(row.lacks, maker, use)) else []
        lines.append("\t".join((row.id, row.version, " ".join(packages) or "-", "; ".join(lacking) or "-")))
    return "\n".join(lines)


def _of(found: Mapping[_Maker, Mapping[CardUse, str]], maker: str, use: str) -> str:
    return next((uses[key] for name, uses in found.items() if name == maker for key in uses if key == use), "")


def refusals(name: str, container: Container, facts: HostFacts, gpus: Mapping[str, CardPlan]) -> list[HomelabError]:
    """What is known before anything is changed to stand against packages in a container."""
    if not container.libraries:
        return []
    wanted = f"containers.{name}.libraries: {', '.join(container.libraries)}"
    if not makers_of(container, gpus):
        return [
            HomelabError(
                wanted=wanted,
                found="no card of Intel's or AMD's among its gpus",
                why="these packages are for their cards; NVIDIA's libraries have to be of the host's driver's version",
                next=f"take containers.{name}.libraries out, or write containers.{name}.nvidia for a card of NVIDIA's",
            )
        ]
    config = facts.guests.config(container.ctid)
    kind = config.values.get("ostype", "unmanaged") if config is not None and config.kind == "lxc" else "unmanaged"
    if kind in _WITH_APT:
        return []
    by_hand = data().others.get(kind, "its own VA-API drivers inside")
    return [
        HomelabError(
            wanted=wanted,
            found=f"container {container.ctid} is {kind} (`pct config {container.ctid}`)",
            why=f"packages are known for {data().names} alone; the card itself works in any container",
            next=f"take containers.{name}.libraries out, and install them yourself: {by_hand}",
        )
    ]


def drift(reading: LookInside) -> list[str]:
    """What has become of the packages, by a reading of the container: a sentence each."""
    found = [line for line in reading.drift if line.startswith(f"{LAYER}: ")]
    return found if LAYER in reading.steps else [*found, f"{LAYER}: nothing there tells of it any more"]
