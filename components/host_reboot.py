"""HostReboot: one reboot for all the layers above it, only if the running kernel lacks what is wanted; then the verification.

Owns nothing that lasts: a dead man's switch is armed before the reboot and disarmed once the host is back. Both resources are
acts: their triggers are what they depend on, so that a change there replaces them.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from homelab.errors import HomelabError, raise_all
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.base import HostProvider, replaced_by
from homelab.resources.host_probe import HostProbe
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.host import plan
    from homelab.host.facts import HostFacts
    from homelab.settings import Host

# A running guest in what reboot_host.sh answers: `VM 103 (Sandbox), container 901 (ai-lab)`. Names hold no brackets.
_GUEST = re.compile(r"(?:VM|container) (\d+) \(")

OUTPUTS = ("kernel", "boot_id", "iommu", "devices", "boot")


class BootVerificationProvider(HostProvider):
    """Waits for the reboot that was begun, if any; confirms the boot; compares the running system with what is wanted."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        host = self.host(props)
        reboot = scripts.answer(props["reboot"])
        facts = asyncio.run(_verified(host, props["host"], reboot, _wanted(props)))
        tell(
            f"{props['host']}: verified: kernel {facts.kernel}, {facts.iommu.groups} IOMMU groups, {_bound(facts, props)} on vfio-pci"
        )
        stopped = _GUEST.findall(reboot["guests"]) if reboot["reboot"] == "yes" else []
        boot = {"id": facts.boot_id, "stopped": [int(vmid) for vmid in stopped], "at": int(time.time())}
        return CreateResult(props["host"], {**props, **_outputs(facts, props), "boot": boot})

    def hold_on(self, props: dict[str, Any]) -> None:
        """Not now: a reboot ends whatever holds its host, which is taken again once the boot is confirmed."""

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return replaced_by(olds, news, *OUTPUTS)


async def _verified(host: Host, name: str, reboot: dict[str, Any], want: plan.Wanted) -> HostFacts:
    from homelab.host import plan
    from homelab.remote import guard, ssh

    old_boot_id = None
    if reboot["reboot"] == "yes":
        tell(f"{name}: rebooting, because {'; '.join(reboot['reasons'])}; it stops {reboot['guests'] or 'no guest'}")
        old_boot_id = reboot["boot_id"]
    elif reboot["reboot"] == "manual" and (await ssh.read(host)).boot_id == reboot["boot_id"]:
        raise HomelabError(
            wanted=f"{name} rebooted, because {'; '.join(reboot['reasons'])}",
            found=f"it has not been since (reboot: manual); a reboot stops {reboot['guests'] or 'no guest'}",
            why="the boot configuration is in place, but only a reboot brings it into effect; what depends on it waits",
            next=f"reboot {name} when it suits you, then run `pulumi up` again: it goes on from here",
        )
    # Within reach, the host needs no switch any more, whatever the checks say: a person can act.
    facts = await ssh.confirm(host, old_boot_id, lambda text: tell(f"{name}: {text}"))
    if facts.rolled_back:
        raise HomelabError(
            wanted=f"the new boot of {name} confirmed",
            found=f"it has returned by itself to what it was{', but for its restart' if facts.rolling_back else ''}: {facts.rolled_back}",
            why="it came up with the new configuration, but out of reach: most likely its network depends on a device that was taken away",
            next="compare `journalctl -b -1` on the host with the plan (`pulumi preview`); when the cause is gone, run `pulumi up --refresh`",
        )
    try:
        await asyncio.to_thread(guard.hold, name, host)  # the reboot has ended what held it
    except HomelabError as error:
        # The boot is confirmed all the same; what would change something is refused.
        tell(f"{name}: to know: {error.found}")
    raise_all([*plan.verify(facts, host, want), *said_by_kernel(facts, name, want)])
    return facts


def said_by_kernel(facts: HostFacts, name: str, want: plan.Wanted) -> list[HomelabError]:
    """What is wrong with a card since the boot; what need not stop anybody is told."""
    from homelab.host import kernel_log

    found = kernel_log.of_host(facts, name) if want.functions else []
    for gpu, about in want.gpus.items():
        functions = [str(function["address"]) for function in about["functions"]]
        found += kernel_log.of_card(facts, f"{name}, gpus.{gpu}", functions)
    for trouble in found:
        if not trouble.stops:
            tell(f"{name}: to know: {trouble.error.found}: {trouble.error.why}; {trouble.error.next}")
    return [trouble.error for trouble in found if trouble.stops]


