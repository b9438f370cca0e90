"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each, and who has it.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry. Where the
settings say how cards are reset or that they stay awake (`reset`, `keepAwake`), it owns a udev rule, too, which sets
these values whenever a function appears or gets a driver. Undone, a function has the values that it had before.

A card with `passthroughTest` is proved before a VM gets it: a small VM gets the card, boots the host's own kernel and
says from inside what it sees; then it is removed. Other functions replace that act, which tests again.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypedDict, cast

import pulumi

from homelab.host import card_values
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.card_mapping import CardMapping, entry_of, path_of
from homelab.resources.gpu_lease import GpuLease, LeasedCard
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host, Vm
from homelab.shapes import BootedHost, OfferedCard, PassthroughSeen


class _Driver(TypedDict, total=False):
    driver: str


@dataclass(frozen=True, kw_only=True)
class GpuCardsArgs:
    """`host_name`: in the settings; `probe`: which cards there are, and what drifted; `booted`: the verified host, as
    HostReboot puts it out; `vms`: those of this host, by name."""

    host_name: str
    host: Host
    probe: HostProbe
    booted: pulumi.Input[BootedHost]
    vms: dict[str, Vm]


class GpuCards(pulumi.ComponentResource):
    """No mappings are made for a host without an `api`: its cards are bound, and that is all.

    Outputs: `cards`, name -> `mapping` and `slot` (its path: `card_mapping.path_of`), as a GpuVm takes them; `tests`,
    name -> what the passthrough test saw.
    """

    cards: pulumi.Output[dict[str, OfferedCard]]
    tests: pulumi.Output[dict[str, PassthroughSeen]]

    def __init__(self, name: str, args: GpuCardsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:gpu:GpuCards", name, {}, opts)
        host_name, host, booted = args.host_name, args.host, pulumi.Output.from_input(args.booted)
        before = opts.depends_on if opts else None
        if any(gpu.reset or gpu.keep_awake for gpu in host.gpus.values()):
            before = [
                _values(f"{name}-values", host, args.probe, pulumi.ResourceOptions(parent=self, depends_on=before))
            ]
        # Of a card that is handed over, several VMs may name it at once: each gets and loses it by itself, and none has
        # to give it up first.
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
                # Before a VM has it: the test refuses a card that another VM runs with. Not again after each reboot,
                # when one may.
                after = [released[gpu]] if gpu in released else before
                functions = booted.apply(functools.partial(_functions, gpu))
                options = pulumi.ResourceOptions(parent=self, depends_on=after)
                tests[gpu] = _seen(f"{host_name}-{gpu}-test", host, functions, options)
        self.tests = pulumi.Output.all(**tests) if tests else pulumi.Output.from_input({})  # `all` of nothing is a list
        self.cards = booted.apply(
            lambda found: {
                gpu: {"mapping": host.mapping_of(gpu), "slot": path_of(gpu, found), **_driver(gpu, found)}
                for gpu in cards
            }
        )
        self.register_outputs({"cards": self.cards, "tests": self.tests})


def _values(name: str, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions) -> pulumi.Resource:
    """How the cards are reset and whether they may sleep."""
    wanted = pulumi.Output.all(probe.gpus, probe.generation_of("values"))
    lines = wanted.apply(lambda found: scripts.card_values(card_values.lines(found[0], host.gpus), found[1]))
    return remote.script(name, host, lines, opts, told=True)


def _seen(
    name: str, host: Host, functions: pulumi.Output[dict[str, str]], opts: pulumi.ResourceOptions
) -> pulumi.Output[PassthroughSeen]:
    """What a VM sees of the functions (PCI address -> vendor:device). They must be on vfio-pci, and no VM that runs may
    have one."""
    test = remote.script(
        name, host, functions.apply(scripts.passthrough_test), opts, undone=False, triggers=[functions]
    )
    return test.stdout.apply(lambda text: cast("PassthroughSeen", scripts.answer(text)))


def _functions(name: str, host: BootedHost) -> dict[str, str]:
    return {function["address"]: function["id"] for function in host["gpus"][name]["functions"]}


def _driver(name: str, host: BootedHost) -> _Driver:
    """Of a card that is handed over, where Proxmox VE knows how to leave its driver alone."""
    return {"driver": "keep"} if host["gpus"][name]["keep"] else {}
