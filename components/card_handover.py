"""CardHandover: cards that containers and a VM have in turn, handed over by the host itself when the VM starts and stops.

Owns /usr/local/sbin/homelab-handover, a service and a timer of that name, and the hookscript in a storage's snippets which VMs name (GpuVm sets
it). Undone by taking them away; refused while a VM has a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from homelab.host.handover import card_line
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.children import Children
from homelab.settings import Host, Vm
from homelab.shapes import CardPlan


@dataclass(frozen=True, kw_only=True)
class CardHandoverArgs:
    """``vms``: of the host, by name; ``cards``: all of the host, and ``generation``: raised when it drifted, both as HostProbe puts them out."""

    host: Host
    vms: Mapping[str, Vm]
    cards: pulumi.Input[dict[str, CardPlan]]
    generation: pulumi.Input[int]


class CardHandover(pulumi.ComponentResource):
    """No outputs: VMs that may take such a card depend on it."""

    def __init__(self, name: str, args: CardHandoverArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardHandover", name, {}, opts)
        children = Children(self, name, opts)
        takers = {
            gpu: [vm.vmid for vm in args.vms.values() if gpu in (use.gpu for use in vm.gpus)]
            for gpu in args.host.hands_over
        }
        remote.script(
            children.named("handover"),
            args.host,
            pulumi.Output.all(args.cards, args.generation).apply(
                lambda found: scripts.handover(
                    [card_line(gpu, found[0][gpu], vmids) for gpu, vmids in takers.items()], int(found[1])
                )
            ),
            children.options("handover", depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
