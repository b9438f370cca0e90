"""From a stock Proxmox VE host to a GPU in a VM or a container, layer by layer; each waits for the one before it.

HostProbe ─► IommuHost ─► VfioBinding ─► HostReboot (one, only if needed) ─► verified ─┬► GpuCards (PCI mappings) ─► GpuVm
          └► NVIDIA's driver on the host ──────┘                                       └► NvidiaNodes, CardNodes ─► GpuLxc
GpuVm and GpuLxc ─► NvidiaGuestStack: driver, CUDA, container toolkit, verified from inside
"""

import functools

import pulumi

from components.card_handover import CardHandover, CardHandoverArgs
from components.card_nodes import CardNodes, CardNodesArgs
from components.card_values import CardValues, CardValuesArgs
from components.gpu_cards import GpuCards, GpuCardsArgs
from components.gpu_lxc import GpuLxc, GpuLxcArgs
from components.gpu_vm import GpuVm, GpuVmArgs
from components.host_reboot import HostReboot, HostRebootArgs
from components.host_scripts import HostScripts, HostScriptsArgs
from components.iommu_host import IommuHost, IommuHostArgs
from components.nvidia_guest_stack import NvidiaGuestStack, NvidiaGuestStackArgs
from components.nvidia_nodes import NvidiaNodes, NvidiaNodesArgs
from components.vfio_binding import VfioBinding, VfioBindingArgs
from homelab import contract
from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.resources.host_probe import HostProbe
from homelab.resources.preview import preview
from homelab.resources.storage_file import StorageFile
from homelab.resources.system import in_container, in_vm, on_host
from homelab.shapes import BootSeen
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
turns: dict[str | None, pulumi.Output[BootSeen]] = {}  # cluster -> the boot of its node that restarts last
for name, host in settings.hosts.items():
    node = host.node or name
    probe = HostProbe.of(f"{name}-probe", name, host)
    HostScripts(name, HostScriptsArgs(host_name=name, host=host), after(probe))

    words, again = probe.iommu_words, probe.generation_of("iommu")
    given[name] = pulumi.Output.concat(words, " ", probe.vfio_words)
    command_line = IommuHostArgs(host=host, words=words, generation=again)
    iommu = IommuHost(name, command_line, after(probe))
    binding = VfioBindingArgs(
        host=host,
        words=probe.vfio_words,
        functions=probe.functions,
        generation=probe.generation_of("vfio"),
    )
    vfio = VfioBinding(name, binding, after(iommu))

    guests = {guest: vm for guest, vm in settings.vms.items() if vm.host == name}
    handing: list[pulumi.Resource] = []
    if host.hands_over:
        turn = CardHandoverArgs(host=host, vms=guests, cards=probe.gpus, generation=probe.generation_of("handover"))
        handing.append(CardHandover(name, turn, after(probe)))
    follows = settings.restarts_before(name)
    booted = HostRebootArgs(host_name=name, host=host, probe=probe, following=turns.get(host.cluster))
    last = after(iommu, vfio, *handing)
    own: NvidiaGuestStack | None = None
    if system := on_host(name, host, probe):
        reboot = functools.partial(HostReboot.with_driver, name, booted, last)
        own = NvidiaGuestStack(name, NvidiaGuestStackArgs(system=system, reboot=reboot))
        boot, stacks[system.name] = own.boot, own.result
    else:
        boot = HostReboot(name, booted, last)
    hosts[name] = boot.host
    if host.cluster:  # its next node restarts once this one is back
        turns[host.cluster] = boot.boot

    files = {
        download.volume: StorageFile.of(name, node, file, download, after(boot))
        for file, download in host.downloads.items()
    }
    ready: list[pulumi.Resource] = [boot]
    if any(gpu.reset or gpu.keep_awake for gpu in host.gpus.values()):
        valued = CardValuesArgs(host=host, cards=probe.gpus, generation=probe.generation_of("values"))
        ready.append(CardValues(name, valued, after(boot)))
    offered = GpuCardsArgs(host_name=name, host=host, booted=boot.host, vms=guests)
    cards = GpuCards(name, offered, after(*ready))
    tests[name] = cards.tests
    shared = {guest: container for guest, container in settings.containers.items() if container.host == name}
    nodes: list[pulumi.Resource] = []
    if any(container.may_have_nvidia(host.gpus) for container in shared.values()):
        again = probe.generation_of("nodes")
        making = NvidiaNodesArgs(host=host, containers=shared, cards=probe.gpus, generation=again)
        nodes.append(NvidiaNodes(name, making, after(boot)))
    if shared:
        following = CardNodesArgs(host=host, containers=shared, generation=probe.generation_of("cards"))
        nodes.append(CardNodes(name, following, after(boot)))
    sharers: dict[str, GpuLxc] = {}
    for guest, container in shared.items():
        sharing = GpuLxcArgs(
            container=container,
            host=host,
            at=settings.named_by(guest, name),
            node=node,
            cards=probe.gpus,
            boot=boot.boot,
        )
        made_of = [files[volume] for volume in container.volumes if volume in files]
        sharers[guest] = gpu_lxc = GpuLxc(guest, sharing, after(*nodes, *made_of))
        containers[guest] = gpu_lxc.container
    tried = own.tried_in(shared, list(sharers.values())) if own else ()
    installed: list[pulumi.Resource] = []
    for guest, container in shared.items():
        gpu_lxc = sharers[guest]
        if system := in_container(
            guest,
            container,
            host,
            boot.driver,
            at=gpu_lxc.at,
            in_force=gpu_lxc.in_force,
            started=gpu_lxc.started,
            ready=[gpu_lxc, *tried],
        ):
            installed.append(stack := NvidiaGuestStack(guest, NvidiaGuestStackArgs(system=system)))
            stacks[system.name] = stack.result

    for guest, vm in guests.items():
        made_of = [files[volume] for volume in vm.volumes if volume in files]
        again = probe.generation_of("handover")
        given_cards = GpuVmArgs(vm=vm, host=host, node=node, cards=cards.cards, boot=boot.boot, handover=again)
        # One that takes a card from containers comes last: its start ends them.
        in_turn = any(use.gpu in host.hands_over for use in vm.gpus)
        takes = [*handing, *sharers.values(), *installed, *([own] if own else [])] if in_turn else []
        gpu_vm = GpuVm(guest, given_cards, after(cards, *made_of, *takes))
        vms[guest] = gpu_vm.vm
        if system := in_vm(guest, vm, host, gpu_vm.vm, in_force=gpu_vm.in_force, started=gpu_vm.started, ready=gpu_vm):
            stacks[system.name] = NvidiaGuestStack(guest, NvidiaGuestStackArgs(system=system)).result

    results = [probe.generation, *(vms[guest] for guest in guests), *(containers[guest] for guest in shared)]
    preview(name, host, probe, guests, shared, results, settings.plan, follows)

for name, value in contract.outputs(settings, hosts, tests, vms, containers, stacks, given).items():
    pulumi.export(name, value)
