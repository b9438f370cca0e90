"""HostReboot: one reboot for all the layers that it depends on, only if the running kernel lacks what is wanted; then
the verification.

Owns nothing that lasts: the boot is one on trial, and the default once the host is back and confirmed. The reboot
and the verification are acts: both are replaced when what a boot is to have changes, and done again, by an update, once
a file was mended.
"""

from __future__ import annotations

from typing import Any, cast

import pulumi

from homelab.host.reboot import wanted as wanted_reboot
from homelab.host.resource import BootVerification, HostProbe
from homelab.resources import limits
from homelab.resources.command import Place, Request, step
from homelab.resources.system import InstalledDriver
from homelab.settings import Host
from homelab.shapes import BootedHost, BootSeen, CardPlan, CardSeen, DeviceSeen
from homelab.stack import Refusal

from .component import HostComponent


class HostReboot(HostComponent):
    """Outputs: `host`, the verified host for the stack's outputs (kernel, bootId, iommu, gpus with functions and
    drivers); `boot` (BootVerification); `driver`: the version of NVIDIA's driver that this program has installed there;
    empty: none.

    `probe`: has the plan; `installed`: NVIDIA's driver on the host, which has to be loaded; `previous_node`: the boot
    of the cluster's node that restarts before this one.
    """

    host: pulumi.Output[BootedHost]
    boot: pulumi.Output[BootSeen]
    driver: pulumi.Output[str]

    def __init__(
        self,
        host: Host,
        *,
        probe: HostProbe,
        installed: InstalledDriver | None = None,
        previous_node: pulumi.Input[BootSeen] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("host:HostReboot", host, probe, opts)
        installed = installed or InstalledDriver()
        driver, flavour = installed.version, installed.flavour
        wanted_boot: dict[str, pulumi.Output[Any]] = {
            "iommu_words": probe.iommu_words,
            "vfio_words": probe.vfio_words,
            "functions": probe.functions,
        }
        known = pulumi.Output.all(probe.words, probe.functions, driver, flavour, _await_node(previous_node))
        reboot = step(
            f"{host.name}-reboot",
            place=Place(host),
            request=Request(
                "reboot",
                known.apply(lambda values: wanted_reboot(host, *values[:4])),
                # Whatever was mended: on the host it decides whether that needs a reboot.
                probe.boot_generation.apply(lambda generation: sum(generation.values())),
                seconds=limits.of_reboot(host),
            ),
            undone=False,
            triggers=[*wanted_boot.values(), driver, flavour, probe.generation_of("boot"), installed.generation],
            opts=self._part(),
        )
        verification = BootVerification(
            f"{host.name}-booted",
            host=host.name,
            reboot=reboot.stdout,
            **wanted_boot,
            gpus=probe.gpus,
            generation=probe.boot_generation,
            opts=self._part(reboot),
        )
        self.boot = verification.boot
        self.driver = pulumi.Output.from_input(driver)
        output = {
            "kernel": verification.kernel,
            "bootId": verification.boot_id,
            "iommu": verification.iommu,
            "gpus": pulumi.Output.all(probe.gpus, verification.devices).apply(lambda seen: cards_seen(*seen)),
        }
        self.host = pulumi.Output.from_input(cast("BootedHost", output))
        self.register_outputs({"host": self.host})


async def _await_node(boot_of_node: pulumi.Input[BootSeen] | None) -> None:
    """Wait until another node is back and verified. It isn't depends_on, which the state keeps:
    `pulumi state delete --target-dependents`, by which a dead node is forgotten, would take every node that restarts
    after it along.

    :raises Refusal: it isn't back, in an `up` that goes on for all that (`--continue-on-error`).
    """
    if boot_of_node is None:
        return
    boot = pulumi.Output.from_input(boot_of_node)
    if not await boot.is_known() and not pulumi.runtime.is_dry_run():
        raise Refusal.of(
            wanted="the next node of the cluster restarted",
            found="the node before it isn't back, or isn't verified",
            why="the nodes of a cluster restart one at a time",
            next="see what this run says about that node, then run `pulumi up` again",
        )
    await boot.future()


def cards_seen(cards: dict[str, CardPlan], devices: dict[str, DeviceSeen]) -> dict[str, CardSeen]:
    """A host's cards with what has their functions after the boot.

    :param cards: as HostProbe puts them out.
    :param devices: as BootVerification does.
    """
    seen = {}
    for name, card in cards.items():
        functions = [{**function, **devices.get(function["address"], {})} for function in card["functions"]]
        seen[name] = cast("CardSeen", {**card, "functions": functions})
    return seen
