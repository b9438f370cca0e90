"""A run without what keeps the suite's time down (CONTRIBUTING.md): `make test-plain`, which sets HOMELAB_PLAIN.

The agent, the program, the provider, `python -m homelab`, labs' daemons and their commands are processes of their own, which make their imports
themselves; Pulumi's CLI is as its users start it, with a passphrase, and writes the state after each step.
"""

from __future__ import annotations

import os

#: Whether this run is one.
PLAIN = "HOMELAB_PLAIN" in os.environ
