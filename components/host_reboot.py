"""HostReboot: one reboot for all the layers that it depends on, only if the running kernel lacks what is wanted; then
the verification.

Owns nothing that lasts: a dead man's switch is armed before the reboot and disarmed once the host is back. Both
resources are acts: their triggers are what they depend on, so that a change there replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pulumi

from homelab.errors import HomelabError
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources import limits
from homelab.resources.boot_verification import BootVerification
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host
from homelab.shapes import (
    BootedCard,
    BootedFunction,
    BootedHost,
    BootSeen,
    CardPlan,
    DeviceSeen,
    IommuSeen,
)
from homelab.stack import Refusal


@dataclass(frozen=True, kw_only=True)
class HostRebootArgs:
    """`host_name`: in the settings; `probe`: says what is wanted; `driver`: NVIDIA's that is installed on the host, and
    to be in use; empty: it doesn't matter; `flavour`: of its modules; `driver_generation`: raised when that driver was
    mended; `previous_node`: the boot of the cluster's node that restarts before this one."""

    host_name: str
    host: Host
    probe: HostProbe
    driver: pulumi.Input[str] = ""
    flavour: pulumi.Input[str] = ""
    driver_generation: pulumi.Input[int] = 0
    previous_node: pulumi.Input[BootSeen] | None = None


class HostReboot(pulumi.ComponentResource):
    """Outputs: `host`, the verified host as the stack puts it out (kernel, bootId, iommu, gpus with functions and
    drivers); `boot` (BootVerification); `driver`, as it was given.
    """

    host: pulumi.Output[BootedHost]
    boot: pulumi.Output[BootSeen]
    driver: pulumi.Output[str]

    def __init__(self, name: str, args: HostRebootArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:HostReboot", name, {}, opts)
        host, probe, driver, flavour = args.host, args.probe, args.driver, args.flavour
        # What the verification is replaced by. The reboot is, too: another verification would take the reboot of long
        # ago, and the guests that it stopped, for one of now.
        checked = {
            "iommu_words": probe.iommu_words,
            "vfio_words": probe.vfio_words,
            "functions": probe.functions,
            "gpus": probe.gpus,
            "generation": probe.boot_generation,
        }
        wanted = pulumi.Output.all(
            probe.iommu_words, probe.vfio_words, probe.functions, driver, flavour, _await_node(args.previous_node)
        )
        reboot = remote.script(
            f"{name}-reboot",
            host,
            wanted.apply(
                lambda values: scripts.reboot_host(
                    host.reboot,
                    f"{values[0]} {values[1]}".strip(),
                    sorted(values[2]),
                    host.timeouts.rollback,
                    values[3],
                    values[4],
                    awaited=host.timeouts.boot,
                    keep_quorum=not host.allow_quorum_loss,
                    guests=host.guests_at_reboot,
                )
            ),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            undone=False,
            seconds=limits.of_reboot(host),
            triggers=[*checked.values(), driver, flavour, args.driver_generation],
        )
        verified = BootVerification(
            f"{name}-booted",
            {"host": args.host_name, "reboot": reboot.stdout, **checked},
            pulumi.ResourceOptions(parent=self, depends_on=[reboot]),
        )
        self.boot = verified.boot
        self.driver = pulumi.Output.from_input(driver)
        self.host = pulumi.Output.all(
            kernel=verified.kernel,
            boot_id=verified.boot_id,
            iommu=verified.iommu,
            devices=verified.devices,
            gpus=probe.gpus,
        ).apply(lambda found: _stack_output(**found))
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
        raise Refusal(
            HomelabError(
                wanted="the next node of the cluster restarted",
                found="the node before it isn't back, or isn't verified",
                why="the nodes of a cluster restart one at a time",
                next="see what this run says about that node, then run `pulumi up` again",
            )
        )
    await boot.future()


def _stack_output(
    *, kernel: str, boot_id: str, iommu: IommuSeen, devices: dict[str, DeviceSeen], gpus: dict[str, CardPlan]
) -> BootedHost:
    cards: dict[str, BootedCard] = {
        name: {**card, "functions": _functions(card, devices)} for name, card in gpus.items()
    }
    return {"kernel": kernel, "bootId": boot_id, "iommu": iommu, "gpus": cards}


def _functions(card: CardPlan, devices: dict[str, DeviceSeen]) -> list[BootedFunction]:
    """What the booted host made of a card's functions."""
    return [
        cast("BootedFunction", {**function, **devices.get(function["address"], {})}) for function in card["functions"]
    ]
