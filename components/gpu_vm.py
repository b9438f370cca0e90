"""GpuVm: a VM with cards. Adopted as it is, or created.

Owns the hostpci options of the cards, the hookscript where it takes one in turn with containers, and the options that
had to change for them (machine, balloon, vga): nothing else of an adopted VM, all of a created one. Undone by giving
back each option that still is as it was set, with a shutdown and a start if the VM runs; a created VM is removed,
unless it is protected.
"""

from __future__ import annotations

import pulumi

from homelab.guest.resource import Guest
from homelab.host.resource import HostProbe
from homelab.settings import Host, Vm
from homelab.shapes import BootSeen, OfferedCard, VmSeen
from homelab.vm.resource import VmCards

from .card_handover import handover_hook


class GpuVm(pulumi.ComponentResource):
    """Outputs: `vm`, for the stack's outputs (homelab/contract.py); `in_force`: a text that changes with the VM and its
    cards, a trigger for what is installed in it; `started`: a text that changes when this program starts the VM, or
    reboots its host.

    `host`: the VM's; `cards`: name -> `mapping` and `slot`, of each card in `vm.gpus` at least (GpuCards); `boot`: the
    host's: its `id`, the VMs that this program's reboot `stopped`, and when (`at`; BootVerification); `probe`: of the
    host, needed where the VM takes a shared card.
    """

    vm: pulumi.Output[VmSeen]
    in_force: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(
        self,
        host: Host,
        vm: Vm,
        cards: pulumi.Input[dict[str, OfferedCard]],
        boot: pulumi.Input[BootSeen],
        opts: pulumi.ResourceOptions | None = None,
        probe: HostProbe | None = None,
    ) -> None:
        super().__init__("homelab:gpu:GpuVm", vm.name, {}, opts)
        name, node = vm.name, host.node_name
        depends_on = opts.depends_on if opts else None
        instance: pulumi.Input[str] = ""
        options = pulumi.ResourceOptions(parent=self, depends_on=depends_on)
        if created := Guest.of(name, vm, node, options):
            instance, depends_on = created.instance, [created]
        if probe is not None and vm.create is not None and host.shares(vm.cards):
            # Before it has the card, and until it has it no more: without the hookscript nothing would check whether
            # the card is free. (An adopted one has it before the host restarts: CardHandover.)
            options = pulumi.ResourceOptions(parent=self, depends_on=depends_on)
            depends_on = [handover_hook(host, vm, probe, options)]
        vm_cards = VmCards(
            f"{name}-cards",
            {
                "host": vm.host,
                "node": node,
                "vm": name,
                "vmid": vm.vmid,
                "shutdown": vm.shutdown.model_dump(mode="json"),
                "cards": pulumi.Output.from_input(cards).apply(
                    lambda offered: [{**use.model_dump(mode="json"), **offered[use.gpu]} for use in vm.gpus]
                ),
                "machine": vm.machine,
                "display": vm.display,
                "power": vm.wanted_power,
                "instance": instance,
                "goes_away": vm.create is not None and not vm.create.protect,
                "boot": boot,
                "address": vm.static_address,
            },
            pulumi.ResourceOptions(parent=self, depends_on=depends_on),
        )
        self.vm = pulumi.Output.all(
            name=vm_cards.guest_name, state=vm_cards.state, address=vm_cards.guest_address
        ).apply(lambda values: _output(vm, node, **values))
        self.in_force = pulumi.Output.all(instance, vm_cards.state).apply(
            lambda values: f"{values[0]} {' '.join(vm.cards)}"
        )
        self.started = pulumi.Output.all(boot, vm_cards.starts).apply(
            lambda values: f"boot {values[0]['id']}, start {int(values[1])}"
        )
        self.register_outputs({"vm": self.vm, "in_force": self.in_force})


def _output(vm: Vm, node: str, *, name: str, state: str, address: str) -> VmSeen:
    return {
        "host": vm.host,
        "node": node,
        "vmid": vm.vmid,
        "name": name,
        "state": state,
        "gpus": vm.cards,
        "address": address or None,
    }
