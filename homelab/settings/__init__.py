"""The stack's configuration as types: every mistake in it is named before anything runs.

Pulumi hands over what `Pulumi.<stack>.yaml` holds under `homelab:`; `parse` turns it into `Settings`.
"""

from homelab.container.settings import Container, assigned_numbers
from homelab.fields.access import Ssh
from homelab.fields.paths import project
from homelab.guest.settings import NewContainer, NewGuest, NewVm
from homelab.host.settings import Gpu, Host, IommuSettings, Timeouts
from homelab.nvidia.settings import Nvidia
from homelab.settings.parsing import load_host, model_of, parse
from homelab.settings.whole import Settings
from homelab.storage.settings import Download
from homelab.vm.settings import Shutdown, Vm, VmGpu

__all__ = [
    "Container",
    "Download",
    "Gpu",
    "Host",
    "IommuSettings",
    "NewContainer",
    "NewGuest",
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
    "model_of",
    "parse",
    "project",
]
