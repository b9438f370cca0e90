"""The types of the values in a stack's state, as JSON has them.

They are outputs of resources, inputs of components, and homelab/contract.py makes the stack's outputs of them. They are
dictionaries, as Pulumi carries no classes; homelab/resources/work/base.py checks them where they enter and leave the
provider.

A key whose value may be null may also be missing: Pulumi's SDK drops nulls on the way. So read such a key by `get`.
This module doesn't import pydantic: a run without a change, which imports it in the provider, would take longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NotRequired

from typing_extensions import TypedDict

#: The layers of a host that a reboot is about; homelab/host/plan.py (`drift`) has all of them.
BOOT_LAYERS = ("iommu", "vfio", "boot")
#: The program that runs containers on a system.
Runtime = Literal["docker", "podman", "k3s"]
#: A use of the driver's libraries, by the container toolkit's names.
Capability = Literal["compute", "video", "graphics"]
CardUse = Literal["video", "compute"]

#: A PCI function: `address` 0000:01:00.0, `id` and `subsystem` vendor:device, `class` six hexadecimal digits; of the
#: booted host also its driver and group.
CardFunction = TypedDict(
    "CardFunction",
    {
        "address": str,
        "id": str,
        "subsystem": str,
        "class": str,
        "driver": NotRequired[str],
        "iommuGroup": NotRequired[int | None],
    },
)


@dataclass(frozen=True, kw_only=True)
class ShutdownInputs:
    """How a guest is shut down, an input: `timeout` in seconds; what happens `otherwise` (settings.Shutdown)."""

    timeout: int
    otherwise: Literal["fail", "stop"]


class CardPlan(TypedDict):
    """A card of the settings, as HostProbe has read it, or as it is on the booted host.

    `name`: its model, such as RTX 5090, empty if unknown; `path`: its slot, or its functions if other functions are in
    the slot; `keep`: whether it is handed over, and this Proxmox VE knows hostpci's driver=keep.
    """

    name: str
    slot: str
    path: str
    use: Literal["vm", "lxc", "host", "shared"]
    iommuGroup: NotRequired[int | None]
    keep: bool
    functions: list[CardFunction]


@dataclass(frozen=True)
class HostPlan:
    """The plan of a host.

    `iommu_words`/`vfio_words`: words of the kernel command line, separated by spaces. `functions`: PCI address ->
    vendor:device of every function that must be on vfio-pci; `by_hand`: addresses of those that other configuration
    than this program's puts there. `gpus`: name -> slot, use, group, and the functions that the use
    needs.
    """

    iommu_words: str
    vfio_words: str
    functions: dict[str, str]
    by_hand: list[str]
    gpus: dict[str, CardPlan] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return " ".join(f"{self.iommu_words} {self.vfio_words}".split())

    @property
    def binds(self) -> bool:
        """Whether this program binds a function, or takes one from other configuration."""
        return bool(self.vfio_words)


class DeviceSeen(TypedDict):
    """A PCI function of the booted host. `driver`: empty without one."""

    id: str
    driver: str
    iommuGroup: NotRequired[int | None]


class IommuSeen(TypedDict):
    """The IOMMU of the booted host. `groups`: their number; `kernelLog`: the kernel's lines about faults."""

    groups: int
    kernelLog: list[str]


class BootSeen(TypedDict):
    """A boot of the host. `stopped`: ids of the guests that this program's reboot has stopped; `at`: when, in seconds
    since 1970."""

    id: str
    stopped: list[int]
    at: int


class BootedHost(TypedDict):
    """A verified host."""

    kernel: str
    bootId: str
    iommu: IommuSeen
    gpus: dict[str, CardPlan]


class OfferedCard(TypedDict):
    """A card as a VM takes it. `mapping`: the id of its PCI mapping; `slot`: its path; `driver`: only if the settings
    don't decide it."""

    mapping: str
    slot: str
    driver: NotRequired[str]


class BarSeen(TypedDict):
    """A base address register. `size` in bytes."""

    index: int
    size: int


#: A function as the passthrough test's VM saw it; `guest`, `address`: on the VM's bus and on the host's.
FunctionSeen = TypedDict("FunctionSeen", {"guest": str, "address": str, "id": str, "class": str, "bars": list[BarSeen]})


class PassthroughSeen(TypedDict):
    """What the passthrough test's VM, `vmid`, saw under the kernel that it booted."""

    kernel: str
    vmid: int
    functions: list[FunctionSeen]


class SystemState(TypedDict):
    """What of a system decides which packages its NVIDIA stack is (fields as of `nvidia.request.SystemFacts`), without
    what the steps change, and what a verification's errors depend on."""

    distribution: NotRequired[str | None]
    version: NotRequired[str | None]
    kernels: list[str]
    running: NotRequired[str | None]
    secure_boot: NotRequired[bool | None]
    cards: list[str]
    host_driver: NotRequired[str | None]


class CardInUse(TypedDict):
    """A card as nvidia-smi shows it; None: nvidia-smi doesn't show that."""

    name: NotRequired[str | None]
    uuid: NotRequired[str | None]
    memory: NotRequired[str | None]
    address: NotRequired[str | None]
    computeCapability: NotRequired[str | None]


class StackInUse(TypedDict):
    """NVIDIA's stack as its verification has seen it; None: not asked for, or unknown."""

    driver: NotRequired[str | None]
    flavour: NotRequired[str | None]
    gpus: list[CardInUse]
    cuda: NotRequired[str | None]
    program: NotRequired[bool | None]
    container: NotRequired[bool | None]
    uvm: NotRequired[bool | None]
    video: NotRequired[bool | None]
    nvenc: NotRequired[str | None]
    graphics: NotRequired[bool | None]
    cudnn: NotRequired[str | None]
    nccl: NotRequired[str | None]
    cdi: NotRequired[str | None]
    unchecked: list[str]


class _GuestSeen(TypedDict):
    """A guest as its last change left it."""

    host: str
    node: str
    name: str
    state: str


class VmSeen(_GuestSeen):
    """A VM as its last change left it. `gpus`: its cards, by their names in the settings; `address`: None if it isn't
    known."""

    vmid: int
    gpus: list[str]
    address: NotRequired[str | None]


class SharedCard(TypedDict):
    """A card of another maker than NVIDIA, as a container gets it. `kinds` of `nodes`: render, card, kfd, in the same
    order; `nodes`: their paths now, none while the card isn't back on its driver."""

    address: str
    kinds: list[str]
    nodes: list[str]


class ContainerSeen(_GuestSeen):
    """A container as its last change left it. `gpus`: numbers of /dev/nvidiaN; `addresses`: of these cards, on the
    host's PCI bus; `cards`: those of other makers, by their names in the settings -> their nodes; `nodes`: devices that
    were opened in it."""

    ctid: int
    gpus: list[int]
    addresses: list[str]
    cards: dict[str, list[str]]
    nodes: list[str]
    method: NotRequired[Literal["device", "mount-entry", "mixed"] | None]
