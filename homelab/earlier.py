"""What tells states and hosts of homelab 1.0.0 from those since 2.0, and their refusal."""

from __future__ import annotations

from homelab.errors import HomelabError

#: In the provider's own inputs, which the state keeps: no state of 1.0.0 has it.
STATES = {"states": "2"}
#: How the version of each agent since 2.0 begins; that of 1.0.0's has hexadecimal digits alone.
AGENTS = "2-"


def refusal(found: str) -> HomelabError:
    """The refusal of what homelab 1.0.0 has left.

    :param found: what it is.
    """
    return HomelabError(
        wanted="nothing of homelab 1.0.0: it must be undone before version 2 is used",
        found=found,
        why="version 2 can't read what 1.0.0 noted, so it could neither change it nor undo it; nothing was changed",
        next="check out commit 082c80e5 of homelab, run `pulumi destroy` there for each stack (`pulumi up` "
        "first where its state is lost), then come back to this version and run `pulumi up`",
    )
