"""A stack of NVIDIA's as a verification is to find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homelab.errors import HomelabError
from homelab.facts.classes import NVIDIA
from homelab.nvidia.plan import cdi
from homelab.nvidia.request import Request
from homelab.shapes import Runtime
from remote_scripts.both.nvidia_packages import Answer
from remote_scripts.both.symptoms import Context, Flavour, Target

# What mends most of what differs.
AGAIN = "run `pulumi up --refresh`: it installs, or makes again, what isn't as it is wanted"


@dataclass(frozen=True)
class Expected:
    """A stack as a verification is to find it; of JSON's types alone, as it goes through a stack's state.

    `driver`: its version; `cards`: vendor:device of each card; None where they aren't known, and any
    will do. `cuda`: a release; None where no compiler is wanted. `flavour`: of the loaded modules; None in a container,
    whose host chose it. `capabilities`: what the driver's libraries are for; `demanded`: those that the settings name:
    a library of another one may be missing. `libraries`: sonames of cuDNN and NCCL; `cdi`: whether an engine's
    containers get the cards by their CDI names. `needs_open`, `secure_boot`, `host_driver`, `kernel`: those of
    `symptoms.Context`.
    """

    name: str = "this system"
    target: Target = "vm"
    driver: str = ""
    cards: Sequence[str] | None = None
    cuda: str | None = None
    runtime: Runtime | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    host_driver: str | None = None
    kernel: str | None = None
    demanded: Sequence[str] = ()
    libraries: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    cdi: bool = False

    @classmethod
    def of(cls, request: Request, installed: Answer) -> Expected:
        """The stack that a request has led to.

        :param installed: what the packages' step has answered.
        """
        system, settings = request.system, request.settings
        beside = request.data.libraries_beside(settings.cudnn, nccl=settings.nccl) if settings.cuda else ()
        return cls(
            name=request.name,
            target=request.target,
            driver=installed.version,
            cards=None if request.devices is None else [f"{NVIDIA}:{device}" for device in request.devices],
            cuda=settings.cuda,
            runtime=settings.container_toolkit,
            flavour=installed.flavour,
            needs_open=request.needs_open,
            secure_boot=system.secure_boot,
            host_driver=system.host_driver or None,
            kernel=system.running,
            demanded=installed.capabilities if settings.capabilities else (),
            libraries=[row.soname for row in beside],
            capabilities=installed.capabilities,
            cdi=cdi(request) != "",
        )

    @property
    def context(self) -> Context:
        """The context for `symptoms`, without the flavour, which is that of the loaded modules."""
        return Context(
            self.name, self.target, None, self.needs_open, self.secure_boot, self.driver, self.host_driver, self.kernel
        )

    def error(self, what: str, found: str, why: str, next: str = AGAIN) -> HomelabError:
        """The error for what isn't as expected, which says the system's name."""
        return HomelabError(wanted=f"{self.name}: {what}", found=found, why=why, next=next)
