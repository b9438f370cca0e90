"""The facts of data/facts.yaml as types, and the questions that they answer.

Each has its source beside it. A card or a release that isn't there is unknown, which is not the same as impossible;
what a repository has is asked of apt.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from homelab import tables
from homelab.nvidia.versions import Version, parse, reaches
from homelab.shapes import Capability, Runtime
from remote_scripts.both.symptoms import Flavour as Flavour
from remote_scripts.both.symptoms import Target as Target

# NVIDIA begins a branch, or a release of CUDA, some four times a year.
_DAYS_UNTIL_OLD = 90

FILE = Path(__file__).resolve().parent / "data" / "facts.yaml"


DataVersion = Annotated[Version, BeforeValidator(parse)]
OpenVersion = Annotated[Version | None, BeforeValidator(lambda text: parse(text) if text else None)]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_kebab, arbitrary_types_allowed=True)


class Generation(_Row):
    """Cards of one architecture. `modules`: the flavours that they work with; `first`: the first driver that knows any;
    `last`: the last branch that knows them; `cuda`: the first and the last release that builds for them; `ranges`:
    blocks of their device ids, both ends included."""

    name: str = "unknown"
    modules: Literal["open", "proprietary", "both"] = "open"
    first: DataVersion = parse("0")
    last: int = 10_000
    cuda: tuple[OpenVersion, OpenVersion] = (None, None)
    ranges: tuple[str, ...] = ()

    def known_to(self, driver: Version) -> bool:
        """Whether a driver knows them: it isn't too old, and hasn't dropped them."""
        return reaches(driver, self.first) and driver.major <= self.last


class CudaLibrary(_Row):
    """A library beside CUDA's toolkit. `packages`: NAME or NAME=PATTERN, with `{major}` of CUDA."""

    name: Literal["cudnn", "nccl"]
    version: str
    packages: tuple[str, ...]
    soname: str


class Key(_Row):
    """A repository's key. `file`: its name in the repository's folder; `fingerprint`: of its primary key."""

    file: str
    fingerprint: str


class Distribution(_Row):
    """A distribution, by os-release's ID and VERSION_ID. `kernel`: the release's own, after which come hardware
    enablement kernels; `key`: of NVIDIA's repository for it."""

    id: Literal["ubuntu", "debian"]
    version: str
    targets: tuple[Target, ...]
    kernel: OpenVersion = None
    key: Key

    @property
    def path(self) -> str:
        """NVIDIA's repository for it, below the base."""
        return f"{self.id}{self.version.replace('.', '')}/x86_64"

    @property
    def text(self) -> str:
        """It for a message."""
        return f"{self.id.capitalize()} {self.version}"


class Names(_Row):
    """A naming of the driver's packages, with `{branch}`: of each flavour's modules, and of each capability. `before`:
    the branch from which on another one of the same distribution comes first."""

    id: Literal["ubuntu", "debian"]
    before: int = 10_000
    modules: dict[Flavour, str]
    libraries: dict[Capability, tuple[str, ...]]

    def packages(self, branch: int, flavour: Flavour | None, capabilities: Iterable[Capability]) -> tuple[str, ...]:
        """The packages of a driver.

        :param flavour: None: without modules.
        """
        names = [self.modules[flavour]] if flavour else []
        names += [name for capability in capabilities for name in self.libraries[capability]]
        return tuple(name.format(branch=branch) for name in names)


class CapabilityLibraries(_Row):
    """The libraries of a capability, by their sonames; `bare`: those that need no others than the driver's own."""

    libraries: tuple[str, ...]
    bare: tuple[str, ...]


class Toolkit(_Row):
    """The container toolkit's repository and packages. `groups_since`: the version from which its CDI specifications
    name groups; `without_groups`: its generator's options that keep them out; `podman_reads_groups`: the first podman
    that reads such specifications; `runtimes`: the distributions' package of each runtime, empty where it has its own
    installer; `image`: to try a runtime with."""

    path: str
    key: Key
    packages: tuple[str, ...]
    groups_since: DataVersion
    without_groups: tuple[str, ...]
    podman_reads_groups: DataVersion
    runtimes: dict[Runtime, str]
    image: str


