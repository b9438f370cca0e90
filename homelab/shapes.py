"""The types of the values in a stack's state and in its outputs, as JSON has them: one for each noun.

They are outputs of resources, inputs of components, and parts of the stack's outputs (homelab/contract.py; the text
below a field there is its meaning for consumers). They are dictionaries, as Pulumi carries no classes;
homelab/resources/work/base.py checks them where they enter and leave the provider.

A card goes from the probe to the outputs as one `Card`, and gains what is known of it on the way: `CardPlan` its
functions, `CardSeen` their drivers after the boot, `GpuOutput` who may have it. A host does so as `BootedHost` and
`HostOutput`. These stay besides, as each is another noun: `OfferedCard` is what a VM's option names, `SharedCard` what
a container opens, `CardInUse` what nvidia-smi shows; `HostPlan` is what a boot is to have, and `DeviceSeen` what a
verification keeps of a function after it.

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

_WithClass = TypedDict("_WithClass", {"class": str})


class CardFunction(_WithClass):
    """A PCI function. `class`: six hexadecimal digits."""

    address: str
    """0000:01:00.0"""
    id: str
    """vendor:device"""
    subsystem: str
    """vendor:device"""
    iommuGroup: NotRequired[int | None]


class FunctionSeen(CardFunction):
    """A PCI function of the booted host. `class`: six hexadecimal digits."""

    driver: str
    """the kernel driver that has it; empty: none"""


@dataclass(frozen=True, kw_only=True)
class ShutdownInputs:
    """How a guest is shut down, an input: `timeout` in seconds; what happens `otherwise` (settings.Shutdown)."""

    timeout: int
    otherwise: Literal["fail", "stop"]


class Card(TypedDict):
    """A card of the settings."""

    slot: str
    """0000:01:00"""
    name: str
    """what the host's pci.ids call it, such as RTX 4090; empty: not known"""
    path: str
    """the card in Proxmox VE's notation: its slot, or its functions where the slot holds others, too"""
    use: Literal["vm", "lxc", "host", "shared"]
    """who it is for"""
    iommuGroup: NotRequired[int | None]
    keep: bool
    """a VM gets it by hostpci's driver=keep: it is handed over, and this Proxmox VE knows that"""


class CardPlan(Card):
    """A card as HostProbe has read it."""

    functions: list[CardFunction]


class CardSeen(Card):
    """A card as it is on the booted host."""

    functions: list[FunctionSeen]


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
    """What the running kernel made of the IOMMU."""

    groups: int
    """how many there are; 0: it is off"""
    kernelLog: list[str]
    """the kernel's lines about it that tell of something wrong; none on a healthy host"""


class BootSeen(TypedDict):
    """A boot of the host. `stopped`: ids of the guests that this program's reboot has stopped; `at`: when, in seconds
    since 1970."""

    id: str
    stopped: list[int]
    at: int


class _Booted(TypedDict):
    """What is known of any verified host."""

    kernel: str
    """the running one, as `uname -r` prints it"""
    bootId: str
    """tells this boot from every other"""
    iommu: IommuSeen


class BootedHost(_Booted):
    """A verified host, before its cards are offered."""

    gpus: dict[str, CardSeen]


class OfferedCard(TypedDict):
    """A card as a VM takes it. `mapping`: the id of its PCI mapping; `slot`: its path; `driver`: only if the settings
    don't decide it."""

    mapping: str
    slot: str
    driver: NotRequired[str]


class BarSeen(TypedDict):
    """A base address register."""

    index: int
    size: int
    """in bytes"""


class TestedFunction(_WithClass):
    """A PCI function as the passthrough test's VM saw it. `class`: six hexadecimal digits."""

    guest: str
    """its address in the VM"""
    address: str
    """its address on the host"""
    id: str
    """vendor:device"""
    bars: list[BarSeen]


class CardTest(TypedDict):
    """A passthrough test: what a VM saw of the card."""

    kernel: str
    """that the VM booted"""
    vmid: NotRequired[int | None]
    """the VM's id, while the test lasted"""
    functions: list[TestedFunction]


