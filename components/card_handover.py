"""CardHandover: cards that containers and VMs have in turn, handed over by the host itself when a VM starts and stops.

Owns /usr/local/sbin/homelab-handover, its cards in /etc, a service and a timer of that name, the hookscript in a
storage's snippets, and the option by which adopted VMs name it (a created VM's is GpuVm's). Made before the host
restarts: a card that was a VM's alone is with NVIDIA's driver after that restart, and the VM may start with the host.
Undone by taking them away; refused while a VM has a card.
"""

from __future__ import annotations

import pulumi

from homelab.host.handover import cards_of
from homelab.host.resource import HostProbe
from homelab.resources import command as remote
from homelab.settings import Host, Vm
from remote_scripts.both.handover import Wanted
from remote_scripts.both.hookscript import Wanted as Hookscript


class CardHandover(pulumi.ComponentResource):
    """No outputs: VMs that may take such a card depend on it. `probe`: has the host's cards."""

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardHandover", host.name, {}, opts)
        program = remote.layer(
            f"{host.name}-handover",
            host,
            "handover",
            probe.gpus.apply(lambda gpus: Wanted(cards=cards_of(host, host.vms, gpus))),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=probe.generation_of("handover"),
        )
        for vm in host.vms:
            if vm.create is None and host.shares(vm.cards):
                options = pulumi.ResourceOptions(parent=self, depends_on=[program])
                handover_hook(host, vm, probe, options)
        self.register_outputs({})


def handover_hook(host: Host, vm: Vm, probe: HostProbe, opts: pulumi.ResourceOptions) -> pulumi.Resource:
    """The option hookscript of a VM that may take a card: by it the host hands the card over when the VM starts and
    stops. `probe`: tells when what hands cards over drifted.
    """
    name = f"{vm.name}-hook"
    # By these it is told from the entry that the VM had before, under another name, or as one that made it.
    holder = f"{name} {'adopted' if vm.create is None else 'created'}"
    return remote.layer(
        name,
        host,
        "hookscript",
        Hookscript(vmid=vm.vmid, holder=holder),
        opts,
        generation=probe.generation_of("handover"),
        identity=[vm.host, str(vm.vmid)],
    )
