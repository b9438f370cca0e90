"""The stack's configuration as types: every mistake in it is named before anything runs.

Pulumi hands over what `Pulumi.<stack>.yaml` holds under `homelab:`; `parse` turns it into `Settings`.
"""

from homelab.container.settings import Container as Container
from homelab.container.settings import assigned_numbers as assigned_numbers
from homelab.fields.access import Ssh as Ssh
from homelab.fields.paths import project as project
from homelab.guest.settings import NewContainer as NewContainer
from homelab.guest.settings import NewVm as NewVm
from homelab.host.settings import Gpu as Gpu
from homelab.host.settings import Host as Host
from homelab.host.settings import IommuSettings as IommuSettings
from homelab.host.settings import Timeouts as Timeouts
from homelab.nvidia.settings import Nvidia as Nvidia
from homelab.settings.parsing import load_host as load_host
from homelab.settings.parsing import parse as parse
from homelab.settings.whole import Settings as Settings
from homelab.storage.settings import Download as Download
from homelab.vm.settings import Shutdown as Shutdown
from homelab.vm.settings import Vm as Vm
from homelab.vm.settings import VmGpu as VmGpu
