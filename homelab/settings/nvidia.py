"""What a user writes under `nvidia:`: for a VM, a container, or a host that keeps its card."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, field_validator

from homelab.model import Model, Runtime
from homelab.settings.types import Proxy, Seconds, Sha256, WebAddress, matching, plain

_DRIVER = re.compile(r"[0-9]{3}(?:\.[0-9]{2,3}(?:\.[0-9]{2})?)?")
_CUDA = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9])?")


def _written_as_text(value: Any) -> Any:
    # YAML has read 12.10 as 12.1 and 580.10 as 580.1 before anybody here sees them: what was meant can't be told any more.
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(
            'expected text in quotes, such as "580" or "12.8": YAML reads 12.10 without them as the number 12.1'
        )
    return value


VersionText = Annotated[str, BeforeValidator(_written_as_text), AfterValidator(plain)]


# An exact version, as a key.
DriverText = Annotated[
    str, AfterValidator(matching(r"[0-9]{3}(\.[0-9]{2,3}){1,2}", 'an exact version, such as "580.105.08"'))
]


class Mirror(Model):
    """Copies that stand for NVIDIA's servers. They change the place, never the trust: keys are fetched from there, too, and taken with the
    known fingerprint alone; an installer is run with the known SHA-256 alone.

    ``cuda``: for https://developer.download.nvidia.com/compute/cuda/repos; ``containerToolkit``: for
    https://nvidia.github.io/libnvidia-container; ``run``: for https://download.nvidia.com/XFree86.
    """

    cuda: WebAddress | None = None
    container_toolkit: WebAddress | None = None
    run: WebAddress | None = None


class Timeouts(Model):
    """Seconds. ``lock``: until another apt has finished; ``download``: for one file, or for all that one run of apt fetches;
    ``install``: for one run of apt or the installer besides, DKMS's build included; ``reboot``: until the system answers again; ``verify``: for the checks at the end.
    """

    lock: Seconds = 600
    download: Seconds = 1800
    install: Seconds = 3600
    reboot: Seconds = 600
    verify: Seconds = 300


class Nvidia(Model):
    """NVIDIA's stack on one system.

    ``driver``: a branch ("580") or an exact version ("580.105.08"); in a container the host's, which need not be said; else the
    recommended branch. ``cuda``: a release ("12.8") or one of its updates ("12.8.1"). ``containerToolkit``: for this runtime.
    ``flavour``: of the kernel modules. ``source``: packages, NVIDIA's .run installer, or packages where the version exists.
    ``docker: install``: also install the runtime, if it is missing. ``onDestroy: purge``: remove exactly what was added.
    ``runSha256``: the SHA-256 of NVIDIA's installer for a version; before what is known here.
    ``allowMinorVersionCompatibility``: take a driver that is older than CUDA's own, of the same major family.
    """

    driver: VersionText | None = None
    cuda: VersionText | None = None
    container_toolkit: Runtime | None = None
    flavour: Literal["auto", "open", "proprietary"] = "auto"
    source: Literal["auto", "packages", "run"] = "auto"
    docker: Literal["as-is", "install"] = "as-is"
    allow_minor_version_compatibility: bool = False
    mirror: Mirror = Mirror()
    run_sha256: dict[DriverText, Sha256] = {}
    proxy: Proxy | None = None
    timeouts: Timeouts = Timeouts()
    on_destroy: Literal["keep", "purge"] = "keep"

    @field_validator("driver")
    @classmethod
    def _branch_or_version(cls, value: str | None) -> str | None:
        if value is None or _DRIVER.fullmatch(value):
            return value
        if re.fullmatch(r"\d{3}\S*-(open|server)\S*", value):
            raise ValueError('expected a branch ("580") or a version ("580.105.08"); open or proprietary is `flavour`')
        if value.endswith("+") or value.startswith(">"):
            raise ValueError('expected one branch ("580") or version ("580.105.08"), which is then kept; no range')
        raise ValueError('expected a branch ("580") or an exact version ("580.105.08")')

    @field_validator("cuda")
    @classmethod
    def _release(cls, value: str | None) -> str | None:
        if value is not None and not _CUDA.fullmatch(value):
            raise ValueError('expected a release ("12.8") or an update of one ("12.8.1")')
        return value
