"""A reading of a system (layers/read_system.py), its facts in a stack's state, and the request by these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from homelab.nvidia.request import Request, SystemFacts
from homelab.nvidia.settings import Nvidia
from homelab.shapes import SystemState
from remote_scripts.both.read_system import Answer
from remote_scripts.both.symptoms import Target
from remote_scripts.tools.plain import of_plain, to_plain

#: A reading of a system.
SystemReading = Answer


def parse(answer: Mapping[str, object]) -> SystemReading:
    """A reading in the answer of the layer read_system."""
    return of_plain(SystemReading, answer, "reading")


def facts_of(reading: SystemReading, target: Target) -> SystemState:
    """A system's facts for a stack's state, without those that the steps themselves change."""
    facts = {name: to_plain(getattr(reading, name)) for name in SystemState.__annotations__}
    return cast("SystemState", facts if target == "host" else facts | {"kernels": [reading.running]})


def request_of(target: Target, name: str, facts: Mapping[str, object], stack: Nvidia) -> Request:
    """The request by such facts.

    :param name: the system's, in the settings.
    :param stack: the settings.
    """
    return Request(target, stack, of_plain(SystemFacts, facts), name)
