"""The compatibility data: read from data/*.yaml, checked, and asked.

Every row has its source and how sure it is (`evidence`). What no row speaks of is unknown, which is not the same as
impossible.
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
from homelab.nvidia.versions import Range, Version, of_kernel, parse
from homelab.shapes import Capability, Runtime

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


class _Sourced(_CompatibilityRow):
    source: Annotated[str, Field(min_length=10)]
    evidence: Evidence


class Generation(_Sourced):
    """Cards of one architecture. `least`: the first driver that knows any; `last_branch`: the last that knows them;
    CUDA likewise."""

    name: str
    ranges: Blocks
    least: DataVersion
    last_branch: int | None = None
    flavours: tuple[Flavour, ...]
    first_cuda: DataVersion | None = None
    last_cuda: DataVersion | None = None

    def has(self, device: str) -> bool:
        """Whether a device id (four hexadecimal digits) is of it."""
        return any(first <= int(device, 16) <= last for first, last in self.ranges)

    def outlived_by(self, branch: int) -> bool:
        """Whether a branch no longer knows these cards."""
        return self.last_branch is not None and branch > self.last_branch


class DeviceRow(_Sourced):
    """Cards that came after their generation's first driver: `absent` lacks them, `listed` has them; between, nobody
    looked."""

    cards: dict[DeviceId, str]
    absent: DataVersion
    listed: DataVersion


class FunctionRow(_Sourced):
    """What else a card shows on the bus."""

    kind: str
    ids: tuple[DeviceId, ...]


class Branch(_Sourced):
    """A branch of the driver. `ends`: the month (YYYY-MM) after which there are no fixes."""

    branch: int
    kind: Literal["LTSB", "PB", "NFB", "legacy"]
    newest: DataVersion | None = None
    ends: Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")] | None = None
    flavours: tuple[Flavour, ...]

    def ended(self, today: datetime.date) -> bool:
        """Whether its end of life is over."""
        return self.ends is not None and today.isoformat()[:7] > self.ends


ThirdDigit = Annotated[str, Field(pattern=r"^\d$")]


class Cuda(_Sourced):
    """A release of CUDA. `least`: for each third digit of its version, the driver that it came with; which digit is the
    first release is the data's, as it counts updates only up to 13.3. `faults`: what is known to be wrong with one."""

    release: DataVersion
    least: dict[ThirdDigit, DataVersion]
    faults: dict[ThirdDigit, str] = {}

    @property
    def first(self) -> str:
        """The third digit of its first release."""
        return min(self.least)

    def came_with(self, version: Version) -> Version:
        """The driver that a version came with: of the release alone (13.4) its first one's, of a digit later than those
        known the newest's."""
        digit = str(version.numbers[2]) if len(version.numbers) > 2 else self.first
        return self.least.get(digit) or max(self.least.values())


class CudaMajor(_Sourced):
    """A major family of CUDA. `least`: the driver from which all of it runs, with limits."""

    major: int
    least: DataVersion


class CudaLibrary(_Sourced):
    """A library beside CUDA's toolkit: its packages for each major release of CUDA; `at`: their version's pattern,
    where the names don't say it."""

    name: Literal["cudnn", "nccl"]
    version: str
    cuda: tuple[int, ...]
    packages: tuple[str, ...]
    at: str | None = None
    soname: str

    def wanted(self, major: int) -> tuple[str, ...]:
        """NAME or NAME=PATTERN of its packages for a major release of CUDA."""
        at = f"={self.at.format(major=major)}" if self.at else ""
        return tuple(f"{name.format(major=major)}{at}" for name in self.packages)


class KernelRow(_Sourced):
    """Whether a driver's modules build for a kernel."""

    kernel: DataRange
    driver: DataRange
    verdict: Literal["builds", "fails"]


class Key(_CompatibilityRow):
    """A repository's key: a file beside it, and the fingerprint of its primary key."""

    file: str
    fingerprint: Fingerprint


class NewerKernels(_CompatibilityRow):
    """Kernels of later versions than a release's own, and what follows their updates."""

    than: DataVersion
    headers_follow: str


class Distribution(_Sourced):
    """A distribution, by os-release's ID and VERSION_ID. `path`: of its CUDA repository, below the base; `runtimes`:
    packages of container runtimes that have another name than elsewhere; `podman`: the version that it has;
    `first_cuda`: the oldest release that is in that repository, None where that isn't known."""

    id: Literal["ubuntu", "debian"]
    version: str
    targets: tuple[Target, ...]
    path: str
    key: Key
    podman: DataVersion
    headers: str
    headers_follow: str
    newer_kernels: NewerKernels | None = None
    runtimes: dict[Runtime, str] = {}
    first_cuda: DataVersion | None = None


class Headers(_Sourced):
    """Names of a kernel's header packages: of one kernel, and of what follows every kernel update."""

    headers: str
    headers_follow: str


class Names(_Sourced):
    """What the driver's packages are called, from one branch (included) to another (not included)."""

    distribution: Literal["ubuntu", "debian"]
    start: Annotated[int, Field(alias="from")] = 0
    before: int = 10_000
    open: tuple[str, ...]
    proprietary: tuple[str, ...]
    userspace: tuple[str, ...]
    video: tuple[str, ...]
    graphics: tuple[str, ...]

    def beside(self, capabilities: Iterable[Capability], branch: int) -> tuple[str, ...]:
        """The packages of capabilities beyond computing, for a branch."""
        lists = {"video": self.video, "graphics": self.graphics}
        return tuple(name.format(branch=branch) for one in capabilities for name in lists.get(one, ()))


class CapabilityRow(_Sourced):
    """The libraries of a capability, by their sonames; `bare`: those that need no others than the driver's own."""

    capability: Capability
    libraries: tuple[str, ...]
    bare: tuple[str, ...]


