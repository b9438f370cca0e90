"""The stack's configuration as types: every mistake in it is named before anything runs.

Pulumi hands over what `Pulumi.<stack>.yaml` holds under `homelab:`; `parse` turns it into `Settings`.
"""

from homelab.settings.access import Ssh
from homelab.settings.container import Container, assigned_numbers
from homelab.settings.download import Download
from homelab.settings.host import Gpu, Host, IommuSettings, Timeouts
from homelab.settings.new_guest import NewContainer, NewGuest, NewVm
from homelab.settings.nvidia import Nvidia
from homelab.settings.parsing import load_host, model_of, parse
from homelab.settings.paths import project
from homelab.settings.vm import Shutdown, Vm, VmGpu
from homelab.settings.whole import Settings

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
