"""A system's facts in a stack's state."""

from __future__ import annotations

from typing import Any

from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request, SystemFacts
from homelab.nvidia.settings import Nvidia
from homelab.shapes import SystemState
from remote_scripts.both.symptoms import Target


def facts_of(reading: SystemReading, target: Target) -> SystemState:
    """The facts of a system for the state, without those that the steps themselves change."""
    return {
        "distribution": reading.distribution,
        "version": reading.version,
        "kernels": list(reading.kernels) if target == "host" else [reading.running],
        "running": reading.running,
        "secure_boot": reading.secure_boot,
        "cards": list(reading.cards),
        "host_driver": reading.host_driver,
    }


def request_of(target: Target, name: str, facts: SystemState, stack: Nvidia) -> Request:
    """The request for `nvidia.plan`.

    :param name: the system's, in the settings.
    :param facts: those of `facts_of`.
    :param stack: the settings.
    """
    values: Any = {**facts, "kernels": tuple(facts["kernels"]), "cards": tuple(facts["cards"])}
    return Request(target, stack, SystemFacts(**values), name)