class CardInUse(TypedDict):
    """A card as nvidia-smi shows it; null: it doesn't say."""

    name: NotRequired[str | None]
    uuid: NotRequired[str | None]
    memory: NotRequired[str | None]
    """such as `32607 MiB`"""
    address: NotRequired[str | None]
    """on the PCI bus of the system that has the driver"""
    computeCapability: NotRequired[str | None]


class NvidiaOutput(TypedDict):
    """NVIDIA's stack on a system, verified from inside."""

    driver: str
    """the version in use"""
    flavour: NotRequired[Literal["open", "proprietary"] | None]
    """of the kernel modules; null in a container"""
    gpus: list[CardInUse]
    cuda: NotRequired[str | None]
    """nvcc's release; null: not asked for"""
    program: NotRequired[bool | None]
    """a CUDA program was compiled and run; null: not asked for"""
    container: NotRequired[bool | None]
    """a container on the system saw the cards; null: not asked for"""
    uvm: NotRequired[bool | None]
    """an ordinary user can use CUDA; null: not asked for"""
    video: NotRequired[bool | None]
    """the libraries of NVENC and NVDEC load; null: not installed"""
    nvenc: NotRequired[str | None]
    """the newest version of NVENC's interface that its library has"""
    graphics: NotRequired[bool | None]
    """the libraries of EGL, OpenGL and Vulkan load; null: not asked for"""
    cudnn: NotRequired[str | None]
    """the version of cuDNN; null: not asked for"""
    nccl: NotRequired[str | None]
    """the version of NCCL; null: not asked for"""
    cdi: NotRequired[str | None]
    """the driver's version that the CDI specification names; null: containers don't get cards by it"""
    unchecked: list[str]
    """what could not be tried, and why: an image that can't be fetched; the field container is null then"""


class SharedCard(TypedDict):
    """A card of another maker than NVIDIA, as a container gets it. `kinds` of `nodes`: render, card, kfd, in the same
    order; `nodes`: their paths now, none while the card isn't back on its driver."""

    address: str
    kinds: list[str]
    nodes: list[str]


class GpuOutput(CardSeen):
    """A card of a host."""

    mapping: NotRequired[str | None]
    """id of its PCI mapping in Proxmox VE; null where it isn't offered to VMs"""
    hostpci: NotRequired[str | None]
    """a value for a VM's hostpciN option"""
    holder: NotRequired[str | None]
    """the VM of this stack that has it, by its name in `vms`"""
    test: NotRequired[CardTest | None]
    """what the passthrough test's VM saw of it; null: not asked for"""


class HostOutput(_Booted):
    """A verified host."""

    node: str
    """its name in Proxmox VE"""
    gpus: dict[str, GpuOutput]
    nvidia: NotRequired[NvidiaOutput | None]
    """the driver on the host itself; null: not of this stack"""


class _GuestOutput(TypedDict):
    """What is known of any guest."""

    host: str
    """by its name in `hosts`"""
    node: str
    name: str
    """its name in Proxmox VE"""


class VmOutput(_GuestOutput):
    """A VM of this stack."""

    vmid: int
    state: Literal["running", "stopped"]
    """as the last change left it"""
    gpus: list[str]
    """cards, by their names in the host's gpus"""
    address: NotRequired[str | None]
    """where the guest is reached, if it is known"""
    nvidia: NotRequired[NvidiaOutput | None]
    """the driver in the guest; null: not of this stack"""


class ContainerOutput(_GuestOutput):
    """A container of this stack, which shares cards with the host's driver."""

    ctid: int
    state: Literal["running", "stopped", "unknown"]
    """as the last change left it"""
    gpus: list[int]
    """the numbers of its cards of NVIDIA's: N of /dev/nvidiaN"""
    addresses: list[str]
    """where these cards are on the host's PCI bus, such as 0000:01:00.0"""
    cards: dict[str, list[str]]
    """its cards of other makers, by their names in the host's gpus -> their nodes, such as /dev/dri/renderD128"""
    nodes: list[str]
    """devices that were opened in it; none where it was off"""
    method: NotRequired[Literal["device", "mount-entry", "mixed"] | None]
    """how its configuration gives it the devices; null: it has none"""
    nvidia: NotRequired[NvidiaOutput | None]
    """the driver's libraries in it; null: not of this stack"""
