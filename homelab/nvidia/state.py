"""A system as the state of a stack holds it."""

from __future__ import annotations

import dataclasses
from typing import Any

from homelab.nvidia.compatibility import Target
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request, SystemFacts


def facts_of(reading: SystemReading, target: Target) -> dict[str, Any]:
    """What is known of the system, as the state holds it: nothing that the steps themselves change."""
    system = dataclasses.asdict(reading.system)
    return {
        **{
            key: value for key, value in system.items() if key not in ("offered", "loaded", "loaded_flavour", "nouveau")
        },
        "kernels": list(reading.system.kernels or ()) if target == "host" else [reading.system.running],
        "cards": list(reading.system.cards or ()),
        "runtimes": sorted(reading.system.runtimes or ()),
    }


def request_of(
    target: Target, name: str, facts: dict[str, Any], stack: Any, offered: dict[str, list[str]] | None = None
) -> Request:
    """What `nvidia.plan` plans.

    :param name: the system's, in the settings.
    :param facts: as `facts_of` has them.
    :param stack: the settings.
    :param offered: package -> versions, once the repositories are there.
    """
    known = {
        **facts,
        "kernels": tuple(facts["kernels"]),
        "cards": tuple(facts["cards"]),
        "runtimes": frozenset(facts["runtimes"]),
        "offered": None if offered is None else {name: tuple(versions) for name, versions in offered.items()},
    }
    return Request(target, stack, SystemFacts(**known), name)
