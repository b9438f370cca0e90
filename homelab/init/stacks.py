"""NVIDIA's drivers and CUDA's releases that can work on a system, the recommended one first, by the checks of a preview
and an `up` (homelab/nvidia/checks.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from homelab.host.facts import HostFacts
from homelab.nvidia.checks import cudas_that_fit, drivers_that_fit
from homelab.nvidia.compatibility import Target
from homelab.nvidia.preview import facts_for_plan, system_of
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings import Nvidia


def of_host(facts: HostFacts, cards: list[str], inside: SystemReading | None = None) -> SystemFacts:
    """The host as a system that gets a driver.

    :param cards: ids (vendor:device) of the cards that stay with it.
    :param inside: a reading of it.
    """
    return dataclasses.replace(facts_for_plan(inside), cards=tuple(cards)) if inside else system_of(facts, tuple(cards))


def in_container(
    driver: str | None, cards: Iterable[str] | None = None, inside: SystemReading | None = None
) -> SystemFacts:
    """A container as a system that gets the host's driver.

    :param driver: the host's, now or later; None: not known.
    :param cards: ids (vendor:device) of the cards that it gets.
    :param inside: a reading of it.
    """
    system = facts_for_plan(inside) if inside else SystemFacts()
    return dataclasses.replace(system, host_driver=driver, cards=None if cards is None else tuple(cards))


def in_vm(cards: list[str], inside: SystemReading | None = None) -> SystemFacts:
    """A VM that gets these cards (vendor:device).

    :param inside: a reading of it.
    """
    return dataclasses.replace(facts_for_plan(inside) if inside else SystemFacts(), cards=tuple(cards))


def drivers(target: Target, system: SystemFacts) -> list[str]:
    """The branches that can work, the recommended one first; empty where none can."""
    return drivers_that_fit(Request(target, Nvidia(), system))


def releases(target: Target, system: SystemFacts, driver: str | None) -> list[str]:
    """CUDA's releases that can work with a driver, the newest first; empty where none can.

    :param driver: a branch or version; None: the one that the system has, or would get.
    """
    return cudas_that_fit(Request(target, Nvidia.model_validate({"driver": driver} if driver else {}), system))


def releases_for_all(systems: Iterable[SystemFacts]) -> list[str]:
    """CUDA's releases that can work in all of these containers, the newest first."""
    fitting = [releases("lxc", system, None) for system in systems]
    return [release for release in fitting[0] if all(release in others for others in fitting)] if fitting else []
