"""The resources of NVIDIA's stack on a system: what the system is, a guest's reboot, the look from inside.

NvidiaSystem waits until the system answers, reads it, asks its apt, and refuses what can't be before anything is
installed. What containers say against their host's driver, the host's plan asks: of a preview, and of an `up` that
plans the host anew. A refresh compares it with what the steps left there: a layer that differs gets a higher
`generation`, with which its step runs again, and what follows it.

GuestReboot restarts a guest from inside, only if its running kernel can't use the installed driver: another nvidia
module is loaded than the installed one, or nouveau has the card. Both let go of it at a boot alone.

NvidiaVerification uses the stack from inside: nvidia-smi, nvcc, a CUDA program, a container, UVM as an ordinary user.
What doesn't work is recognised by its text and answered with the cause and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pulumi

from homelab.remote import scripts
from homelab.resources.base import Act, HostInputs, Probe
from homelab.shapes import NvidiaOutput
from remote_scripts.both.read_system import SystemFacts

# What the steps leave on a system, in the order in which they do.
LAYERS = ("packages", "boot", "toolkit")


@dataclass(frozen=True, kw_only=True)
class SystemInputs(HostInputs):
    """A system, as `System` describes it. `target`: host, vm or lxc; `nvidia`: the settings, without what only says
    how."""

    target: Literal["vm", "host", "lxc"]
    system_name: str
    ctid: int | None = None
    address: str
    nvidia: dict[str, Any]
    after: str
    passed: list[str]
    staying: list[str] | None = None
    stays: bool


class NvidiaSystem(Probe):
    """The plan of a system's NVIDIA stack. Outputs as of `Outputs`."""

    kind = "nvidia:System"
    replaced_by = frozenset(("host", "system_name", "target", "ctid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(SystemInputs):
        """`agent`: of a VM, which keeps one of its own, its version; `agent_owner`: the stack's folder in there."""

        agent: str = ""
        agent_owner: str = ""

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`facts`: what all steps are planned from, without what they change; `generation`: layer -> how often it
        drifted."""

        facts: SystemFacts
        generation: dict[str, int]
        stale: bool

    if TYPE_CHECKING:
        facts: pulumi.Output[SystemFacts]
    generation: pulumi.Output[dict[str, int]]
    stale: pulumi.Output[bool]

    def generation_of(self, layer: str) -> pulumi.Output[int]:
        """How often this layer had to be mended."""
        return self.generation.apply(lambda generation: int(generation.get(layer, 0)))


class GuestReboot(Act):
    """A guest's restart for a driver that its running kernel can't use. Outputs as of `Outputs`."""

    kind = "nvidia:Reboot"
    ignored = frozenset(("timeout",))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(SystemInputs):
        """`driver`: its version, as the packages' step answers; `timeout` in seconds; `step`: that whole answer;
        `generation`: of the boot (NvidiaSystem)."""

        driver: str
        timeout: int
        step: Any
        generation: str

    @classmethod
    def says_nothing(cls, key: str, new: Any) -> bool:
        """An answer of the packages' step that no reboot is needed is no reason to look."""
        return key == "step" and isinstance(new, str) and scripts.answer(new).get("reboot") != "yes"

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`boot_id`: of the guest, once no reboot is needed any more."""

        boot_id: str

    boot_id: pulumi.Output[str]


class NvidiaVerification(Act):
    """NVIDIA's stack used from inside a system."""

    kind = "nvidia:Check"
    ignored = frozenset(("timeout",))
    answers = frozenset(("done", "started"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(SystemInputs):
        """`facts`: the system's (NvidiaSystem), empty in the state of an earlier version; `done`, `started`: what it is
        done again after, first what the packages' step has answered."""

        facts: SystemFacts = SystemFacts()
        timeout: int
        done: Any
        started: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`result`: as the stack puts it out."""

        result: NvidiaOutput

    if TYPE_CHECKING:
        result: pulumi.Output[NvidiaOutput]
