"""A reading of a system (layers/read_system.py): the facts that its stack is planned from, and its drift."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from homelab.errors import HomelabError
from homelab.nvidia.request import SystemFacts
from remote_scripts.both.read_system import Answer
from remote_scripts.tools.plain import of_plain


@dataclass(frozen=True)
class SystemReading:
    """A reading of a system. `boot_id`: of the system's kernel, in a container of the host's; `steps`: those that were
    applied there; `drift`: a line for each difference from what the steps left, after its step (`packages: ...`);
    `libraries`: the version of NVIDIA's libraries there, whoever installed them, empty: none; `agents`: those that
    stacks keep there, their versions by owner, empty: none is whole; `asked`: the digest of what the packages' step has
    carried out there, empty: nothing.
    """

    system: SystemFacts
    boot_id: str
    steps: frozenset[str]
    drift: tuple[str, ...]
    libraries: str = ""
    agents: Mapping[str, str] = field(default_factory=dict)
    asked: str = ""


def parse(answer: str | Mapping[str, object]) -> SystemReading:
    """A reading in the answer of the layer read_system.

    :param answer: of the agent, or the same as text.
    :raises HomelabError: it isn't a reading.
    """
    try:
        found = of_plain(Answer, json.loads(answer) if isinstance(answer, str) else answer, "reading")
    except ValueError as error:
        raise HomelabError(
            wanted="the reading of a system, as read_system gives it",
            found=str(error),
            why="an NVIDIA stack is planned from it",
            next="run `pulumi up --refresh`, which puts the same version of both parts there",
        ) from error
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(SystemFacts)}
    facts = SystemFacts(**{**values, "runtimes": frozenset(found.runtimes)})
    steps = frozenset(found.steps)
    return SystemReading(facts, found.boot_id, steps, found.drift, found.libraries, found.agents, found.asked)
