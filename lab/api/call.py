"""One request on its way through an operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.host.state import HostState

from .errors import bad_parameters
from .guest_config import Kind
from .guests import Guest
from .tasks import Starter
from .users import Caller, Users


@dataclass
class Answer:
    """What an operation returns when it isn't the data alone: fields beside `data`, as lists of tasks have."""

    data: Any
    beside: dict[str, Any]


def unheard(_: str) -> None:
    """What an operation prints over HTTP goes to the node's own log."""


@dataclass
class Call:
    """One request: who asks, for what on which host, with verified parameters; `start` starts a task,
    `start_as_root` one of the node's own.

    `say` is what the operation prints besides its answer, which only a command at the node's shell shows.
    """

    host: HostState
    caller: Caller
    users: Users
    parameters: dict[str, Any]
    start: Starter
    start_as_root: Starter
    say: Callable[[str], None] = unheard

    def guest(self, kind: Kind) -> Guest:
        """The guest that the path names."""
        return Guest(self.host, kind, int(self.parameters["vmid"]))

    def require(self, path: str, *privileges: str, any_of: bool = False) -> None:
        """Refuse a caller without some privileges (`Users.require`)."""
        self.users.require(self.caller, path, *privileges, any_of=any_of)

    def require_root_for(self, name: str) -> None:
        """Refuse a parameter that root@pam's own ticket alone may give."""
        if self.parameters.get(name) and not self.caller.is_root_ticket:
            raise bad_parameters({name: "Only root may use this option."})

    def may(self, path: str, *privileges: str, any_of: bool = False) -> bool:
        """Whether the caller has some privileges."""
        return self.users.may(self.caller, path, privileges, any_of=any_of)