class Run(_Row):
    """NVIDIA's own installer: its address below the base, the packages that it needs, and its options."""

    path: str
    module_type_since: DataVersion
    prerequisites: tuple[str, ...]
    build: tuple[str, ...]
    no_graphics: str
    graphics: tuple[str, ...]
    driver: tuple[str, ...]
    userspace: tuple[str, ...]

    def url(self, base: str, version: str) -> str:
        """The address of a version."""
        return f"{base}/{self.path.format(version=version)}"


class Bases(_Row):
    """Base addresses of the repositories; a mirror replaces one."""

    cuda: str
    container_toolkit: str
    run: str


class Facts(_Row):
    """All of them. `as_of`: the day on which they were last compared with their sources; `recommended`: in the order in
    which one is chosen; `branches`: branch -> the month after which there are no fixes; `open_from`, `open_alone_from`:
    branches; `last_kernels`: branch -> the last kernel that it builds for; `cuda`: release -> the driver that it came
    with; `cuda_majors`: the same of a major family, from which all of it runs, with limits; `pinned`: what of a driver
    is of one version; `installers`: version -> SHA-256 of its file."""

    as_of: datetime.date
    generations: tuple[Generation, ...]
    recommended: tuple[int, ...]
    branches: dict[int, str]
    open_from: int
    open_alone_from: int
    last_kernels: dict[int, DataVersion]
    cuda: dict[str, DataVersion]
    cuda_majors: dict[int, DataVersion]
    cuda_libraries: tuple[CudaLibrary, ...]
    repositories: Bases
    distributions: tuple[Distribution, ...]
    names: tuple[Names, ...]
    capabilities: dict[Capability, CapabilityLibraries]
    pinned: tuple[str, ...]
    toolkit: Toolkit
    run: Run
    installers: dict[str, str]

    def generation(self, device: str) -> Generation:
        """The generation of a device id (four hexadecimal digits). A card that isn't known counts as a new one, which
        needs the open modules, as in NVIDIA's own driver assistant."""
        found = (row for row in self.generations for block in row.ranges if block[:4] <= device <= block[5:])
        return next(found, Generation())

    def ended(self, branch: int, today: datetime.date) -> bool:
        """Whether a branch's last month with fixes is over."""
        return "" < self.branches.get(branch, "") < today.isoformat()[:7]

    def flavours(self, branch: int) -> tuple[Flavour, ...]:
        """The flavours of the modules that a branch has, open first."""
        has_both: tuple[Flavour, ...] = ("open", "proprietary")
        return has_both[branch < self.open_from : 1 if branch >= self.open_alone_from else 2]

    def least_for(self, release: Version) -> Version:
        """The driver that a release of CUDA came with; of one that isn't known, that of the newest known one before
        it."""
        known = [one for one in self.cuda_releases if parse(one) <= release] or self.cuda_releases[-1:]
        return self.cuda[known[0]]

    @property
    def cuda_releases(self) -> list[str]:
        """The known releases of CUDA, the newest first."""
        return sorted(self.cuda, key=parse, reverse=True)

    def libraries(self, capabilities: Iterable[str], *, bare: bool = False) -> tuple[str, ...]:
        """The sonames of capabilities.

        :param bare: those that need no others than the driver's own.
        """
        rows = [row for capability, row in self.capabilities.items() if capability in capabilities]
        return tuple(name for row in rows for name in (row.bare if bare else row.libraries))

    def known_releases(self, today: datetime.date) -> str:
        """The newest branch of the data, and its age, in a sentence for a person."""
        days = (today - self.as_of).days
        text = (
            f"NVIDIA's drivers as this program knows them: the newest branch is {max(self.branches)}, "
            f"{self.recommended[0]} is recommended; that is of {self.as_of}, {days} days old"
        )
        return text if days <= _DAYS_UNTIL_OLD else f"{text}: there may be newer ones; update this program"


def digest() -> str:
    """16 hexadecimal digits that change with the file."""
    return hashlib.sha256(FILE.read_text(encoding="utf-8").encode()).hexdigest()[:16]


@functools.cache
def load(file: Path = FILE) -> Facts:
    """The facts of this program; read once."""
    return Facts.model_validate(tables.read(file))