def _wanted(props: dict[str, Any]) -> plan.Wanted:
    from homelab.host import plan

    return plan.Wanted(props["iommu_words"], props["vfio_words"], props["functions"], [], props["gpus"])


def _bound(facts: HostFacts, props: dict[str, Any]) -> str:
    return (
        ", ".join(address for address in sorted(props["functions"]) if facts.by_address[address].driver == "vfio-pci")
        or "nothing"
    )


def _outputs(facts: HostFacts, props: dict[str, Any]) -> dict[str, Any]:
    cards = {function["address"] for gpu in props["gpus"].values() for function in gpu["functions"]}
    return {
        "kernel": facts.kernel,
        "boot_id": facts.boot_id,
        "iommu": {"groups": facts.iommu.groups, "kernelLog": facts.iommu.kernel_log.splitlines()},
        "devices": {
            device.address: {"id": device.id, "driver": device.driver, "iommuGroup": device.group}
            for device in facts.devices
            if device.address in cards
        },
    }


class BootVerification(Resource, module="homelab", name="BootVerification"):
    """The dynamic resource. Outputs: ``kernel``, ``boot_id``, ``iommu`` (groups, kernelLog), ``devices`` (address -> id, driver, group),
    ``boot`` (id; the guests that our reboot stopped; when, in seconds since 1970).
    """

    kernel: pulumi.Output[str]
    boot_id: pulumi.Output[str]
    iommu: pulumi.Output[dict[str, Any]]
    devices: pulumi.Output[dict[str, Any]]
    boot: pulumi.Output[dict[str, Any]]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(BootVerificationProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)


class HostReboot(pulumi.ComponentResource):
    """Outputs: ``host``, the verified host as the stack puts it out (kernel, bootId, iommu, gpus with functions and drivers);
    ``boot`` (BootVerification); ``driver``, as it was given.

    :param layers: what the boot brings into effect.
    :param driver: NVIDIA's that is installed on the host, and to be in use; empty: it doesn't matter. ``flavour``: of its modules.
    """

    host: pulumi.Output[dict[str, Any]]
    boot: pulumi.Output[dict[str, Any]]

    def __init__(
        self,
        name: str,
        host_name: str,
        host: Host,
        probe: HostProbe,
        layers: list[pulumi.Resource],
        driver: pulumi.Input[str] = "",
        flavour: pulumi.Input[str] = "",
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("homelab:host:HostReboot", name, {}, opts)
        # What the verification is replaced by. The reboot is, too: another verification would take the reboot of long ago, and the
        # guests that it stopped, for one of now.
        checked = {
            "iommu_words": probe.iommu_words,
            "vfio_words": probe.vfio_words,
            "functions": probe.functions,
            "gpus": probe.gpus,
            "generation": probe.boot_generation,
        }
        wanted = pulumi.Output.all(probe.iommu_words, probe.vfio_words, probe.functions, driver, flavour)
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
                )
            ),
            pulumi.ResourceOptions(parent=self, depends_on=layers),
            undone=False,
            triggers=[*checked.values(), driver, flavour],
        )
        verified = BootVerification(
            f"{name}-verified",
            {"host": host_name, "reboot": reboot.stdout, **checked},
            pulumi.ResourceOptions(parent=self, depends_on=[reboot]),
        )
        self.boot = verified.boot
        self.driver = driver
        self.host = pulumi.Output.all(
            kernel=verified.kernel,
            boot_id=verified.boot_id,
            iommu=verified.iommu,
            devices=verified.devices,
            gpus=probe.gpus,
        ).apply(_stack_output)
        self.register_outputs({"host": self.host})


def _stack_output(values: dict[str, Any]) -> dict[str, Any]:
    devices = values["devices"]
    gpus = {
        name: {
            **gpu,
            "functions": [{**function, **devices.get(function["address"], {})} for function in gpu["functions"]],
        }
        for name, gpu in values["gpus"].items()
    }
    return {"kernel": values["kernel"], "bootId": values["boot_id"], "iommu": values["iommu"], "gpus": gpus}
