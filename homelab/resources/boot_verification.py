"""BootVerification: waits for the reboot that was begun, if any; confirms the boot; compares the running system with
what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.remote import scripts
from homelab.resources.base import Act, HostInputs, Values
from homelab.shapes import BootSeen, CardPlan, DeviceSeen, IommuSeen


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
