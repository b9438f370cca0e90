"""The folder of a stack on a host, /var/lib/homelab/agents/OWNER, in which the agent lies."""

from __future__ import annotations

import hashlib
import re


def owner(stack: str, host: str) -> str:
    """The name of a stack's folder on a host.

    :param stack: PROJECT/STACK.
    :param host: its name in the settings; the same machine under another name is another host, as both may be in the
        state at once.
    """
    parts = [*stack.split("/"), host]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(parts))[:80] + f"-{digest[:8]}"
