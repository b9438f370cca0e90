"""From a stock Proxmox VE host to a GPU on vfio-pci, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified
"""

import pulumi

from components.host_plan import preview
from components.host_probe import HostProbe
from components.host_reboot import HostReboot
from components.iommu_host import IommuHost
from components.vfio_binding import VfioBinding
from host.errors import HomelabError
from settings import load

try:
    settings = load()
except HomelabError as error:
    raise pulumi.RunError(str(error)) from None

hosts = {}
for name, host in settings.hosts.items():
    probe = HostProbe(f"{name}-probe", name, host)
    preview(name, host, probe, settings.plan)
    iommu = IommuHost(f"{name}-iommu", host, probe)
    vfio = VfioBinding(f"{name}-vfio", host, probe, pulumi.ResourceOptions(depends_on=[iommu]))
    reboot = HostReboot(f"{name}-boot", name, host, probe, pulumi.ResourceOptions(depends_on=[iommu, vfio]))
    hosts[name] = reboot.host

pulumi.export("hosts", hosts)
