"""From a stock Proxmox VE host to a GPU in a VM or a container, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified ─┬► GpuCards (PCI mappings) ─► GpuVm
          └► NVIDIA's driver on the host ──────┘                                       └► NvidiaNodes ─► GpuLxc
GpuVm and GpuLxc ─► NvidiaGuestStack: driver, CUDA, container toolkit, verified from inside
"""

import functools

import pulumi

from components.gpu_cards import GpuCards
from components.gpu_lxc import GpuLxc
from components.gpu_vm import GpuVm
from components.host_reboot import HostReboot
from components.iommu_host import IommuHost
from components.nvidia_guest_stack import NvidiaGuestStack, in_container, in_vm, on_host
from components.nvidia_nodes import NvidiaNodes
from components.vfio_binding import VfioBinding
from homelab import contract
from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.resources.host_probe import HostProbe
from homelab.resources.preview import preview
from homelab.stack import load

try:
    settings = load()
except HomelabError as error:
    raise pulumi.RunError(str(error)) from None

limits.limit_every_resource(settings)

hosts, tests, vms, containers, stacks = {}, {}, {}, {}, {}
for name, host in settings.hosts.items():
    probe = HostProbe(f"{name}-probe", name, host)
    iommu = IommuHost(f"{name}-iommu", host, probe)
    vfio = VfioBinding(f"{name}-vfio", host, probe, pulumi.ResourceOptions(depends_on=[iommu]))
    reboot = functools.partial(HostReboot, f"{name}-boot", name, host, probe, [iommu, vfio])
    if system := on_host(name, host, probe):
        driver = NvidiaGuestStack(f"{name}-nvidia", system, reboot)
        boot, stacks[system.name] = driver.boot, driver.result
    else:
        boot = reboot()
    hosts[name] = boot.host

    guests = {guest: vm for guest, vm in settings.vms.items() if vm.host == name}
    cards = GpuCards(f"{name}-cards", name, host, boot, guests, pulumi.ResourceOptions(depends_on=[boot]))
    tests[name] = cards.tests
    for guest, vm in guests.items():
        after = pulumi.ResourceOptions(depends_on=[cards])
        gpu_vm = GpuVm(guest, vm, host.node or name, cards.cards, boot.boot, after)
        vms[guest] = gpu_vm.vm
        if system := in_vm(guest, vm, host, gpu_vm):
            stacks[system.name] = NvidiaGuestStack(f"{guest}-nvidia", system).result

    shared = {guest: container for guest, container in settings.containers.items() if container.host == name}
    if shared:
        nodes = NvidiaNodes(f"{name}-nvidia-nodes", host, probe, pulumi.ResourceOptions(depends_on=[boot]))
    for guest, container in shared.items():
        after = pulumi.ResourceOptions(depends_on=[nodes])
        gpu_lxc = GpuLxc(guest, container, host, host.node or name, probe, boot, after)
        containers[guest] = gpu_lxc.container
        if system := in_container(guest, container, host, gpu_lxc, boot.driver):
            stacks[system.name] = NvidiaGuestStack(f"{guest}-nvidia", system).result

    results = [probe.generation, *(vms[guest] for guest in guests), *(containers[guest] for guest in shared)]
    preview(name, host, probe, guests, shared, results, settings.plan)

for name, value in contract.outputs(settings, hosts, tests, vms, containers, stacks).items():
    pulumi.export(name, value)
