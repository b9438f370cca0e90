"""The texts of files that layers install on a host, by their names; what is installed has a newline after it.

In the agent's archive another module stands here, which has the texts themselves. Elsewhere the program gives them
(homelab/remote/agent.py), which makes the archive.
"""

from __future__ import annotations

from collections.abc import Mapping

TEXTS: Mapping[str, str] = {}
