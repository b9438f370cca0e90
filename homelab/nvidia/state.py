"""A system's facts in a stack's state."""

from __future__ import annotations

from typing import Any

from homelab.nvidia.compatibility import Target
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.nvidia import Nvidia
from homelab.shapes import SystemState


def facts_of(reading: SystemReading, target: Target) -> SystemState:
    """The facts of a system for the state, without those that the steps themselves change."""
    system = reading.system
    return {
        "distribution": system.distribution,
        "version": system.version,
        "architecture": system.architecture,
        "kernels": list(system.kernels or ()) if target == "host" else [system.running or ""],
        "running": system.running,
        "secure_boot": system.secure_boot,
        "mok_enrolled": system.mok_enrolled,
        "cards": list(system.cards or ()),
        "host_driver": system.host_driver,
        "runtimes": sorted(system.runtimes or ()),
    }


def request_of(
    target: Target,
    name: str,
    facts: SystemState,
    stack: Nvidia,
    offered: dict[str, list[str]] | None = None,
) -> Request:
    """The request for `nvidia.plan`.

    :param name: the system's, in the settings.
    :param facts: those of `facts_of`.
    :param stack: the settings.
    :param offered: package -> versions; None until the repositories are configured.
    """
    values: Any = {
        **facts,
        "kernels": tuple(facts["kernels"]),
        "cards": tuple(facts["cards"]),
        "runtimes": frozenset(facts["runtimes"]),
        "offered": None if offered is None else {package: tuple(texts) for package, texts in offered.items()},
    }
    return Request(target, stack, SystemFacts(**values), name)
