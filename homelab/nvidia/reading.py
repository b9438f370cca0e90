"""A reading of a system (remote_scripts/read_system.sh): the facts that its stack is planned from, and its drift."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.types import StringConstraints

from homelab.errors import HomelabError
from homelab.nvidia.compatibility import Flavour
from homelab.nvidia.request import SystemFacts
from homelab.shapes import Runtime

_Drift = Annotated[str, StringConstraints(pattern=r"^(repository|driver|boot|cuda|toolkit|libraries): ")]


@dataclass(frozen=True)
class SystemReading:
    """A reading of a system. `boot_id`: of the system's kernel, in a container of the host's; `steps`: those that were
    applied there; `drift`: a line for each difference from what the steps left, after its step (`driver: ...`).
    """

    system: SystemFacts
    boot_id: str
    steps: frozenset[str]
    drift: tuple[str, ...]


class _Answer(BaseModel):
    """The script's JSON."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    boot_id: str
    distribution: str | None
    version: str | None
    architecture: str
    kernels: tuple[str, ...]
    running: str
    secure_boot: bool | None
    mok_enrolled: bool | None
    cards: tuple[str, ...]
    nouveau: bool
    loaded: str
    loaded_flavour: Flavour | None
    host_driver: str | None
    runtimes: frozenset[Runtime]
    room: int | None = None
    offered: dict[str, tuple[str, ...]] | None
    steps: frozenset[str]
    drift: tuple[_Drift, ...]


def parse(text: str | dict[str, Any]) -> SystemReading:
    """The reading in the output of read_system.sh.

    :param text: the output, whose last line is JSON, or the object of that line.
    :raises HomelabError: it isn't a reading.
    """
    try:
        answer = _Answer.model_validate(
            text if isinstance(text, dict) else json.loads(text.strip().rpartition("\n")[2])
        )
    except (ValidationError, ValueError) as error:
        raise HomelabError(
            wanted="the reading of a system, as read_system.sh gives it",
            found=str(error),
            why="an NVIDIA stack is planned from it",
            next="run that script by hand there, and see what it says on stderr",
        ) from error
    values = answer.model_dump(exclude={"boot_id", "steps", "drift"})
    return SystemReading(SystemFacts(**values), answer.boot_id, answer.steps, answer.drift)
