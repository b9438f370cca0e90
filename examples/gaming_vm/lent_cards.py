"""LentCards: cards of the homelab stack for a VM of this one, as its outputs (homelab/contract.py) have them.

Owns nothing on the host: the PCI mappings are the homelab stack's. A card that goes from one VM of this stack to another is taken
out of the first by the other's VmCards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import pulumi

from homelab import (
    BootSeen,
    GpuOutput,
    HomelabError,
    Host,
    HostOutput,
    OfferedCard,
    Outputs,
    Refusal,
    Vm,
    consumed,
    raise_all,
)


class Lent(TypedDict):
    """What a GpuVm takes of another stack: `cards`, by their names in the settings, and the host's `boot`."""

    cards: dict[str, OfferedCard]
    boot: BootSeen


def lent(stack: str, values: Mapping[str, object], name: str, vm: Vm, node: str) -> Lent:
    """What a GpuVm takes.

    :param stack: the homelab stack's name, for messages.
    :param values: its outputs.
    :param name: the VM's, in the settings.
    :param node: where the VM is, by its name in Proxmox VE.
    :raises HomelabError: the outputs are of another version; they don't fit these settings; a VM of that stack has a card.
    """
    outputs = consumed(stack, values)
    host = outputs["hosts"].get(vm.host)
    if host is None or host["node"] != node:
        nodes = [f"{other} (node {about['node']})" for other, about in sorted(outputs["hosts"].items())]
        raise HomelabError(
            wanted=f"vms.{name} on hosts.{vm.host}, node {node}, with a card of that host",
            found=f"{stack} has {', '.join(nodes)}",
            why="the card would be looked for in another machine",
            next=f"give the host the name and the node that it has in {stack}",
        )
    raise_all(_shared(stack, outputs, name, vm, node) + _cards_in_the_way(stack, outputs, host, name, vm))
    return {
        "cards": {use.gpu: _card(host["gpus"][use.gpu]) for use in vm.gpus},
        # The VMs that a reboot by the homelab stack stops are its own business; this one runs again as its `power` says.
        "boot": {"id": host["bootId"], "stopped": [], "at": 0},
    }


def _card(gpu: GpuOutput) -> OfferedCard:
    """One that is offered, so that it has a mapping (`_cards_in_the_way`)."""
    return {"mapping": str(gpu["mapping"]), "slot": gpu["path"] or gpu["slot"]}


def _shared(stack: str, outputs: Outputs, name: str, vm: Vm, node: str) -> list[HomelabError]:
    """One VM, two programs: each would undo what the other does."""
    return [
        HomelabError(
            wanted=f"VM {vm.vmid} of {node} for vms.{name} alone",
            found=f"it is vms.{other} of {stack}",
            why="two stacks that change one VM undo each other's work",
            next=f"choose another vmid for vms.{name}",
        )
        for other, theirs in outputs["vms"].items()
        if (theirs["node"], theirs["vmid"]) == (node, vm.vmid)
    ]


def _cards_in_the_way(stack: str, outputs: Outputs, host: HostOutput, name: str, vm: Vm) -> list[HomelabError]:
    errors = []
    for use in vm.gpus:
        gpu = host["gpus"].get(use.gpu)
        if gpu is None or gpu.get("mapping") is None:
            errors.append(_not_offered(stack, host, name, vm, use.gpu))
        elif gpu.get("holder") is not None:
            errors.append(_held(stack, outputs, gpu, name, vm, use.gpu))
    return errors


def _not_offered(stack: str, host: HostOutput, name: str, vm: Vm, card: str) -> HomelabError:
    offered = ", ".join(other for other, gpu in sorted(host["gpus"].items()) if gpu.get("mapping"))
    its_use = host["gpus"][card]["use"] if card in host["gpus"] else None
    kept = f"{card} has use: {its_use} and no PCI mapping" if its_use else f"no {card}"
    return HomelabError(
        wanted=f"{card} of {vm.host} for vms.{name}",
        found=f"{kept}; {stack} offers to VMs: {offered or 'nothing'}",
        why="a VM gets a card by its PCI mapping, which that stack makes",
        next=f"correct vms.{name}.gpus, or set use: vm in {stack} and run `pulumi up` there",
    )


def _held(stack: str, outputs: Outputs, gpu: GpuOutput, name: str, vm: Vm, card: str) -> HomelabError:
    name_of_holder = gpu.get("holder")
    holder = outputs["vms"].get(str(name_of_holder))
    which = f" (VM {holder['vmid']}, {holder['name']}, {holder['state']})" if holder else ""
    return HomelabError(
        wanted=f"{card} ({gpu['slot']}) of {vm.host} free for vms.{name} (VM {vm.vmid})",
        found=f"vms.{name_of_holder}{which} of {stack} has it",
        why="a card can be in one running VM only, and it is not this program's to take; nothing was changed",
        next=f"hand it over: take {card} out of homelab:vms.{name_of_holder}.gpus, `pulumi up` in {stack}, then `pulumi up` here "
        '(examples/gaming_vm/README.md, "Hand-over")',
    )


class LentCards(pulumi.ComponentResource):
    """Outputs: `cards`, `boot`, as GpuVm takes them. `host`: the VM's; `stack`: the homelab stack."""

    cards: pulumi.Output[dict[str, OfferedCard]]
    boot: pulumi.Output[BootSeen]

    def __init__(
        self, vm: Vm, *, host: Host, stack: pulumi.StackReference, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("homelab:gpu:LentCards", f"{vm.name}-cards", {}, opts)

        def found(name: str, values: Mapping[str, object]) -> Lent:
            try:
                return lent(name, values, vm.name, vm, host.node_name)
            except HomelabError as error:
                raise Refusal(error) from None

        known = pulumi.Output.all(stack.name, stack.outputs).apply(lambda both: found(str(both[0]), both[1]))
        self.cards = known.apply(lambda both: both["cards"])
        self.boot = known.apply(lambda both: both["boot"])
        self.register_outputs({"cards": self.cards})
