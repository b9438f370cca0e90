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
    components.HostAgent(host, probe=probe, opts=fit)

    # What the next boot is to have.
    iommu = components.IommuHost(host, probe=probe, opts=fit)
    vfio = components.VfioBinding(host, probe=probe, opts=after(iommu))
    handover = components.CardHandover(host, probe=probe, opts=fit) if host.hands_over else None
    stack = components.NvidiaGuestStack.on_host(host, probe=probe)  # None where the settings have none

    # One reboot for all of that, after the one of its cluster's node before it. Then NVIDIA's driver is used.
    boot = components.HostReboot(
        host,
        probe=probe,
        installed=stack.driver if stack else None,
        previous_node=outputs.boot_before(host),
        opts=after(iommu, vfio, handover),
    )
    if stack:
        stack.check_after(boot)
    files = Downloads(host, opts=after(boot))

    # Containers, which share cards.
    nodes = components.CardNodes(host, probe=probe, opts=after(boot)) if host.containers else None
    sharers = []
    for lxc in host.containers:
        first = after(nodes, *files.of(lxc))
        gpu_lxc = components.GpuLxc(lxc, host=host, cards=probe.gpus, boot=boot.boot, opts=first)
        inside = components.NvidiaGuestStack.in_container(lxc, host=host, gpu_lxc=gpu_lxc, boot=boot, of_host=stack)
        outputs.add_container(lxc, gpu_lxc, inside)
        sharers += [gpu_lxc, inside]

    # VMs, which have cards to themselves. One that takes a card from containers comes last: its start shuts them down.
    cards = components.GpuCards(host, probe=probe, boot=boot, opts=after(boot))
    outputs.add_host(host, probe, boot, cards, stack)
    for vm in host.vms:
        takes = [iommu, vfio, handover, *sharers, stack] if host.shares(vm.cards) else []
        first = after(cards, *files.of(vm), *takes)
        gpu_vm = components.GpuVm(vm, host=host, probe=probe, cards=cards.cards, boot=boot.boot, opts=first)
        outputs.add_vm(vm, gpu_vm, components.NvidiaGuestStack.in_vm(vm, host=host, gpu_vm=gpu_vm))

outputs.export()
