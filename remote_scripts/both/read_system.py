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


@dataclass(frozen=True)
class SystemFacts:
    """A system's facts, which its stack is planned from; None for each that wasn't read yet.

    `kernels`: installed ones, as `uname -r` prints them; `running`: the running one. `cards`: vendor:device of the
    graphics cards. `host_driver`: in a container, the version of the host's loaded driver, empty where none is loaded.
    `loaded`: the version of the loaded nvidia module, empty where none is; `nouveau`: whether nouveau has the card.
    `runtimes`: installed ones. `mok_enrolled`: whether Secure Boot accepts DKMS's key.
    """

    distribution: str | None = None
    version: str | None = None
    kernels: tuple[str, ...] | None = None
    running: str | None = None
    secure_boot: bool | None = None
    mok_enrolled: bool | None = None
    cards: tuple[str, ...] | None = None
    host_driver: str | None = None
    loaded: str | None = None
    nouveau: bool | None = None
    runtimes: tuple[Runtime, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Answer(SystemFacts):
    """`boot_id`: of the system's kernel, in a container of the host's; `steps`: those that were applied there; `drift`:
    a step (packages, boot, toolkit, libraries), and a thing that isn't as it was left by it, each in a line. `asked`:
    the digest of what the step `packages` last carried out, empty: nothing. `libraries`: the version of NVIDIA's
    libraries there, whoever installed them, empty: none. `agents`: those that stacks keep on a host or a VM, their
    versions by owner, empty: none is whole.
    """

    boot_id: str
    steps: tuple[str, ...]
    drift: tuple[tuple[str, str], ...]
    libraries: str = ""
    asked: str = ""
    agents: dict[str, str] = field(default_factory=dict)
