"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry. Where the
settings say how cards are reset or that they stay awake (`reset`, `keepAwake`), it owns a udev rule, too, which sets
these values whenever a function appears or gets a driver. Undone, a function has the values that it had before.

A card with `passthroughTest` is proved before a VM gets it: a small VM gets the card, boots the host's own kernel and
says from inside what it sees; then it is removed. The test is made again when the card's functions change.
"""

from __future__ import annotations

import functools
from typing import Any

import pulumi

from homelab.cards import values as card_values
from homelab.cards.resource import CardMapping, entry_of
from homelab.host.resource import HostProbe
from homelab.remote import scripts
from homelab.resources.command import Place, Request, step
from homelab.settings import Host
from homelab.shapes import BootedHost, CardTest, OfferedCard
from homelab.vm.cards import offered
from remote_scripts.both.passthrough_test import Wanted as PassthroughTest

from .component import HostComponent
from .host_reboot import HostReboot


class GpuCards(HostComponent):
    """Mappings of a host's cards; none of cards that VMs get by address.

    Outputs: `cards`, name -> `mapping` and `slot` (its path), for GpuVm; `tests`, name -> what
    the passthrough test saw. `probe`: has the host's cards; `boot`: verified them.
    """

    cards: pulumi.Output[dict[str, OfferedCard]]
    tests: pulumi.Output[dict[str, CardTest]]

    def __init__(
        self, host: Host, *, probe: HostProbe, boot: HostReboot, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("gpu:GpuCards", host, probe, opts)
        booted = boot.host
        if any(gpu.reset or gpu.keep_awake for gpu in host.gpus.values()):
            wanted = probe.gpus.apply(lambda cards: card_values.wanted(cards, host.gpus))
            self._after = [self._step("values", "card_values", wanted, drifted="values")]
        uses = [(use.gpu, vm.vmid) for vm in host.vms for use in vm.gpus]
        mappings: dict[str, pulumi.Resource] = {}
        cards = [gpu for gpu, settings in host.gpus.items() if settings.may_leave]
        for gpu in cards:
            # The path tells which mapping's entry and which VM's option are this card's.
            mappings[gpu] = CardMapping(
                f"{host.name}-{gpu}",
                host=host.name,
                node=host.node_name,
                mapping=host.mapping_of(gpu),
                gpu=gpu,
                entry=booted.apply(functools.partial(entry_of, gpu)),
                live_migration=host.gpus[gpu].live_migration,
                keepers=sorted({vmid for name, vmid in uses if name == gpu}),
                opts=self._part(),
            )
        # Before a VM has it: the test refuses a card that another VM runs with. So it isn't made again after each
        # reboot, when a VM may run with the card.
        tests: dict[str, Any] = {
            gpu: self._test(gpu, booted, mappings.get(gpu))
            for gpu, settings in host.gpus.items()
            if settings.use == "vm" and settings.passthrough_test
        }
        self.tests = pulumi.Output.from_input(tests)
        self.cards = booted.apply(lambda seen: {gpu: offered(host, gpu, seen["gpus"][gpu]) for gpu in cards})
        self.register_outputs({"cards": self.cards, "tests": self.tests})

    def _test(
        self, gpu: str, booted: pulumi.Output[BootedHost], mapping: pulumi.Resource | None
    ) -> pulumi.Output[dict[str, Any]]:
        """A passthrough test: what a VM sees of a card's functions, which must be on vfio-pci and in no running VM."""
        functions = booted.apply(functools.partial(_functions, gpu))
        wanted = functions.apply(lambda ids: PassthroughTest(functions=ids))
        test = step(
            f"{self._host.name}-{gpu}-test",
            place=Place(self._host),
            request=Request("passthrough_test", wanted, is_act=True),
            undone=False,
            triggers=[functions],
            opts=self._part(mapping),
        )
        return test.stdout.apply(scripts.answer)


def _functions(name: str, host: BootedHost) -> dict[str, str]:
    # PCI address -> vendor:device.
    return {function["address"]: function["id"] for function in host["gpus"][name]["functions"]}
