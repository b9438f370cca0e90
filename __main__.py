"""From a stock Proxmox VE host to a GPU in a VM or a container, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified ─┬► GpuCards (mappings) ─► GpuVm
          ├► NVIDIA's driver on the host ──────┤                                       └► CardNodes (/dev) ─► GpuLxc
          └► CardHandover (shared cards) ──────┘
GpuVm and GpuLxc ─► NvidiaGuestStack: driver, CUDA, container toolkit, verified from inside
"""

import gc

gc.disable()  # until all is imported (homelab.stack.load)

import pulumi

from components.card_handover import CardHandover, CardHandoverArgs
from components.card_nodes import CardNodes, CardNodesArgs
from components.gpu_cards import GpuCards, GpuCardsArgs
from components.gpu_lxc import GpuLxc, GpuLxcArgs
from components.gpu_vm import GpuVm, GpuVmArgs
from components.host_agent import HostAgent, HostAgentArgs
from components.host_reboot import HostReboot, HostRebootArgs
from components.iommu_host import IommuHost, IommuHostArgs
from components.nvidia_guest_stack import NvidiaGuestStack
from components.vfio_binding import VfioBinding, VfioBindingArgs
from homelab import contract
from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.resources.host_probe import HostProbe
from homelab.resources.storage_file import StorageFile
from homelab.shapes import BootSeen
from homelab.stack import Refusal, load

try:
    settings = load()
except HomelabError as error:
    raise Refusal(error) from None

limits.limit_every_resource(settings)


def after(*resources: pulumi.Resource) -> pulumi.ResourceOptions:
    """Options of a resource that is made after these, and deleted before them."""
    return pulumi.ResourceOptions(depends_on=list(resources))


hosts, tests, vms, containers, stacks, words = {}, {}, {}, {}, {}, {}
probes = {
    name: HostProbe.of(f"{name}-probe", name, host, vms=[vm for vm in settings.vms.values() if vm.host == name])
    for name, host in settings.hosts.items()
}
turns: dict[str | None, pulumi.Output[BootSeen]] = {}  # cluster -> the boot of its node that restarts last
for name, host in settings.hosts.items():
    node = host.node or name
    host_vms = {guest: vm for guest, vm in settings.vms.items() if vm.host == name}
    sharers = {guest: container for guest, container in settings.containers.items() if container.host == name}

    probe = probes[name]
    fit = probe.once_all_fit(probes.values())
    HostAgent(name, HostAgentArgs(host_name=name, host=host, probe=probe), fit)

    # What the next boot is to have.
    iommu = IommuHost(name, IommuHostArgs(host=host, probe=probe), fit)
    vfio = VfioBinding(name, VfioBindingArgs(host=host, probe=probe), after(iommu))
    layers: list[pulumi.Resource] = [iommu, vfio]
    if host.hands_over:
        layers.append(CardHandover(name, CardHandoverArgs(host=host, vms=host_vms, probe=probe), fit))

    # One reboot for all of that, and for NVIDIA's driver on the host itself.
    reboot = HostRebootArgs(host_name=name, host=host, probe=probe, previous_node=turns.get(host.cluster))
    host_stack = NvidiaGuestStack.on_host(name, host, reboot, layers)
    boot = host_stack.boot if host_stack else HostReboot(name, reboot, after(*layers))
    of_host = [host_stack] if host_stack else []
    if host_stack:
        stacks[host_stack.place] = host_stack.result
    if host.cluster:  # its next node restarts once this one is back
        turns[host.cluster] = boot.boot
    hosts[name], words[name] = boot.host, probe.words

    files = {
        download.volume(file): StorageFile.of(name, node, file, download, after(boot))
        for file, download in host.downloads.items()
    }

    # Containers, which share cards.
    nodes = [CardNodes(name, CardNodesArgs(host=host, containers=sharers, probe=probe), after(boot))] if sharers else []
    lxcs: dict[str, GpuLxc] = {}
    for guest, container in sharers.items():
        lxc_args = GpuLxcArgs(container=container, host=host, node=node, cards=probe.gpus, boot=boot.boot)
        downloads = [files[volume] for volume in container.volumes if volume in files]
        lxcs[guest] = GpuLxc(guest, lxc_args, after(*nodes, *downloads))
        containers[guest] = lxcs[guest].container
    container_stacks: list[NvidiaGuestStack] = []
    for guest, container in sharers.items():
        if stack := NvidiaGuestStack.in_container(guest, container, host, lxcs[guest], boot, of_host):
            container_stacks.append(stack)
            stacks[stack.place] = stack.result

    # VMs, which have cards to themselves. One that takes a card from containers comes last: its start shuts them down.
    cards_args = GpuCardsArgs(host_name=name, host=host, probe=probe, booted=boot.host, vms=host_vms)
    cards = GpuCards(name, cards_args, after(boot))
    tests[name] = cards.tests
    handover = probe.generation_of("handover")
    for guest, vm in host_vms.items():
        shares = host.shares(vm.cards)
        downloads = [files[volume] for volume in vm.volumes if volume in files]
        before = [*layers, *lxcs.values(), *container_stacks, *of_host] if shares else []
        vm_args = GpuVmArgs(vm=vm, host=host, node=node, cards=cards.cards, boot=boot.boot, handover=handover)
        gpu_vm = GpuVm(guest, vm_args, after(cards, *downloads, *before))
        vms[guest] = gpu_vm.vm
        if stack := NvidiaGuestStack.in_vm(guest, vm, host, gpu_vm):
            stacks[stack.place] = stack.result

outputs = contract.outputs(settings, hosts, tests, vms, containers, stacks, words)
for name, value in outputs.items():
    pulumi.export(name, value)
contract.tell(outputs["result"])
