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
from homelab.resources.command import Place, Request, step
from homelab.settings import Host, Vm
from remote_scripts.both.handover import Wanted
from remote_scripts.both.hookscript import Wanted as Hookscript

from .component import HostComponent


class CardHandover(HostComponent):
    """No outputs: VMs that may take such a card depend on it. `probe`: has the host's cards."""

    def __init__(self, host: Host, *, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("host:CardHandover", host, probe, opts)
        wanted = probe.gpus.apply(lambda gpus: Wanted(cards=cards_of(host, host.vms, gpus)))
        program = self._step("handover", "handover", wanted, drifted="handover")
        for vm in host.vms:
            if vm.create is None and host.shares(vm.cards):
                handover_hook(vm, host=host, probe=probe, opts=self._part(program))
        self.register_outputs({})


def handover_hook(vm: Vm, *, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions) -> pulumi.Resource:
    """The option hookscript of a VM that may take a card: by it the host hands the card over when the VM starts and
    stops. `probe`: tells when what hands cards over drifted.
    """
    name = f"{vm.name}-hook"
    # By these it is told from the entry that the VM had before, under another name, or as one that made it.
    holder = f"{name} {'adopted' if vm.create is None else 'created'}"
    wanted = Hookscript(vmid=vm.vmid, holder=holder)
    request = Request("hookscript", wanted, probe.generation_of("handover"))
    return step(name, place=Place(host), request=request, identity=[vm.host, str(vm.vmid)], opts=opts)
