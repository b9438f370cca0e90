"""Gives a host's card to a VM with homelab's components. Host, card and VM are described here, not in `homelab:` settings."""

import pulumi

from homelab.components.gpu_cards import GpuCards, GpuCardsArgs
from homelab.components.gpu_vm import GpuVm, GpuVmArgs
from homelab.components.host_agent import HostAgent, HostAgentArgs
from homelab.components.host_reboot import HostReboot, HostRebootArgs
from homelab.components.iommu_host import IommuHost, IommuHostArgs
from homelab.components.vfio_binding import VfioBinding, VfioBindingArgs
from homelab.resources.described import HomelabProvider
from homelab.resources.host_probe import HostProbe

config = pulumi.Config()
host = config.require_object("host")  # address, node, ssh: see docs/settings.md
host["ssh"]["privateKey"] = config.require_secret("privateKey")
host["gpus"] = {"rtx5090": {"match": "10de:2b85"}}
vm = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}
HomelabProvider("homelab", hosts={"pve": host}, vms={"sandbox": vm})


def after(*resources: pulumi.Resource) -> pulumi.ResourceOptions:
    """Options of a resource that waits for these."""
    return pulumi.ResourceOptions(depends_on=list(resources))


probe = HostProbe.of("pve-probe", "pve", host)
agent = HostAgent("pve", HostAgentArgs(host_name="pve", host=host, probe=probe), after(probe))
iommu = IommuHost("pve", IommuHostArgs(host=host, probe=probe), after(agent))
vfio = VfioBinding("pve", VfioBindingArgs(host=host, probe=probe), after(iommu))
boot = HostReboot("pve", HostRebootArgs(host_name="pve", host=host, probe=probe), after(iommu, vfio))
cards_args = GpuCardsArgs(host_name="pve", host=host, probe=probe, booted=boot.host, vms={"sandbox": vm})
cards = GpuCards("pve", cards_args, after(boot))
sandbox = GpuVm("sandbox", GpuVmArgs(vm=vm, node=host["node"], cards=cards.cards, boot=boot.boot), after(cards))

pulumi.export("sandbox", sandbox.vm)