class PodmanNeeds(_CompatibilityRow):
    """The first version of podman that knows CDI, and the first that reads specifications which name groups."""

    cdi: DataVersion
    groups: DataVersion


class Toolkit(_Sourced):
    """The container toolkit's repository, for each runtime the distribution's package of it, and an image to try them
    with.

    `groups_since`: from there on its CDI specifications name groups, without the options `without_groups`.
    """

    path: str
    key: Key
    packages: tuple[str, ...]
    groups_since: DataVersion
    without_groups: tuple[str, ...]
    podman: PodmanNeeds
    runtimes: dict[Runtime, str]
    image: str


class Installer(_Sourced):
    """One release of NVIDIA's own installer, and the SHA-256 without which it isn't run."""

    version: DataVersion
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _DataFile(_CompatibilityRow):
    """A file of the data. `as_of`: the day on which it was last held against its sources."""

    as_of: datetime.date | None = None


class _Installers(_DataFile):
    installers: tuple[Installer, ...]


class Runfile(_Sourced):
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
    devices: tuple[DeviceRow, ...]
    functions: tuple[FunctionRow, ...]

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        blocks = sorted((block, one.name) for one in self.generations for block in one.ranges)
        for (block, name), (after, other) in zip(blocks, blocks[1:], strict=False):
            if block[1] >= after[0]:
                raise ValueError(f"{name} and {other} share the ids {after[0]:04x} to {block[1]:04x}")
        cards = [id_ for row in self.devices for id_ in row.cards]
        for ids in (cards, [id_ for row in self.functions for id_ in row.ids]):
            if twice := {id_ for id_ in ids if ids.count(id_) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))}: twice")
        return self


class _Branches(_DataFile):
    recommended: int
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


class _Kernels(_DataFile):
    rows: tuple[KernelRow, ...]


class Bases(_CompatibilityRow):
    """Where repositories begin; what a mirror stands for."""

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
    """All of the data, and the questions that it answers."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.gpus = _Gpus.model_validate(tables.read(folder / "gpus.yaml"))
        self.cuda = _CudaData.model_validate(tables.read(folder / "cuda.yaml"))
        kernels = _Kernels.model_validate(tables.read(folder / "kernels.yaml"))
        self.kernels = kernels.rows
        self.packaging = _Distributions.model_validate(tables.read(folder / "distributions.yaml"))
        branches = _Branches.model_validate(tables.read(folder / "branches.yaml"))
        self.branches = {row.branch: row for row in branches.branches}
        self.recommended = branches.recommended
        installers = _Installers.model_validate(tables.read(folder / "installers.yaml"))
        self.installers = {str(row.version): row for row in installers.installers}
        files: tuple[_DataFile, ...] = (self.gpus, self.cuda, kernels, self.packaging, branches, installers)
        #: The day on which the data was last held against its sources: that of the file that has waited longest.
        self.as_of = min((one.as_of for one in files if one.as_of), default=None)

    def generation(self, device: str) -> Generation | None:
        """The generation of a device id (four hexadecimal digits); None for one that no block has."""
        return next((one for one in self.gpus.generations if one.has(device)), None)

    def device(self, device: str) -> DeviceRow | None:
        """What is known of this very device id, beyond its generation."""
        return next((row for row in self.gpus.devices if device in row.cards), None)

    def function(self, device: str) -> FunctionRow | None:
        """What a device id is that is no card's first function."""
        return next((row for row in self.gpus.functions if device in row.ids), None)

    @property
    def newest_branch(self) -> int:
        """The newest branch that is known here."""
        return max(self.branches)

    def is_proved(self, branch: int) -> bool:
        """Whether any kernel is known for which a release of the branch builds."""
        builds = (row.driver.start for row in self.kernels if row.verdict == "builds")
        return any(start is not None and start.major == branch for start in builds)

    def kernel_verdict(self, kernel: str, driver: Version) -> KernelRow | None:
        """The row that speaks of this pair; one that says `fails` before one that says `builds`; None where none does.

        :param kernel: a release as `uname -r` prints it.
        """
        version = of_kernel(kernel)
        rows = [row for row in self.kernels if version and version in row.kernel and driver in row.driver]
        return min(rows, key=lambda row: row.verdict != "fails", default=None)

    def cuda_release(self, release: Version) -> Cuda | None:
        """The row of a CUDA release; 12.8.1 is of 12.8. None for what came before its first release, such as the
        preview 13.4.0."""
        row = next((row for row in self.cuda.releases if row.release.numbers == release.numbers[:2]), None)
        return None if row and release.numbers[2:] and str(release.numbers[2]) < row.first else row

    def cuda_package(self, release: Version) -> str:
        """The package of a release's toolkit; 12.8.1 is of cuda-toolkit-12-8."""
        return self.cuda.package.format(major=release.numbers[0], minor=release.numbers[1])

    @property
    def cuda_packages(self) -> tuple[str, ...]:
        """Those of all the releases that are known."""
        return tuple(self.cuda_package(row.release) for row in self.cuda.releases)

    def cuda_major(self, major: int) -> CudaMajor | None:
        """The floor of a major family."""
        return next((row for row in self.cuda.majors if row.major == major), None)

    def cuda_libraries(self, cudnn: str | None, *, nccl: bool) -> tuple[CudaLibrary, ...]:
        """The rows of what is wanted beside CUDA; none for a cuDNN that isn't known."""
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
        """What the driver's packages are called; None where that isn't known."""
        rows = self.packaging.names
        return next((r for r in rows if r.distribution == distribution and r.start <= branch < r.before), None)


@functools.cache
def load() -> Compatibility:
    """The data of this program; read once."""
    return Compatibility()
