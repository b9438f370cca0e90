"""The compatibility data of data/*.yaml as types, and the questions that it answers.

Every row has its source and how sure it is (`evidence`). A card, version or kernel without a row is unknown, which is
not the same as impossible.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from homelab import tables
from homelab.nvidia.versions import Range, Version, parse
from homelab.shapes import Capability, Runtime

# NVIDIA begins a branch, or a release of CUDA, some four times a year.
_DAYS_UNTIL_OLD = 90

FOLDER = Path(__file__).resolve().parent / "data"
#: NVIDIA's PCI vendor id.
VENDOR = "10de"

Evidence = Literal["primary", "report", "unconfirmed"]
Flavour = Literal["open", "proprietary"]
Target = Literal["vm", "host", "lxc"]


def _version(value: Any) -> Any:
    return parse(value) if isinstance(value, str) else value


def _range(value: Any) -> Any:
    if not isinstance(value, dict) or set(value) - {"from", "before"} or not value:
        raise ValueError("expected `from` and `before`, or one of them")
    return Range(*(parse(value[key]) if key in value else None for key in ("from", "before")))


def _blocks(value: Any) -> Any:
    if not isinstance(value, list) or not all(re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}", str(part)) for part in value):
        raise ValueError("expected a list of blocks such as 2b80-2bff")
    return tuple((int(part[:4], 16), int(part[5:], 16)) for part in value)


DataVersion = Annotated[Version, BeforeValidator(_version)]
DataRange = Annotated[Range, BeforeValidator(_range)]
Blocks = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_blocks)]
DeviceId = Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9A-F]{40}$")]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _CompatibilityRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_kebab, arbitrary_types_allowed=True)


class _SourcedRow(_CompatibilityRow):
    source: Annotated[str, Field(min_length=10)]
    evidence: Evidence


class Generation(_SourcedRow):
    """Cards of one architecture. `ranges`: their device ids, both ends included; `least`: the first driver that knows
    any; `last_branch`: the last that knows them; `first_cuda`, `last_cuda`: the releases that build for them."""

    name: str
    ranges: Blocks
    least: DataVersion
    last_branch: int | None = None
    flavours: tuple[Flavour, ...]
    first_cuda: DataVersion | None = None
    last_cuda: DataVersion | None = None

    def has(self, device: str) -> bool:
        """Whether a device id (four hexadecimal digits) is of this generation."""
        return any(first <= int(device, 16) <= last for first, last in self.ranges)

    def outlived_by(self, branch: int) -> bool:
        """Whether a branch no longer knows these cards."""
        return self.last_branch is not None and branch > self.last_branch


class Branch(_SourcedRow):
    """A branch of the driver. `ends`: the month (YYYY-MM) after which there are no fixes."""

    branch: int
    kind: Literal["LTSB", "PB", "NFB", "legacy"]
    newest: DataVersion | None = None
    ends: Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")] | None = None
    flavours: tuple[Flavour, ...]

    def ended(self, today: datetime.date) -> bool:
        """Whether its last month with fixes is over."""
        return self.ends is not None and today.isoformat()[:7] > self.ends


class Cuda(_SourcedRow):
    """A release of CUDA. `least`: the driver that it came with."""

    release: DataVersion
    least: DataVersion


class CudaMajor(_SourcedRow):
    """A major family of CUDA. `least`: the driver from which all of it runs, with limits."""

    major: int
    least: DataVersion


class CudaLibrary(_SourcedRow):
    """A library beside CUDA's toolkit. `cuda`: the major releases that it is made for; `packages`: their names, with
    `{major}`; `at`: the pattern of their version, where the names don't contain CUDA's."""

    name: Literal["cudnn", "nccl"]
    version: str
    cuda: tuple[int, ...]
    packages: tuple[str, ...]
    at: str | None = None
    soname: str

    def packages_for(self, major: int) -> tuple[str, ...]:
        """NAME or NAME=PATTERN of its packages for a major release of CUDA."""
        suffix = f"={self.at.format(major=major)}" if self.at else ""
        return tuple(f"{name.format(major=major)}{suffix}" for name in self.packages)


class Key(_CompatibilityRow):
    """A repository's key. `file`: its name in the repository's folder; `fingerprint`: of its primary key."""

    file: str
    fingerprint: Fingerprint


class NewerKernels(_CompatibilityRow):
    """Kernels of a newer version than `than`; `headers_follow`: the package that follows their updates."""

    than: DataVersion
    headers_follow: str


class Distribution(_SourcedRow):
    """A distribution, by os-release's ID and VERSION_ID. `path`: of its CUDA repository, below the base; `runtimes`:
    packages of container runtimes that have another name than elsewhere; `podman`: the version that it has;
    `drivers`: the branches that its repositories have, NVIDIA's and its own; `first_cuda`: the oldest release that is
    in NVIDIA's; `libraries`: the major releases of CUDA that a library beside it is there for. What isn't given isn't
    known, and counts as there."""

    id: Literal["ubuntu", "debian"]
    version: str
    targets: tuple[Target, ...]
    path: str
    key: Key
    podman: DataVersion
    headers: str
    headers_follow: str
    newer_kernels: NewerKernels | None = None
    drivers: tuple[DataRange, ...] | None = None
    first_cuda: DataVersion | None = None
    libraries: dict[Literal["cudnn", "nccl"], tuple[int, ...]] = {}


class Headers(_SourcedRow):
    """Names of a kernel's header packages. `headers`: of one kernel; `headers_follow`: of all kernel updates."""

    headers: str
    headers_follow: str


