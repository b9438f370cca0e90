"""A reading of a system (layers/read_system.py): the facts that its stack is planned from, and its drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from homelab.errors import HomelabError
from homelab.nvidia.request import SystemFacts
from remote_scripts.both.read_system import Answer
from remote_scripts.tools.plain import FormError, of_plain


@dataclass(frozen=True, kw_only=True)
class SystemReading(Answer):
    """A reading of a system. `boot_id`: of the system's kernel, in a container of the host's; `steps`: those that were
    applied there; `drift`: each step that left something else than is there, with that.
    """

    @property
    def system(self) -> SystemFacts:
        """The facts that its stack is planned from."""
        return SystemFacts(**{field.name: getattr(self, field.name) for field in fields(SystemFacts)})


def parse(answer: Mapping[str, object]) -> SystemReading:
    """A reading in the answer of the layer read_system.

    :raises HomelabError: it isn't a reading.
    """
    try:
        return of_plain(SystemReading, answer, "reading")
    except FormError as error:
        raise HomelabError(
            wanted="the reading of a system, as read_system gives it",
            found=str(error),
            why="an NVIDIA stack is planned from it",
            next="run `pulumi up --refresh`, which puts the same version of both parts there",
        ) from error
