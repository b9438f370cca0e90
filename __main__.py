"""From a stock Proxmox VE host to a GPU in a VM or a container, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified ─┬► GpuCards (mappings) ─► GpuVm
          ├► NVIDIA's driver on the host ──────┤                                       └► CardNodes (/dev) ─► GpuLxc
          └► CardHandover (shared cards) ──────┘
GpuVm and GpuLxc ─► NvidiaGuestStack: driver, CUDA, container toolkit, verified from inside
"""

import gc

gc.disable()  # until all is imported (homelab.stack.load)

import components
from homelab import Downloads, HostProbe, after, settings_of_the_stack

settings = settings_of_the_stack()
outputs = components.StackOutputs(settings)
probes = {name: HostProbe.of(host) for name, host in settings.hosts.items()}

for host in settings.hosts.values():
    probe = probes[host.name]
    fit = probe.once_all_fit(probes.values())  # nothing is changed until every host fits its plan
    components.HostAgent(host, probe, fit)

    # What the next boot is to have.
    iommu = components.IommuHost(host, probe, fit)
    vfio = components.VfioBinding(host, probe, after(iommu))
    handover = components.CardHandover(host, probe, fit) if host.hands_over else None
    stack = components.NvidiaGuestStack.on_host(host, probe)  # None where the settings have none

    # One reboot for all of that, after the one of its cluster's node before it. Then NVIDIA's driver is used.
    driver, previous = stack.driver if stack else None, outputs.boot_before(host)
    boot = components.HostReboot(host, probe, driver, previous, after(iommu, vfio, handover))
    if stack:
        stack.check_after(boot)
    files = Downloads(host, after(boot))

    # Containers, which share cards.
    nodes = components.CardNodes(host, probe, after(boot)) if host.containers else None
    sharers = []
    for lxc in host.containers:
        gpu_lxc = components.GpuLxc(host, lxc, probe.gpus, boot.boot, after(nodes, *files.of(lxc)))
        inside = components.NvidiaGuestStack.in_container(host, lxc, gpu_lxc, boot, stack)
        outputs.add_container(lxc, gpu_lxc, inside)
        sharers += [gpu_lxc, inside]

    # VMs, which have cards to themselves. One that takes a card from containers comes last: its start shuts them down.
    cards = components.GpuCards(host, probe, boot, after(boot))
    outputs.add_host(host, probe, boot, cards, stack)
    for vm in host.vms:
        first = [iommu, vfio, handover, *sharers, stack] if host.shares(vm.cards) else []
        gpu_vm = components.GpuVm(host, vm, cards.cards, boot.boot, after(cards, *files.of(vm), *first), probe)
        outputs.add_vm(vm, gpu_vm, components.NvidiaGuestStack.in_vm(host, vm, gpu_vm))

outputs.export()
