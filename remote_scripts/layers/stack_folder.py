"""The folder of a stack on this system, /var/lib/homelab/agents/OWNER, in which the agent lies (put_agent.py).

`revert` takes the folder away, with all that is in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System, changes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`owner`: the folder's name, of a project and a stack."""

    owner: str

    @property
    def folder(self) -> str:
        """The folder's path.

        :raises Failure: the name would lead elsewhere.
        """
        if re.fullmatch(r"[A-Za-z0-9_-]+", self.owner):
            return f"{HOME}/agents/{self.owner}"
        raise Failure(
            "the name of a stack's folder",
            f"{self.owner!r}",
            "what is in the folder of that name is removed with the stack",
            "run `pulumi up --refresh`, which names it",
        )


@dataclass(frozen=True)
class Answer:
    """`folder`: its path."""

    folder: str


@changes
def revert(system: System, wanted: Wanted) -> Answer:
    """Takes the folder away."""
    system.files.remove_tree(wanted.folder)
    return Answer(wanted.folder)
