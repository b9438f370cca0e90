"""A run without what keeps the suite's time down (CONTRIBUTING.md): `make test-plain`, which sets HOMELAB_PLAIN.

The lab's commands are processes of their own, and what a test of tests/lab asks the agent is asked as a session asks it; Pulumi's CLI keeps its logs,
and asks pip and git itself. In each run the lab's Python is another one for the agent than a host's (lab/host/host_python.py).
"""

from __future__ import annotations

import os

#: Whether this run is one.
PLAIN = "HOMELAB_PLAIN" in os.environ
