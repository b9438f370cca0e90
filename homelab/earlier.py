"""What tells states and hosts of earlier versions from those that this one can read, and their refusal."""

from __future__ import annotations

from homelab.errors import HomelabError

#: In the provider's own inputs, which the state keeps: no state of 1.0.0 has it. It is raised where this version can't
#: give back what an earlier one has noted.
STATES = {"states": "5"}
#: How the version of each agent since 2.0 begins; that of 1.0.0's has hexadecimal digits alone.
AGENTS = "2-"


def refusal(found: str) -> HomelabError:
    """The refusal of what homelab 1.0.0 has left.

    :param found: what it is.
    """
    return HomelabError(
        wanted="nothing of homelab 1.0.0: it must be undone before this version is used",
        found=found,
        why="this version can't read what that one noted, so it could neither change it nor undo it; nothing was "
        "changed",
        next="check out commit 082c80e5 of homelab, or the later one that wrote it, run `pulumi destroy` there for "
        "each stack (`pulumi up` first where its state is lost), then come back to this version and run `pulumi up`",
    )
