"""The groups render and video of a container. A dev[n] entry's gid is one of the container's: the host's number means
another group there, or none (ADR 23).
"""

from __future__ import annotations

import re

from remote_scripts.containers.container_system import need_running
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

# What is read of a container's groups, in bytes; the rest is left out.
_GROUP_BYTES = 65536
_GROUPS = "getent group render video || { cd /etc && cat group; }"
_GROUP = re.compile(r"^(render|video):[^:\n]*:0*([1-9][0-9]{0,4})(?=:|$)", re.MULTILINE)


def groups_of(system: System, ctid: int) -> dict[str, int]:
    """The groups' numbers by their names, of a container that runs; one that isn't there has none.

    :raises Failure: it doesn't tell them.
    """
    done = need_running(system, ctid).run.ask("sh", "-c", _GROUPS, seconds=60, limit=_GROUP_BYTES)
    if done.status != 0:  # half of an answer would be no such groups
        raise Failure(
            f"to know the groups render and video of container {ctid}",
            f"it didn't list them all (exit status {done.status})",
            "a card's nodes are for the members of these groups; its configuration is unchanged",
            f"try `pct enter {ctid}`, then run `pulumi up` again",
        )
    # These are the container's own words, and may say anything. Of a name the first counts.
    found = _GROUP.findall(done.output.replace(b"\0", b"").decode("utf-8", "replace"))
    return {name: int(number) for name, number in reversed(found) if int(number) < 65535}
