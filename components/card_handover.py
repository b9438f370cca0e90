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
from homelab.resources.handover_hook import handover_hook
from homelab.settings import Host
from remote_scripts.both.handover import Wanted


class CardHandover(pulumi.ComponentResource):
    """No outputs: VMs that may take such a card depend on it. `probe`: has the host's cards."""

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardHandover", host.name, {}, opts)
        generation = probe.generation_of("handover")
        program = remote.layer(
            f"{host.name}-handover",
            host,
            "handover",
            probe.gpus.apply(lambda gpus: Wanted(cards=cards_of(host, host.vms, gpus))),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=generation,
        )
        for vm in host.vms:
            if vm.create is None and host.shares(vm.cards):
                options = pulumi.ResourceOptions(parent=self, depends_on=[program])
                handover_hook(f"{vm.name}-hook", host, vm, generation, options)
        self.register_outputs({})
