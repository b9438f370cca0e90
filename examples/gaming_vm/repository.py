"""Where this project finds homelab's modules: two folders up. To be imported before any of them.

The program needs that, and so does the process of its dynamic resources, which Pulumi starts in this folder with nothing else on
its path: a provider is handed to it as "call `provider` of this module", and importing this module is what extends the path there.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from homelab.resources.base import HostProvider  # noqa: E402


def provider(module: str, name: str) -> HostProvider:
    """A provider of homelab's dynamic resources, by the class that makes it."""
    made: HostProvider = getattr(import_module(module), name)()
    return made


HostProvider.found_by = provider
