"""The folder of a stack on a host, /var/lib/homelab/agents/OWNER, in which the agent lies."""

from __future__ import annotations

import hashlib
import re


def owner(project: str, stack: str, host: str) -> str:
    """The name of a stack's folder on a host.

    :param host: its name in the settings; the same machine under another name is another host, as both may be in the
        state at once.
    """
    digest = hashlib.sha256("\0".join((project, stack, host)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{project}-{stack}-{host}")[:80] + f"-{digest[:8]}"


def owner_of(urn: str, host: str) -> str:
    """The name of the folder (`owner`) of the stack that a resource belongs to.

    :param urn: the resource's.
    :param host: its name in the settings.
    """
    stack_part, _, rest = urn.partition("::")
    return owner(rest.partition("::")[0], stack_part.rpartition(":")[2], host)
