"""The request for a system's NVIDIA stack: the settings and the system's facts, and what follows from both for driver,
modules and CUDA."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from homelab.errors import HomelabError
from homelab.facts.classes import NVIDIA
from homelab.nvidia.compatibility import Distribution, Facts, Flavour, Generation, Target, load
from homelab.nvidia.settings import Nvidia
from homelab.nvidia.versions import Version, fits, parse, reaches
from homelab.shapes import Capability
from remote_scripts.both.nvidia_packages import Said
from remote_scripts.both.read_system import SystemFacts

_CAPABILITIES: tuple[Capability, ...] = ("compute", "video", "graphics")


@dataclass(frozen=True)
class Request:
    """The request for one system's stack. `name`: the system's place in the settings, such as `vms.gaming`; `said`:
    what apt says on the system, None: it wasn't asked. Only `of` makes one."""

    target: Target
    settings: Nvidia
    name: str
    system: SystemFacts
    said: Said | None = None
    data: Facts = field(default_factory=load)
    today: datetime.date = field(default_factory=datetime.date.today)

    @classmethod
    def of(
        cls, target: Target, settings: Nvidia, name: str = "", system: SystemFacts | None = None, **known: Any
    ) -> Self:
        """The request by what is known of a system.

        :param system: a reading of it, or the facts of one that a stack's state has; None: it wasn't read.
        :param known: facts that are known otherwise.
        """
        return cls(target, settings, name, replace(system or SystemFacts(), **known))

    def trial(self, **values: object) -> Request:
        """The same with other settings.

        :param values: fields of the settings.
        """
        return replace(self, settings=self.settings.model_copy(update=values))

    def refusal(self, *, wanted: str, found: str, why: str, next: str) -> HomelabError:
        """A refusal of the stack, which says the system's name."""
        return HomelabError(wanted=f"{self.name}: {wanted}", found=found, why=why, next=next)

    @property
    def devices(self) -> tuple[str, ...] | None:
        """The device ids of NVIDIA's cards; None where the cards aren't known."""
        cards = self.system.cards
        mine = (card[5:].lower() for card in cards or () if card.lower().startswith(f"{NVIDIA}:"))
        return None if cards is None else tuple(mine)

    @property
    def distribution(self) -> Distribution | None:
        """The row of the system's distribution; None where the system wasn't read, or isn't known."""
        wanted = (self.system.distribution, self.system.version)
        return next((row for row in self.data.distributions if (row.id, row.version) == wanted), None)

    @cached_property
    def generations(self) -> dict[str, Generation]:
        """Device id -> generation; empty where the cards aren't known."""
        return {device: self.data.generation(device) for device in self.devices or ()}

    @property
    def needs_open(self) -> bool | None:
        """Whether a card works with the open modules alone; None where the cards aren't known."""
        rows = self.generations.values()
        return any(row.modules == "open" for row in rows) if rows else None

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """The capabilities of the driver's libraries; without settings `compute`, and `video` where it can be had."""
        wanted = ("compute", *(self.settings.capabilities or ("video",)))
        return tuple(capability for capability in _CAPABILITIES if capability in wanted)

    @property
    def cuda(self) -> Version | None:
        """The wanted release of CUDA."""
        return parse(self.settings.cuda) if self.settings.cuda else None

    @property
    def exact(self) -> Version | None:
        """The driver, a branch or a version, that the settings name, or a container's host has."""
        text = (self.system.host_driver if self.target == "lxc" else "") or self.settings.driver
        return parse(text) if text else None

    @cached_property
    def drivers(self) -> tuple[Version, ...]:
        """The drivers that may be taken, the best first: the named one, or the recommended branches, as far as they
        suit cards and CUDA, else the first other branch that does. Empty: none does, or a container's host isn't
        known."""
        if self.exact or self.target == "lxc":
            return (self.exact,) if self.exact and self.suits(self.exact) else ()
        fitting = [branch for branch in self.branches() if self.suits(branch)]
        return tuple(one for one in fitting if one.major in self.data.recommended) or tuple(fitting[:1])

    @cached_property
    def driver(self) -> Version | None:
        """The named one, or the first of `drivers`. If none suits, the first that knows the cards, or the recommended
        one: the refusal then says why it doesn't suit. None in a container whose host isn't known."""
        if self.exact or self.drivers or self.target == "lxc":
            return self.exact or next(iter(self.drivers), None)
        return next(filter(self._knows_all, self.branches()), parse(str(self.data.recommended[0])))

    def branches(self) -> Iterator[Version]:
        """All branches in the order in which one is chosen: the recommended ones, then the others that are maintained,
        the newest first; at the end those without fixes."""
        others = sorted({*self.data.branches} - {*self.data.recommended}, reverse=True)
        others.sort(key=lambda branch: self.data.ended(branch, self.today))
        return (parse(str(branch)) for branch in (*self.data.recommended, *others))

    def suits(self, driver: Version) -> bool:
        """Whether a driver knows all cards, has modules for them, and runs CUDA."""
        return bool(self.flavours(driver)) and self.runs_cuda(driver) and self._knows_all(driver)

    def _knows_all(self, driver: Version) -> bool:
        return all(row.known_to(driver) for row in self.generations.values())

    def flavours(self, driver: Version) -> list[Flavour | None]:
        """The modules that settings, all cards and the branch allow, open first. A container has none: one None."""
        rows, wanted = self.generations.values(), self.settings.flavour
        possible: list[Flavour | None] = [
            flavour
            for flavour in self.data.flavours(driver.major)
            if wanted in ("auto", flavour) and all(row.modules in ("both", flavour) for row in rows)
        ]
        return [None] if self.target == "lxc" else possible

    def runs_cuda(self, driver: Version) -> bool:
        """Whether a driver runs what the wanted CUDA compiles, with limits where the settings allow them."""
        least = self.data.least_for(self.cuda) if self.cuda else driver
        if self.cuda and self.settings.allow_minor_version_compatibility:
            least = self.data.cuda_majors.get(self.cuda.major, least)
        return reaches(driver, least)

    @property
    def unbuilt(self) -> list[str]:
        """The cards that the wanted CUDA can't build for."""
        release = parse(self.cuda.short) if self.cuda else None
        ends = [(device, *row.cuda) for device, row in self.generations.items() if release]
        return [one for one, first, last in ends if release and not (first or release) <= release <= (last or release)]

    def sha256(self, driver: Version) -> tuple[str, str] | None:
        """Version and SHA-256 of NVIDIA's installer of a driver, of a branch the newest that is known here or in the
        settings; None: none is."""
        known = {**self.data.installers, **self.settings.run_sha256}
        return max(
            (one for one in known.items() if fits(parse(one[0]), driver)), key=lambda one: parse(one[0]), default=None
        )
