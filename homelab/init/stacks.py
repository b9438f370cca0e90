"""Which of NVIDIA's drivers and CUDA's releases fit a system: what can't work isn't offered, and the recommended one comes first."""

from __future__ import annotations

from typing import Any

from homelab.host.facts import HostFacts
from homelab.nvidia.checks import refusals
from homelab.nvidia.compatibility import Target
from homelab.nvidia.preview import system_of
from homelab.nvidia.request import Request, SystemFacts, ranked_branches
from homelab.settings import Nvidia


def of_host(facts: HostFacts, cards: list[str]) -> SystemFacts:
    """The host as a system that gets a driver.

    :param cards: ids (vendor:device) of those that stay with it.
    """
    return system_of(facts, tuple(cards))


def in_container(driver: str | None) -> SystemFacts:
    """A container on a host whose driver is, or will be, this one; None: nothing is known of it."""
    return SystemFacts(host_driver=driver)


def in_vm(cards: list[str]) -> SystemFacts:
    """A VM that gets these cards (vendor:device); what is in it, nobody has read yet."""
    return SystemFacts(cards=tuple(cards))


def _fits(target: Target, system: SystemFacts, **nvidia: Any) -> bool:
    return not refusals(Request(target, Nvidia.model_validate(nvidia), system))


def drivers(target: Target, system: SystemFacts) -> list[str]:
    """The branches that can work, the recommended one first; empty where none can."""
    request = Request(target, Nvidia(), system)
    best = [str(request.driver.branch)] if request.driver else []
    ranked = [str(row.branch) for row in ranked_branches(request)]
    return [branch for branch in dict.fromkeys([*best, *ranked]) if _fits(target, system, driver=branch)]


def releases(target: Target, system: SystemFacts, driver: str | None) -> list[str]:
    """CUDA's releases that can work with a driver, the newest first.

    :param driver: a branch or version; None: the one that the system has, or would get.
    """
    chosen = {"driver": driver} if driver else {}
    known = sorted(Request(target, Nvidia(), system).data.cuda.releases, key=lambda row: row.release, reverse=True)
    return [str(row.release) for row in known if _fits(target, system, cuda=str(row.release), **chosen)]
