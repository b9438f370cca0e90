"""Which class does the work of a resource. Its module is imported when there is something to do: a run without a change
starts the provider, too, compares properties, and needs nothing that reads a host (a quarter of a second)."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

# Importing these modules declares the resources.
from homelab.resources import (  # noqa: F401
    boot_verification,
    card_mapping,
    container_probe,
    container_verification,
    guest,
    host_probe,
    nvidia,
    storage_file,
    vm_cards,
)
from homelab.resources.base import Resource

if TYPE_CHECKING:
    from homelab.provider.base import Work


def work_of(resource: type[Resource]) -> type[Work[Any, Any]]:
    """The class that does the work of a resource: of `GuestReboot`, it is `GuestRebootWork` in guest_reboot.py."""
    module = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", resource.__name__).lower()
    work: type[Work[Any, Any]] = getattr(
        importlib.import_module(f"homelab.provider.{module}"), f"{resource.__name__}Work"
    )
    return work
