"""One request on its way through an operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.host.state import HostState

from .errors import ApiError
from .guest_config import Kind
from .guests import Guest
from .tasks import Starter


@dataclass
class Answer:
    """What an operation returns when it isn't the data alone: fields beside `data`, as lists of tasks have."""

    data: Any
    beside: dict[str, Any]


def unheard(_: str) -> None:
    """What an operation prints over HTTP goes to the node's own log."""


@dataclass
class Call:
    """One request: for what on which host, with verified parameters; `start` starts a task of who asks.

    `say` is what the operation prints besides its answer, which only a command at the node's shell shows.
    """

    host: HostState
    parameters: dict[str, Any]
    start: Starter
    say: Callable[[str], None] = unheard

    def guest(self, kind: Kind) -> Guest:
        """The guest that the path names."""
        return Guest(self.host, kind, int(self.parameters["vmid"]))

    def has_no(self, name: str) -> None:
        """Refuse a parameter for which the lab does nothing.

        Raises:
            ApiError: it is asked for.
        """
        if self.parameters.get(name):
            raise ApiError(501, f"the lab does nothing for {name}")