class Names(_SourcedRow):
    """Names of the driver's packages, from branch `start` (included) to `before` (not included)."""

    distribution: Literal["ubuntu", "debian"]
    start: Annotated[int, Field(alias="from")] = 0
    before: int = 10_000
    open: tuple[str, ...]
    proprietary: tuple[str, ...]
    userspace: tuple[str, ...]
    video: tuple[str, ...]
    graphics: tuple[str, ...]

    def packages_for(self, capabilities: Iterable[Capability], branch: int) -> tuple[str, ...]:
        """The packages of capabilities beyond computing, for a branch."""
        lists = {"video": self.video, "graphics": self.graphics}
        return tuple(name.format(branch=branch) for capability in capabilities for name in lists.get(capability, ()))


class CapabilityRow(_SourcedRow):
    """The libraries of a capability, by their sonames; `bare`: those that need no others than the driver's own."""

    capability: Capability
    libraries: tuple[str, ...]
    bare: tuple[str, ...]


class Toolkit(_SourcedRow):
    """The container toolkit's repository and packages. `groups_since`: the version from which its CDI specifications
    name groups; `without_groups`: its generator's options that keep them out; `podman_reads_groups`: the first podman
    that reads such specifications; `runtimes`: the distributions' package of
    each runtime, empty where it has its own installer; `image`: to try a runtime with."""

    path: str
    key: Key
    packages: tuple[str, ...]
    groups_since: DataVersion
    without_groups: tuple[str, ...]
    podman_reads_groups: DataVersion
    runtimes: dict[Runtime, str]
    image: str


class Installer(_SourcedRow):
    """One release of NVIDIA's own installer, and the SHA-256 that its file must have."""

    version: DataVersion
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _DataFile(_CompatibilityRow):
    """A file of the data. `as_of`: the day on which it was last compared with its sources."""

    as_of: datetime.date | None = None


class _Installers(_DataFile):
    installers: tuple[Installer, ...]


class Runfile(_SourcedRow):
    """NVIDIA's own installer: addresses below the base, and its options."""

    url: str
    checksum: str
    module_type_since: DataVersion
    prerequisites: tuple[str, ...]
    no_graphics: str
    graphics_prerequisites: tuple[str, ...]
    driver: tuple[str, ...]
    userspace: tuple[str, ...]


class _Gpus(_DataFile):
    generations: tuple[Generation, ...]

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        blocks = sorted((block, generation.name) for generation in self.generations for block in generation.ranges)
        for (block, name), (next_block, next_name) in zip(blocks, blocks[1:], strict=False):
            if block[1] >= next_block[0]:
                raise ValueError(f"{name} and {next_name} share the ids {next_block[0]:04x} to {block[1]:04x}")
        return self


class _Branches(_DataFile):
    recommended: tuple[int, ...]
    branches: tuple[Branch, ...]


class _CudaData(_DataFile):
    releases: tuple[Cuda, ...]
    majors: tuple[CudaMajor, ...]
    libraries: tuple[CudaLibrary, ...]
    package: str
    prefix: str
    source: str
    room: int

    def nvcc(self, release: Version) -> str:
        """The path of a release's compiler."""
        return f"{self.prefix.format(major=release.numbers[0], minor=release.numbers[1])}/bin/nvcc"


class Bases(_CompatibilityRow):
    """Base addresses of the repositories; a mirror replaces one."""

    cuda: str
    container_toolkit: str
    run: str


