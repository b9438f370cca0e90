"""A host's resources.

HostProbe: what a host is and is to be, read over SSH; where drift is found.

It reads the host, passes every gate or fails before anything is changed, and puts out what is wanted: words of the
command line, functions for vfio-pci. A refresh (`pulumi refresh`, `up --refresh`) compares the host with that, names
every difference, and raises the `generation` of each layer that drifted: the commands that take it run again, with the
chain behind them, and a preview shows exactly these. A card that is no longer where it was, or no longer bound by hand,
makes the plan itself `stale`: it is made anew. It owns nothing on the host: destroying it changes nothing.

A preview shows the plan for people, when anything of the host changes (homelab/host/work.py).

BootVerification: waits for the reboot that was begun, if any; confirms the boot; compares the running system with what
is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.later import later
from homelab.remote import scripts
from homelab.resources.base import Act, HostInputs, Probe, Values, digest
from homelab.shapes import BOOT_LAYERS, BootSeen, CardPlan, DeviceSeen, HostPlan, IommuSeen

if TYPE_CHECKING:
    from homelab.nvidia import compatibility
    from homelab.remote import agent
    from homelab.settings import Host
else:
    agent, compatibility = later("homelab.remote.agent"), later("homelab.nvidia.compatibility")

# How a host and its guests are reached, and how long what is done there may take: no gate reads that.
_REACHED: dict[str, object] = {**dict.fromkeys(("address", "ssh", "timeouts"), True), "nvidia": {"timeouts"}}


class HostProbe(Probe):
    """The plan of a host. Outputs as of `Outputs`."""

    kind = "host:Probe"

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """`settings`: digest of the host's (Probe); `guests`: of its guests', which gates read, too; `data`: of
        NVIDIA's data, where software is installed by them; `agent`: the version of this program's agent; `preview`:
        whether the program runs in one, which no state keeps.
        """

        settings: str
        guests: str = ""
        data: str = ""
        agent: str = ""
        preview: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Outputs(HostPlan):
        """The plan, and of it `generation`: layer -> how often it drifted; `stale`: is it to be made again?"""

        generation: dict[str, int]
        stale: bool

    iommu_words: pulumi.Output[str]
    vfio_words: pulumi.Output[str]
    functions: pulumi.Output[dict[str, str]]
    if TYPE_CHECKING:
        gpus: pulumi.Output[dict[str, CardPlan]]
    generation: pulumi.Output[dict[str, int]]

    @classmethod
    def of(cls, host: Host, *, opts: pulumi.ResourceOptions | None = None) -> HostProbe:
        """The probe of a host of the settings."""
        guests = sorted(f"{guest.name}={digest(guest, _REACHED)}" for guest in (*host.vms, *host.containers))
        of_guests = (*(vm.nvidia for vm in host.vms), *(container.nvidia for container in host.containers))
        return cls(
            f"{host.name}-probe",
            host=host.name,
            settings=cls.settings_of(host),
            guests=" ".join(guests),
            data=compatibility.digest() if any((host.nvidia, *of_guests)) else "",
            agent=agent.version(),
            preview=pulumi.runtime.is_dry_run(),
            opts=opts,
        )

    def once_all_fit(self, probes: Iterable[HostProbe]) -> pulumi.ResourceOptions:
        """Options of a resource that is made after this probe, once each of `probes` found its host fit for its plan.

        The others are not in depends_on, which the state keeps: a dead host is forgotten by `pulumi state delete
        --target-dependents`, which would take all hosts along.
        """

        async def fit() -> list[pulumi.Resource]:
            for other in probes:
                await other.generation.future()
            return [self]

        return pulumi.ResourceOptions(depends_on=pulumi.Output.from_input(fit()))

    @staticmethod
    def settings_of(host: Host) -> str:
        """The input `settings` for a host of the settings."""
        return digest(host, _REACHED)

    @property
    def words(self) -> pulumi.Output[str]:
        """What the kernel's command line gets."""
        return pulumi.Output.concat(self.iommu_words, " ", self.vfio_words)

    def generation_of(self, layer: str) -> pulumi.Output[int]:
        """How often this layer had to be mended."""
        return self.generation.apply(lambda generation: int(generation.get(layer, 0)))

    @property
    def boot_generation(self) -> pulumi.Output[dict[str, int]]:
        """How often each of the layers had to be mended that a reboot is about."""
        return self.generation.apply(lambda generation: {layer: generation.get(layer, 0) for layer in BOOT_LAYERS})


class BootVerification(Act):
    """A host's boot, confirmed and compared with what is wanted. Outputs as of `Outputs`."""

    kind = "host:BootCheck"

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """`reboot`: what the layer reboot answered; the others as HostProbe puts them out."""

        reboot: str
        iommu_words: str
        vfio_words: str
        functions: dict[str, str]
        gpus: dict[str, CardPlan]
        generation: dict[str, int]

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`iommu`: groups, and the kernel's lines about it that tell of something wrong; `devices`: address -> id,
        driver, iommuGroup."""

        kernel: str
        boot_id: str
        iommu: IommuSeen
        devices: dict[str, DeviceSeen]
        boot: BootSeen

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """Only another boot takes its place. One that lasts, or may do so, is verified again by an update."""
        is_answered = isinstance(changed.get("reboot"), str)
        return super().replacing(state, changed) - {"gpus", "generation"} - ({"reboot"} if not is_answered else set())

    @classmethod
    def says_nothing(cls, key: str, new: Any) -> bool:
        """Is an input's new value no reason to do anything? An answer that no reboot was needed is none: so a script
        whose text alone has changed, with a new version of this program, verifies nothing again.
        """
        return key == "reboot" and isinstance(new, str) and scripts.answer(new).get("reboot") == "no"

    kernel: pulumi.Output[str]
    boot_id: pulumi.Output[str]
    if TYPE_CHECKING:
        iommu: pulumi.Output[IommuSeen]
        devices: pulumi.Output[dict[str, DeviceSeen]]
        boot: pulumi.Output[BootSeen]
