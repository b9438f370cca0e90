"""HostProbe: what a host is and is to be, read over SSH; where drift is found.

pulumi-command has no read, so this dynamic resource stands beside its commands. `create` and `update` read the host, pass every
gate or fail before anything is changed, and put out what is wanted: words of the command line, functions for vfio-pci. `read`
(``pulumi refresh``, ``up --refresh``) compares the host with that, names every difference, and raises the ``generation`` of each
layer that drifted: the commands that take it run again, with the chain behind them, and a preview shows exactly these. A card that
is no longer where it was, or no longer bound by hand, makes the plan itself stale: then `diff` asks for an update.
It owns nothing on the host: destroying it changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.base import HostProvider
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.settings import Host

# Imports of `host` and `settings` are inside what reads a host: a run without a change starts this module's process, too, and
# needs none of them (a quarter of a second).

# The parts of a host that drift by themselves; `boot` is what only a reboot can mend, `nodes` NVIDIA's device nodes.
BOOT_LAYERS = ("iommu", "vfio", "boot")
LAYERS = (*BOOT_LAYERS, "nodes")

# What `create` puts out, beside the inputs.
OUTPUTS = ("iommu_words", "vfio_words", "functions", "by_hand", "gpus", "generation", "stale")


class HostProbeProvider(HostProvider):
    """See the module."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        want = self._wanted(props)
        generation = dict.fromkeys(LAYERS, 0)
        return CreateResult(props["host"], {**props, **want, "generation": generation, "stale": False})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        if "functions" not in props:  # `pulumi import` has nothing to compare with yet
            return ReadResult(id_, props)
        from homelab.host import plan

        facts = self.facts_of_refresh(props)
        want = plan.Wanted(**{field.name: props[field.name] for field in dataclasses.fields(plan.Wanted)})
        drift = plan.drift(facts, want)
        for layer, differences in drift.items():
            for difference in differences:
                tell(f"{props['host']}: drift ({layer}): {difference}")
        generation = _raised(props["generation"], {layer for layer, differences in drift.items() if differences})
        return ReadResult(id_, {**props, "generation": generation, "stale": plan.stale(facts, want)})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = bool(olds.get("stale")) or any(olds.get(key) != news.get(key) for key in ("host", "wanted"))
        return DiffResult(changes=changed, replaces=[], stables=[], delete_before_replace=False)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(
            {**news, **self._wanted(news), "generation": _raised(olds["generation"], set()), "stale": False}
        )

    def _wanted(self, props: dict[str, Any]) -> dict[str, Any]:
        from homelab.host import gates
        from homelab.remote import guard, planning

        guard.hold(props["host"], self.host(props))
        host, vms, containers = self.host(props), self.vms(props), self.containers(props)
        found = asyncio.run(planning.planned(props["host"], host, vms, containers))
        # Also for those who skip the preview: what a reboot stops is said before anything is changed.
        slots = {gpu: str(about["slot"]) for gpu, about in found.want.gpus.items()}
        for said in gates.remarks(found.facts, host, slots):
            tell(f"{props['host']}: note: {said}")
        tell(f"{props['host']}: reboot: {found.reboot}")
        return dataclasses.asdict(found.want)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        from homelab.errors import HomelabError
        from homelab.remote import ssh

        try:
            edits = asyncio.run(ssh.read(self.host(props))).edits
        except HomelabError as error:  # nothing is left to be given back: no reason to fail
            tell(f"{props['host']}: it can't be read once more ({error.found})")
            edits = []
        for copy in edits:
            tell(f"{props['host']}: a file of this program's had been edited by hand; what it was is kept in {copy}")
        if props.get("iommu_words") or props.get("vfio_words"):
            tell(
                f"{props['host']}: the boot configuration is as it was; the running kernel keeps the old command line and the "
                "GPU's binding until the next reboot"
            )


def _raised(generation: dict[str, float], layers: set[str]) -> dict[str, int]:
    """The generations, one higher for ``layers``. (Numbers come back from the state as floats.)"""
    return {layer: int(generation.get(layer, 0)) + (layer in layers) for layer in LAYERS}


class HostProbe(Resource, module="homelab", name="HostProbe"):
    """The dynamic resource.

    Outputs: ``iommu_words``, ``vfio_words`` (str), ``functions`` (address -> vendor:device), ``by_hand`` (addresses), ``gpus``
    (name -> slot, path, use, functions, iommuGroup), ``generation`` (layer -> how often it drifted), ``stale`` (does the plan still fit
    the hardware?).
    """

    iommu_words: pulumi.Output[str]
    vfio_words: pulumi.Output[str]
    functions: pulumi.Output[dict[str, str]]
    by_hand: pulumi.Output[list[str]]
    gpus: pulumi.Output[dict[str, Any]]
    generation: pulumi.Output[dict[str, int]]
    stale: pulumi.Output[bool]

    def __init__(self, name: str, host_name: str, host: Host, opts: pulumi.ResourceOptions | None = None) -> None:
        # The settings that decide what is wanted; how the host is reached may change without a reading.
        elsewhere = {"gpus": {"__all__": {"mapping", "passthrough_test"}}}
        wanted = host.model_dump(mode="json", include={"iommu", "gpus", "take_over"}, exclude=elsewhere)
        inputs = {"host": host_name, "wanted": wanted, **dict.fromkeys(OUTPUTS)}
        super().__init__(HostProbeProvider(), name, inputs, opts)

    def generation_of(self, layer: str) -> pulumi.Output[int]:
        """How often this layer had to be mended."""
        return self.generation.apply(lambda generation: int(generation.get(layer, 0)))

    @property
    def boot_generation(self) -> pulumi.Output[dict[str, int]]:
        """How often each of the layers had to be mended that a reboot is about."""
        return self.generation.apply(lambda generation: {layer: generation[layer] for layer in BOOT_LAYERS})