class _Distributions(_DataFile):
    repositories: Bases
    distributions: tuple[Distribution, ...]
    proxmox: Headers
    names: tuple[Names, ...]
    capabilities: tuple[CapabilityRow, ...]
    pinned: tuple[str, ...]
    unattended: tuple[str, ...]
    prerequisites: tuple[str, ...]
    build: tuple[str, ...]
    room: int
    toolkit: Toolkit
    runfile: Runfile


class Compatibility:
    """All of the data, and its look-ups."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.gpus = _Gpus.model_validate(tables.read(folder / "gpus.yaml"))
        self.cuda = _CudaData.model_validate(tables.read(folder / "cuda.yaml"))
        self.packaging = _Distributions.model_validate(tables.read(folder / "distributions.yaml"))
        branches = _Branches.model_validate(tables.read(folder / "branches.yaml"))
        self.branches = {row.branch: row for row in branches.branches}
        #: In the order in which one is chosen, and the first of them.
        self.in_order = branches.recommended
        self.recommended = branches.recommended[0]
        installers = _Installers.model_validate(tables.read(folder / "installers.yaml"))
        self.installers = {str(row.version): row for row in installers.installers}
        files: tuple[_DataFile, ...] = (self.gpus, self.cuda, self.packaging, branches, installers)
        #: The day on which the data was last compared with its sources: the earliest of its files'.
        self.as_of = min((file.as_of for file in files if file.as_of), default=None)

    def generation(self, device: str) -> Generation | None:
        """The generation of a device id (four hexadecimal digits); None for one that no block has."""
        return next((generation for generation in self.gpus.generations if generation.has(device)), None)

    @property
    def newest_branch(self) -> int:
        """The newest branch of the data."""
        return max(self.branches)

    def known_releases(self, today: datetime.date) -> str:
        """The newest branch of the data, and its age, in a sentence for a person."""
        days = (today - self.as_of).days if self.as_of else _DAYS_UNTIL_OLD + 1
        text = (
            f"NVIDIA's drivers as this program knows them: the newest branch is {self.newest_branch}, "
            f"{self.recommended} is recommended; that is of {self.as_of}, {days} days old"
        )
        return text if days <= _DAYS_UNTIL_OLD else f"{text}: there may be newer ones; update this program"

    def cuda_release(self, release: Version) -> Cuda | None:
        """The row of a CUDA release; 12.8.1 is of 12.8."""
        return next((row for row in self.cuda.releases if row.release.numbers == release.numbers[:2]), None)

    def cuda_package(self, release: Version) -> str:
        """The package of a release's toolkit; 12.8.1 is of cuda-toolkit-12-8."""
        return self.cuda.package.format(major=release.numbers[0], minor=release.numbers[1])

    @property
    def cuda_packages(self) -> tuple[str, ...]:
        """The toolkit packages of all releases of the data."""
        return tuple(self.cuda_package(row.release) for row in self.cuda.releases)

    def cuda_major(self, major: int) -> CudaMajor | None:
        """The row of a major family of CUDA; None where the data has none."""
        return next((row for row in self.cuda.majors if row.major == major), None)

    def cuda_libraries(self, cudnn: str | None, *, nccl: bool) -> tuple[CudaLibrary, ...]:
        """The rows of the wanted cuDNN (by its major version) and NCCL; without one for a cuDNN that isn't known."""
        wanted = {"cudnn": cudnn, "nccl": "2" if nccl else None}
        return tuple(row for row in self.cuda.libraries if wanted[row.name] == row.version)

    def distribution(self, id_: str, version: str) -> Distribution | None:
        """A distribution by os-release's ID and VERSION_ID."""
        return next((row for row in self.packaging.distributions if (row.id, row.version) == (id_, version)), None)

    def libraries(self, capabilities: Iterable[str], *, bare: bool = False) -> tuple[str, ...]:
        """The sonames of capabilities.

        :param bare: those that need no others than the driver's own.
        """
        rows = [row for row in self.packaging.capabilities if row.capability in capabilities]
        return tuple(name for row in rows for name in (row.bare if bare else row.libraries))

    def names(self, distribution: str, branch: int) -> Names | None:
        """The names of the driver's packages; None where they aren't known."""
        rows = self.packaging.names
        return next(
            (row for row in rows if row.distribution == distribution and row.start <= branch < row.before), None
        )


@functools.cache
def load() -> Compatibility:
    """The data of this program; read once."""
    return Compatibility()
