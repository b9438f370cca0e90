"""From a stock Proxmox VE host to a GPU in a VM or a container, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified ─┬► GpuCards (PCI mappings) ─► GpuVm
          └► NVIDIA's driver on the host ──────┘                                       └► NvidiaNodes ─► GpuLxc
GpuVm and GpuLxc ─► NvidiaGuestStack: driver, CUDA, container toolkit, verified from inside
"""

import functools

import pulumi

from components.gpu_cards import GpuCards, GpuCardsArgs
from components.gpu_lxc import GpuLxc, GpuLxcArgs
from components.gpu_vm import GpuVm, GpuVmArgs
from components.host_reboot import HostReboot, HostRebootArgs
from components.iommu_host import IommuHost, IommuHostArgs
from components.nvidia_guest_stack import NvidiaGuestStack, NvidiaGuestStackArgs, in_container, in_vm, on_host
from components.nvidia_nodes import NvidiaNodes, NvidiaNodesArgs
from components.vfio_binding import VfioBinding, VfioBindingArgs
from homelab import contract
from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.resources.host_probe import HostProbe
from homelab.resources.preview import preview
from homelab.stack import Refusal, load

try:
    settings = load()
except HomelabError as error:
    raise Refusal(error) from None

limits.limit_every_resource(settings)


def after(*resources: pulumi.Resource) -> pulumi.ResourceOptions:
    """Made once these are there, deleted before them."""
    return pulumi.ResourceOptions(depends_on=list(resources))


hosts, tests, vms, containers, stacks, given = {}, {}, {}, {}, {}, {}
for name, host in settings.hosts.items():
    node = host.node or name
    probe = HostProbe.of(f"{name}-probe", name, host)

    words, again = probe.iommu_words, probe.generation_of("iommu")
    given[name] = pulumi.Output.concat(words, " ", probe.vfio_words)
    iommu = IommuHost(f"{name}-iommu", IommuHostArgs(host=host, words=words, generation=again), after(probe))
    binding = VfioBindingArgs(
        host=host, words=probe.vfio_words, functions=probe.functions, generation=probe.generation_of("vfio")
    )
    vfio = VfioBinding(f"{name}-vfio", binding, after(iommu))

    booted = HostRebootArgs(host_name=name, host=host, probe=probe)
    if system := on_host(name, host, probe):
        reboot = functools.partial(HostReboot.with_driver, f"{name}-boot", booted, after(iommu, vfio))
        driver = NvidiaGuestStack(f"{name}-nvidia", NvidiaGuestStackArgs(system=system, reboot=reboot))
        boot, stacks[system.name] = driver.boot, driver.result
    else:
        boot = HostReboot(f"{name}-boot", booted, after(iommu, vfio))
    hosts[name] = boot.host

    guests = {guest: vm for guest, vm in settings.vms.items() if vm.host == name}
    offered = GpuCardsArgs(host_name=name, host=host, booted=boot.host, vms=guests)
    cards = GpuCards(f"{name}-cards", offered, after(boot))
    tests[name] = cards.tests
    for guest, vm in guests.items():
        gpu_vm = GpuVm(guest, GpuVmArgs(vm=vm, node=node, cards=cards.cards, boot=boot.boot), after(cards))
        vms[guest] = gpu_vm.vm
        if system := in_vm(guest, vm, host, gpu_vm):
            stacks[system.name] = NvidiaGuestStack(f"{guest}-nvidia", NvidiaGuestStackArgs(system=system)).result

    shared = {guest: container for guest, container in settings.containers.items() if container.host == name}
    if shared:
        again = probe.generation_of("nodes")
        nodes = NvidiaNodes(f"{name}-nvidia-nodes", NvidiaNodesArgs(host=host, generation=again), after(boot))
    for guest, container in shared.items():
        sharing = GpuLxcArgs(container=container, host=host, node=node, cards=probe.gpus, boot=boot.boot)
        gpu_lxc = GpuLxc(guest, sharing, after(nodes))
        containers[guest] = gpu_lxc.container
        if system := in_container(guest, container, host, gpu_lxc, boot.driver):
            stacks[system.name] = NvidiaGuestStack(f"{guest}-nvidia", NvidiaGuestStackArgs(system=system)).result

    results = [probe.generation, *(vms[guest] for guest in guests), *(containers[guest] for guest in shared)]
    preview(name, host, probe, guests, shared, results, settings.plan)

for name, value in contract.outputs(settings, hosts, tests, vms, containers, stacks, given).items():
    pulumi.export(name, value)
