"""Which class does the work of a resource. Its module is imported when there is something to do: a run without a change
starts the provider, too, compares properties, and needs nothing that reads a host (a quarter of a second)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from homelab.resources.base import Resource

if TYPE_CHECKING:
    from homelab.resources.work.base import Work

#: Folders with resources: `resource.py` declares them, which its import does, and `work.py` has what is done for them.
SUBJECTS = ("cards", "container", "guest", "host", "nvidia", "storage", "vm")

for subject in SUBJECTS:
    importlib.import_module(f"homelab.{subject}.resource")


def work_of(resource: type[Resource]) -> type[Work[Any, Any]]:
    """The class that does the work of a resource: of `GuestReboot`, it is `GuestRebootWork` in work.py beside it."""
    module = importlib.import_module(resource.__module__.removesuffix("resource") + "work")
    work: type[Work[Any, Any]] = getattr(module, f"{resource.__name__}Work")
    return work
