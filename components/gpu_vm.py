"""GpuVm: a VM with cards. Adopted as it is, or created.

Owns the hostpci options of the cards, the hookscript where it takes one in turn with containers, and the options that
had to change for them (machine, balloon, vga): nothing else of an adopted VM, all of a created one. Undone by giving
back each option that still is as it was set, with a shutdown and a start if the VM runs; a created VM is removed,
unless it is protected.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from homelab.resources.described import HostInput, VmInput, host_of, vm_of
from homelab.resources.guest import Guest
from homelab.resources.handover_hook import handover_hook
from homelab.resources.vm_cards import VmCards
from homelab.settings import Vm, VmGpu
from homelab.shapes import BootSeen, OfferedCard, VmSeen


@dataclass(frozen=True, kw_only=True)
class GpuVmArgs:
    """`vm`: its settings, the keys of docs/settings.md; `node`: the host's name in Proxmox VE; `cards`: name ->
    `mapping` and `slot`, of each card in `vm.gpus` at least (GpuCards); `boot`: the host's: its `id`, the VMs that this
    program's reboot `stopped`, and when (`at`; BootVerification); `host`: needed where the VM takes a shared card
    (CardHandover); `handover`: the generation of that layer (HostProbe).
    """

    vm: VmInput
    node: str
    cards: pulumi.Input[dict[str, OfferedCard]]
    boot: pulumi.Input[BootSeen]
    host: HostInput | None = None
    handover: pulumi.Input[int] = 0


class GpuVm(pulumi.ComponentResource):
    """Outputs: `vm`, for the stack's outputs (homelab/contract.py); `in_force`: a text that changes with the VM and its
    cards, a trigger for what is installed in it; `started`: a text that changes when this program starts the VM, or
    reboots its host.
    """

    vm: pulumi.Output[VmSeen]
    in_force: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(self, name: str, args: GpuVmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:gpu:GpuVm", name, {}, opts)
        vm, node, cards, boot = vm_of(args.vm), args.node, args.cards, args.boot
        host = None if args.host is None else host_of(args.host)
        inputs: dict[str, object] = {
            "host": vm.host,
            "node": node,
            "vm": name,
            "vmid": vm.vmid,
            "shutdown": vm.shutdown.model_dump(mode="json"),
        }
        depends_on = opts.depends_on if opts else None
        instance: pulumi.Input[str] = ""
        options = pulumi.ResourceOptions(parent=self, depends_on=depends_on)
        if created := Guest.of(name, vm, node, options):
            instance, depends_on = created.instance, [created]
        if host is not None and vm.create is not None and host.shares(vm.cards):
            # Before it has the card, and until it has it no more: without the hookscript nothing would check whether
            # the card is free. (An adopted one has it before the host restarts: CardHandover.)
            options = pulumi.ResourceOptions(parent=self, depends_on=depends_on)
            depends_on = [handover_hook(f"{name}-hook", host, vm, args.handover, options)]
        vm_cards = VmCards(
            f"{name}-cards",
            {
                **inputs,
                "cards": pulumi.Output.from_input(cards).apply(
                    lambda offered: [_card(use, offered) for use in vm.gpus]
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


def _card(use: VmGpu, cards: dict[str, OfferedCard]) -> dict[str, object]:
    """The inputs of `vm.cards.VmCard`."""
    return {**use.model_dump(mode="json"), **cards[use.gpu]}


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
