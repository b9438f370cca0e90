"""Takes a Proxmox VE host from stock to an NVIDIA GPU in use, and keeps it there.

What stands here is what programs use: homelab's own (__main__.py) and other people's (examples/), with the components
(`homelab.components`). Each name is imported at its first use.

Imports go one way (docs/adr/README.md, 16; `make lint` holds them to it): cli and components → resources → remote →
what is pure.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homelab.contract import Outputs as Outputs
    from homelab.contract import consumed as consumed
    from homelab.errors import HomelabError as HomelabError
    from homelab.errors import raise_all as raise_all
    from homelab.host.resource import HostProbe as HostProbe
    from homelab.resources.program import HomelabProvider as HomelabProvider
    from homelab.resources.program import settings_of_the_stack as settings_of_the_stack
    from homelab.settings import Host as Host
    from homelab.settings import Vm as Vm
    from homelab.shapes import BootSeen as BootSeen
    from homelab.shapes import GpuOutput as GpuOutput
    from homelab.shapes import HostOutput as HostOutput
    from homelab.shapes import OfferedCard as OfferedCard
    from homelab.stack import Refusal as Refusal
    from homelab.stack import after as after
    from homelab.storage.resource import Downloads as Downloads

__version__ = "2.1.0"

# An installed package has what runs on hosts inside it, so that nothing of a general name lands beside other packages.
_INSIDE = importlib.util.spec_from_file_location("remote_scripts", Path(__file__).parent / "remote_scripts/__init__.py")
if _INSIDE and Path(_INSIDE.origin or "").exists():
    sys.modules["remote_scripts"] = importlib.util.module_from_spec(_INSIDE)

_NAMES = {
    "contract": ("Outputs", "consumed"),
    "errors": ("HomelabError", "raise_all"),
    "host.resource": ("HostProbe",),
    "resources.program": ("HomelabProvider", "settings_of_the_stack"),
    "storage.resource": ("Downloads",),
    "settings": ("Host", "Vm"),
    "shapes": ("BootSeen", "GpuOutput", "HostOutput", "OfferedCard"),
    "stack": ("Refusal", "after"),
}
__all__ = [name for names in _NAMES.values() for name in names]


def __getattr__(name: str) -> object:
    if name == "components":
        return importlib.import_module("homelab.components")
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"homelab.{module}"), name)
    raise AttributeError(f"module homelab has no attribute {name}")
