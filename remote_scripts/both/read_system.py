"""What the layer read_system is asked, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal

#: Container runtime -> the packages that it comes with.
Runtime = Literal["docker", "podman", "k3s"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`passed`: slots of the host's cards that VMs get; `staying`: the same of cards that are with the host's driver
    from its next start on, also where vfio-pci has them now; `released`: so is a card, `passed` left out, that
    homelab.vfio= has bound for this boot; else it doesn't count.
    """

    passed: tuple[str, ...] = ()
    staying: tuple[str, ...] = ()
    released: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """As of homelab.nvidia.request.SystemFacts. `drift`: a step (packages, boot, toolkit, libraries), and a
    thing that isn't as it was left by it, each in a line. `asked`: the digest of what the step `packages` last
    carried out, empty: nothing. `libraries`: the version of NVIDIA's libraries there, whoever installed them, empty:
    none. `agents`: those that stacks keep on a host or a VM, their versions by owner, empty: none is whole.
    """

    boot_id: str
    distribution: str | None
    version: str | None
    kernels: tuple[str, ...]
    running: str
    secure_boot: bool | None
    mok_enrolled: bool | None
    cards: tuple[str, ...]
    nouveau: bool
    loaded: str
    host_driver: str | None
    runtimes: tuple[Runtime, ...]
    steps: tuple[str, ...]
    drift: tuple[tuple[str, str], ...]
    libraries: str = ""
    asked: str = ""
    agents: dict[str, str] = field(default_factory=dict)
