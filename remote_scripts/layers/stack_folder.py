"""The folder of a stack on this system, /var/lib/homelab/agents/OWNER, in which the agent lies (put_agent.py).

`revert` takes the folder away, with all that is in it.
"""

from __future__ import annotations

import re

from remote_scripts.both.stack_folder import Wanted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME, Changed
from remote_scripts.tools.system import System, changes


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes the folder away.

    :raises Failure: its name would lead elsewhere.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", wanted.owner):
        raise Failure(
            "the name of a stack's folder",
            f"{wanted.owner!r}",
            "what is in the folder of that name is removed with the stack",
            "run `pulumi up --refresh`, which names it",
        )
    system.files.remove_tree(f"{HOME}/agents/{wanted.owner}")
    return Changed(True)
