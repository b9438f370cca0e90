"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each, and who has it.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry. A card with
`passthroughTest` is proved before a VM gets it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypedDict

import pulumi

from homelab.resources.card_mapping import CardMapping, entry_of, path_of
from homelab.resources.gpu_lease import GpuLease, LeasedCard
from homelab.settings import Host, Vm
from homelab.shapes import BootedHost, OfferedCard, PassthroughSeen

from .passthrough_test import PassthroughTest, PassthroughTestArgs


class _Driver(TypedDict, total=False):
    driver: str


@dataclass(frozen=True, kw_only=True)
class GpuCardsArgs:
    """`host_name`: in the settings; `booted`: the verified host, as HostReboot puts it out; `vms`: those of this host, by name."""

    host_name: str
    host: Host
    booted: pulumi.Input[BootedHost]
    vms: dict[str, Vm]


class GpuCards(pulumi.ComponentResource):
    """Nothing is made for a host without an `api`: its cards are bound, and that is all.

    Outputs: `cards`, name -> `mapping` and `slot` (its path: `card_mapping.path_of`), as a GpuVm takes them; `tests`, name -> what the passthrough test saw.
    """

    cards: pulumi.Output[dict[str, OfferedCard]]
    tests: pulumi.Output[dict[str, PassthroughSeen]]

    def __init__(self, name: str, args: GpuCardsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:gpu:GpuCards", name, {}, opts)
        host_name, host, booted = args.host_name, args.host, pulumi.Output.from_input(args.booted)
        before = opts.depends_on if opts else None
        # Of a card that is handed over, several VMs may name it at once: each gets and loses it by itself, and none has to give it up first.
        leased = {gpu for gpu, about in host.gpus.items() if about.use != "shared"}
        holders = {use.gpu: (vm_name, vm) for vm_name, vm in args.vms.items() for use in vm.gpus if use.gpu in leased}
        tests: dict[str, pulumi.Output[PassthroughSeen]] = {}
        released: dict[str, pulumi.Resource] = {}
        cards = [gpu for gpu, about in host.gpus.items() if about.may_leave] if host.api else []
        for gpu in cards:
            node, called = host.node or host_name, host.mapping_of(gpu)
            about = {"host": host_name, "node": node, "mapping": called}
            # The two have types that tell them apart.
            card = f"{host_name}-{gpu}"
            # By its path the mapping's entry and a VM's option are known to be this card's.
            slot = booted.apply(functools.partial(path_of, gpu))
            mapping = CardMapping(
                card,
                {
                    **about,
                    "entry": booted.apply(functools.partial(entry_of, gpu)),
                    "live_migration": host.gpus[gpu].live_migration,
                },
                pulumi.ResourceOptions(parent=self, depends_on=before),
            )
            released[gpu] = GpuLease.of(
                card,
                LeasedCard(host=host_name, node=node, mapping=called, slot=slot),
                holders.get(gpu),
                pulumi.ResourceOptions(parent=self, depends_on=[mapping]),
            )
        for gpu, about_gpu in host.gpus.items():
            if about_gpu.use == "vm" and about_gpu.passthrough_test:
                # Before a VM has it: the test refuses a card that another VM runs with. Not again after each reboot, when one may.
                after = pulumi.ResourceOptions(depends_on=[released[gpu]] if gpu in released else before)
                functions = booted.apply(functools.partial(_functions, gpu))
                about_test = PassthroughTestArgs(host=host, functions=functions)
                options = pulumi.ResourceOptions.merge(after, pulumi.ResourceOptions(parent=self))
                tests[gpu] = PassthroughTest(f"{host_name}-{gpu}-test", about_test, options).seen
        self.tests = pulumi.Output.all(**tests) if tests else pulumi.Output.from_input({})  # `all` of nothing is a list
        self.cards = booted.apply(
            lambda found: {
                gpu: {"mapping": host.mapping_of(gpu), "slot": path_of(gpu, found), **_driver(gpu, found)}
                for gpu in cards
            }
        )
        self.register_outputs({"cards": self.cards, "tests": self.tests})


def _functions(name: str, host: BootedHost) -> dict[str, str]:
    return {function["address"]: function["id"] for function in host["gpus"][name]["functions"]}


def _driver(name: str, host: BootedHost) -> _Driver:
    """Of a card that is handed over, where Proxmox VE knows how to leave its driver alone."""
    return {"driver": "keep"} if host["gpus"][name]["keep"] else {}
