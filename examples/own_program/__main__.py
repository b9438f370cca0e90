"""Gives a host's card to a VM with homelab's components. Host, card and VM are described here, not in `homelab:` settings."""

import pulumi

from homelab import HomelabProvider, HostProbe, after, components

config = pulumi.Config()
host = config.require_object("host")  # address, node, ssh: see docs/settings.md
host["ssh"]["privateKey"] = config.require_secret("privateKey")
host["gpus"] = {"rtx5090": {"match": "10de:2b85"}}
vm = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}
settings = HomelabProvider("homelab", hosts={"pve": host}, vms={"sandbox": vm}).settings
pve, sandbox = settings.hosts["pve"], settings.vms["sandbox"]

probe = HostProbe.of(pve)
agent = components.HostAgent(pve, probe=probe, opts=after(probe))
iommu = components.IommuHost(pve, probe=probe, opts=after(agent))
vfio = components.VfioBinding(pve, probe=probe, opts=after(iommu))
boot = components.HostReboot(pve, probe=probe, opts=after(iommu, vfio))
cards = components.GpuCards(pve, probe=probe, boot=boot, opts=after(boot))
gpu_vm = components.GpuVm(sandbox, host=pve, cards=cards.cards, boot=boot.boot, opts=after(cards))

pulumi.export("sandbox", gpu_vm.vm)
