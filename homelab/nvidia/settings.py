"""The settings below `nvidia:` of a VM, of a container, or of a host that keeps its card."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from homelab.fields.model import Model
from homelab.fields.types import InWords, Proxy, Seconds, Sha256, Text, WebAddress, WrittenText, written
from homelab.shapes import Capability, Runtime


def _release(value: Any) -> Any:
    return f"{value}.0" if type(value) is int else written(value)


BranchText = Annotated[
    WrittenText,
    Text(
        "version",
        r"[0-9]{3}(?:\.[0-9]{2,3}(?:\.[0-9]{2})?)?",
        'a branch ("580") or an exact version ("580.105.08"); open or proprietary is `flavour`',
    ),
]
# The major versions that data/facts.yaml has.
Cudnn = Annotated[Literal["9"], InWords("version"), BeforeValidator(written)]
CudaText = Annotated[
    WrittenText,
    Text("version", r"[0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9])?", 'a release ("13.0") or an update of one ("13.0.1")'),
    BeforeValidator(_release),
]


# An exact version, as a key.
DriverText = Annotated[str, Text("version", r"[0-9]{3}(\.[0-9]{2,3}){1,2}", 'an exact version, such as "580.105.08"')]


class Mirror(Model):
    """Copies of NVIDIA's servers. A mirror changes where files come from, not which ones are trusted: a key must have
    the known fingerprint, an installer the known SHA-256."""

    cuda: WebAddress | None = None
    """In place of `https://developer.download.nvidia.com/compute/cuda/repos`."""
    container_toolkit: WebAddress | None = None
    """In place of `https://nvidia.github.io/libnvidia-container`."""
    run: WebAddress | None = None
    """In place of `https://download.nvidia.com/XFree86`."""


class NvidiaTimeouts(Model):
    """How long the steps of NVIDIA's stack may take."""

    lock: Seconds = 600
    """Until another run of apt has finished."""
    download: Seconds = 1800
    """For one file, or for everything that one run of apt downloads."""
    install: Seconds = 3600
    """For one run of apt or of the installer, DKMS's build included, in addition to the downloads."""
    reboot: Seconds = 600
    """Until the system answers again after its reboot."""
    verify: Seconds = 300
    """For the checks at the end."""


class Nvidia(Model):
    """NVIDIA's stack on one system. `nvidia: {}` installs only the recommended driver. What you take out here (CUDA,
    the toolkit) is removed by the next `up`. [What works with what](nvidia.md) has the versions. Without quotes YAML
    reads 12.10 as 12.1."""

    driver: BranchText | None = None
    """A branch (`"580"`), kept at its newest release, or an exact version (`"580.105.08"`). By default the first
    recommended branch that suits the cards and CUDA and that packages bring; in a container the host's version."""
    cuda: CudaText | None = None
    """CUDA's toolkit: a release (`"13.0"`) or one of its updates (`"13.0.1"`). It never brings a driver."""
    cudnn: Cudnn | None = None
    """cuDNN of a major version (`"9"`), with its headers, for the major release of `cuda`, which must be set."""
    nccl: bool = False
    """`true`: NCCL, with its headers, for the major release of `cuda`, which must be set."""
    container_toolkit: Runtime | None = None
    """NVIDIA's container toolkit, set up for this runtime. (Configure containerd alone yourself: `nvidia-ctk runtime
    configure --runtime=containerd`.) `k3s`: the system is a node of a k3s cluster ([how to configure the
    cluster](nvidia-software.md#a-node-of-a-kubernetes-cluster)). To verify it, `up` runs nvidia-smi and loads the
    driver's libraries in a container of a small Ubuntu image with a pinned digest. The image is removed again if it had
    to be fetched; if it can't be fetched, `up` says that this was not checked."""
    flavour: Literal["auto", "open", "proprietary"] = "auto"
    """Which kernel modules. `auto`: the open ones wherever cards and branch allow them; a driver that is there stays as
    it is."""
    source: Literal["auto", "packages", "run"] = "auto"
    """`packages`, or `run` for NVIDIA's own installer. `auto`: packages where the repositories have the version, else
    the installer."""
    capabilities: list[Capability] | None = None
    """What the driver's libraries are for: `[compute, video, graphics]`, or fewer; `compute` is always among them, as
    the others load its library. `video`: NVENC and NVDEC; `graphics`: OpenGL, Vulkan, EGL and NvFBC. By default a newly
    installed driver gets compute and video; one that is there already stays as it is. What you name is added to a
    driver that lacks it, and verified."""
    docker: Literal["as-is", "install"] = "as-is"
    """`install`: install the container runtime, too, if it is missing. Only `pulumi destroy` with `onDestroy: purge`
    removes it; its data (`/var/lib/docker`) stay. k3s has its own installer."""
    allow_minor_version_compatibility: bool = False
    """`true`: accept a driver that is older than the one CUDA came with, but of the same major family."""
    mirror: Mirror = Mirror()
    """Copies to use in place of NVIDIA's servers."""
    run_sha256: dict[DriverText, Sha256] = {}
    """The SHA-256 of a version of NVIDIA's installer, which runs only if its file has it: `{"580.126.09": "…"}`. It
    counts before the [known ones](nvidia.md#nvidias-installer)."""
    proxy: Proxy | None = None
    """A proxy for downloads: `http://HOST:PORT`. If it asks for a password, `http://USER:PASSWORD@HOST:PORT` as an
    encrypted value."""
    timeouts: NvidiaTimeouts = NvidiaTimeouts()
    """How long the steps may take."""
    on_destroy: Literal["keep", "purge"] = "keep"
    """`purge`: `pulumi destroy` removes exactly what was added. `keep`: it stays."""

    @property
    def proxy_address(self) -> str:
        """The proxy, which may have a password; empty: none."""
        return self.proxy.get_secret_value() if self.proxy else ""

    @model_validator(mode="after")
    def _libraries_with_cuda(self) -> Self:
        if self.cuda is None and (self.cudnn is not None or self.nccl):
            raise ValueError(
                f'expected nvidia.cuda, such as "13.0", beside {"cudnn" if self.cudnn else "nccl"}: its packages '
                "are made for one major release "
                "of CUDA each"
            )
        return self
