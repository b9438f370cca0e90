"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry. Where the
settings say how cards are reset or that they stay awake (`reset`, `keepAwake`), it owns a udev rule, too, which sets
these values whenever a function appears or gets a driver. Undone, a function has the values that it had before.

A card with `passthroughTest` is proved before a VM gets it: a small VM gets the card, boots the host's own kernel and
says from inside what it sees; then it is removed. The test is made again when the card's functions change.
"""

from __future__ import annotations

import functools
from typing import cast

import pulumi

from homelab.cards import values as card_values
from homelab.cards.resource import CardMapping, entry_of
from homelab.host.resource import HostProbe
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Host
from homelab.shapes import BootedHost, OfferedCard, PassthroughSeen
from homelab.vm.cards import offered
from remote_scripts.both.passthrough_test import Wanted as PassthroughTest

from .host_reboot import HostReboot


class GpuCards(pulumi.ComponentResource):
    """Mappings of a host's cards; none of cards that VMs get by address.

    Outputs: `cards`, name -> `mapping` and `slot` (its path), for GpuVm; `tests`, name -> what
    the passthrough test saw. `probe`: has the host's cards; `boot`: verified them.
    """

    cards: pulumi.Output[dict[str, OfferedCard]]
    tests: pulumi.Output[dict[str, PassthroughSeen]]

    def __init__(
        self, host: Host, probe: HostProbe, boot: HostReboot, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("homelab:gpu:GpuCards", host.name, {}, opts)
        booted = boot.host
        depends_on = opts.depends_on if opts else None
        if any(gpu.reset or gpu.keep_awake for gpu in host.gpus.values()):
            depends_on = [_values(host, probe, pulumi.ResourceOptions(parent=self, depends_on=depends_on))]
        uses = [(use.gpu, vm.vmid) for vm in host.vms for use in vm.gpus]
        tests: dict[str, pulumi.Output[PassthroughSeen]] = {}
        mappings: dict[str, pulumi.Resource] = {}
        cards = [gpu for gpu, settings in host.gpus.items() if settings.may_leave]
        for gpu in cards:
            # The path tells which mapping's entry and which VM's option are this card's.
            mappings[gpu] = CardMapping(
                f"{host.name}-{gpu}",
                {
                    "host": host.name,
                    "node": host.node_name,
                    "mapping": host.mapping_of(gpu),
                    "gpu": gpu,
                    "entry": booted.apply(functools.partial(entry_of, gpu)),
                    "live_migration": host.gpus[gpu].live_migration,
                    "keepers": sorted({vmid for name, vmid in uses if name == gpu}),
                },
                pulumi.ResourceOptions(parent=self, depends_on=depends_on),
            )
        for gpu, settings in host.gpus.items():
            if settings.use == "vm" and settings.passthrough_test:
                # Before a VM has it: the test refuses a card that another VM runs with. So it isn't made again after
                # each reboot, when a VM may run with the card.
                test_depends_on = [mappings[gpu]] if gpu in mappings else depends_on
                functions = booted.apply(functools.partial(_functions, gpu))
                options = pulumi.ResourceOptions(parent=self, depends_on=test_depends_on)
                tests[gpu] = _seen(f"{host.name}-{gpu}-test", host, functions, options)
        self.tests = pulumi.Output.all(**tests) if tests else pulumi.Output.from_input({})  # `all` of nothing is a list
        self.cards = booted.apply(lambda seen: {gpu: offered(host, gpu, seen["gpus"][gpu]) for gpu in cards})
        self.register_outputs({"cards": self.cards, "tests": self.tests})


def _values(host: Host, probe: HostProbe, opts: pulumi.ResourceOptions) -> pulumi.Resource:
    """The cards' `reset` and `keepAwake` on the host."""
    wanted = probe.gpus.apply(lambda cards: card_values.wanted(cards, host.gpus))
    generation = probe.generation_of("values")
    return remote.layer(f"{host.name}-values", host, "card_values", wanted, opts, generation=generation)


def _seen(
    name: str, host: Host, functions: pulumi.Output[dict[str, str]], opts: pulumi.ResourceOptions
) -> pulumi.Output[PassthroughSeen]:
    """A passthrough test: what a VM sees of functions, which must be on vfio-pci and in no running VM.

    :param functions: PCI address -> vendor:device.
    """
    wanted = functions.apply(lambda ids: PassthroughTest(functions=ids))
    test = remote.layer(name, host, "passthrough_test", wanted, opts, undone=False, triggers=[functions], is_act=True)
    return test.stdout.apply(lambda text: cast("PassthroughSeen", scripts.answer(text)))


def _functions(name: str, host: BootedHost) -> dict[str, str]:
    return {function["address"]: function["id"] for function in host["gpus"][name]["functions"]}
