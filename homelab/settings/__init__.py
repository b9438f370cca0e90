"""The stack's configuration as types: every mistake in it is named before anything runs.

Pulumi hands over what `Pulumi.<stack>.yaml` holds under `homelab:`; `parse` turns it into `Settings`.
"""

import warnings
from typing import Any

from homelab.settings.access import ApiAccess, Ssh
from homelab.settings.container import Container, Features, NewContainerSettings, assigned_numbers
from homelab.settings.download import Download
from homelab.settings.host import Gpu, Host, IommuSettings, Timeouts
from homelab.settings.nvidia import Nvidia
from homelab.settings.parsing import load_host, parse
from homelab.settings.paths import project
from homelab.settings.vm import CloudInit, Disk, NewVm, Shutdown, Vm, VmGpu
from homelab.settings.whole import Settings

__all__ = [
    "ApiAccess",
    "CloudInit",
    "Container",
    "Disk",
    "Download",
    "Features",
    "Gpu",
    "Host",
    "IommuSettings",
    "NewContainerSettings",
    "NewVm",
    "Nvidia",
    "Settings",
    "Shutdown",
    "Ssh",
    "Timeouts",
    "Vm",
    "VmGpu",
    "assigned_numbers",
    "load_host",
    "parse",
    "project",
]

# Names of version 1.0 -> what they are called now.
_OLD_NAMES = {"Api": "ApiAccess", "Iommu": "IommuSettings", "NewContainer": "NewContainerSettings"}


def __getattr__(name: str) -> Any:
    """A class under the name that it had in version 1.0: other projects may still import it so."""
    if name not in _OLD_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"homelab.settings.{name} is called {_OLD_NAMES[name]} now", DeprecationWarning, stacklevel=2)
    return globals()[_OLD_NAMES[name]]
