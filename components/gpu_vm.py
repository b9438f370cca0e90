"""GpuVm: a VM with cards. Adopted as it is, or created.

Owns the hostpci options of the cards, the hookscript where it takes one in turn with containers, and the options that
had to change for them (machine, balloon, vga): nothing else of an adopted VM, all of a created one. Undone by giving
back each option that still is as it was set, with a shutdown and a start if the VM runs; a created VM is removed,
unless it is protected.
"""

from __future__ import annotations

from typing import cast

import pulumi

from homelab.host.resource import HostProbe
from homelab.settings import Host, Vm
from homelab.shapes import BootSeen, OfferedCard, VmOutput
from homelab.vm.resource import VmCards

from .card_handover import handover_hook
from .component import GuestComponent


class GpuVm(GuestComponent):
    """Outputs: `vm`, for the stack's outputs; `in_force`: a text that changes with the VM and its cards, a trigger for
    what is installed in it; `started`: a text that changes when this program starts the VM, or reboots its host.

    `host`: the VM's; `cards`: name -> `mapping` and `slot`, of each card in `vm.gpus` at least (GpuCards); `boot`: the
    host's: its `id`, the VMs that this program's reboot `stopped`, and when (`at`; BootVerification); `probe`: of the
    host, needed where the VM takes a shared card.
    """

    vm: pulumi.Output[VmOutput]
    in_force: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(
        self,
        vm: Vm,
        *,
        host: Host,
        cards: pulumi.Input[dict[str, OfferedCard]],
        boot: pulumi.Input[BootSeen],
        probe: HostProbe | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("gpu:GpuVm", vm, host, boot, opts)
        if probe is not None and vm.create is not None and host.shares(vm.cards):
            # Before it has the card, and until it has it no more: without the hookscript nothing would check whether
            # the card is free. (An adopted one has it before the host restarts: CardHandover.)
            self._after = [handover_hook(vm, host=host, probe=probe, opts=self._part())]
        vm_cards = VmCards(
            f"{vm.name}-cards",
            **self._guest,
            vm=vm.name,
            vmid=vm.vmid,
            cards=pulumi.Output.from_input(cards).apply(
                lambda offered: [{**use.model_dump(mode="json"), **offered[use.gpu]} for use in vm.gpus]
            ),
            machine=vm.machine,
            display=vm.display,
            address=vm.static_address,
            opts=self._part(),
        )
        output = {
            "host": vm.host,
            "node": host.node_name,
            "vmid": vm.vmid,
            "name": vm_cards.guest_name,
            "state": vm_cards.state,
            "gpus": vm.cards,
            "address": vm_cards.guest_address.apply(lambda address: address or None),
        }
        self.vm = pulumi.Output.from_input(cast("VmOutput", output))
        with_cards = vm_cards.state.apply(lambda _: " ".join(vm.cards))
        self.in_force = pulumi.Output.concat(self._instance, " ", with_cards)
        self.started = pulumi.Output.format("boot {0}, start {1}", self._boot_id, vm_cards.starts.apply(int))
        self.register_outputs({"vm": self.vm, "in_force": self.in_force})
