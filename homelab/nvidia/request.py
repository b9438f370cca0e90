"""The request for a system's NVIDIA stack: the settings, the system's facts, and the driver that follows from both."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from homelab.nvidia.compatibility import (
    VENDOR,
    Branch,
    Compatibility,
    Distribution,
    Flavour,
    Generation,
    Names,
    Target,
    load,
)
from homelab.nvidia.versions import Version, of_package, parse
from homelab.settings.nvidia import Nvidia
from homelab.shapes import Capability, Runtime

_CAPABILITIES: tuple[Capability, ...] = ("compute", "video", "graphics")
# Stands for "the newest of its branch" where no release of the branch is known.
_NEWEST = 999


@dataclass(frozen=True)
class SystemFacts:
    """A system's facts; None for each that wasn't read yet.

    `kernels`: installed ones, as `uname -r` prints them; `running`: the running one. `cards`: vendor:device of the
    graphics cards. `host_driver`: in a container, the version of the host's loaded driver, empty where none is loaded.
    `loaded`: the version of the loaded nvidia module, empty where none is; `nouveau`: whether nouveau has the card.
    `offered`: package -> versions, as `apt-cache madison` lists them, for every package that was looked up
    (`packages_to_ask_for`), empty for a package that isn't offered. `runtimes`: installed ones. `mok_enrolled`: whether
    Secure Boot accepts DKMS's key. `room`: free bytes below /usr.
    `without_headers`: kernels whose headers aren't there, nor in apt's lists.
    """

    distribution: str | None = None
    version: str | None = None
    architecture: str | None = None
    kernels: tuple[str, ...] | None = None
    running: str | None = None
    secure_boot: bool | None = None
    mok_enrolled: bool | None = None
    cards: tuple[str, ...] | None = None
    host_driver: str | None = None
    loaded: str | None = None
    loaded_flavour: Flavour | None = None
    nouveau: bool | None = None
    offered: Mapping[str, tuple[str, ...]] | None = None
    runtimes: frozenset[Runtime] | None = None
    room: int | None = None
    without_headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Driver:
    """A branch of the driver, or one version. `exact`: whether the version is wanted, not its branch; `version`: the
    wanted one, else the newest of the branch that is offered or known."""

    branch: int
    exact: bool
    version: Version

    @property
    def is_release(self) -> bool:
        """Whether `version` is a release; False where no release of the branch is known."""
        return self.version.numbers[1:] != (_NEWEST,)

    @property
    def version_or_branch(self) -> Version:
        """The wanted version, or the branch alone (580), which any of its versions fits."""
        return self.version if self.exact else parse(str(self.branch))

    @property
    def text(self) -> str:
        """The driver for a message."""
        return str(self.version) if self.exact else f"branch {self.branch}"


@dataclass(frozen=True)
class Request:
    """The request for one system's stack. `name`: the system's place in the settings, such as `vms.gaming`;
    `is_trial`: whether it only tries what would fit, so that its errors need no advice."""

    target: Target
    settings: Nvidia
    system: SystemFacts = SystemFacts()
    name: str = "this system"
    data: Compatibility = field(default_factory=load)
    today: datetime.date = field(default_factory=datetime.date.today)
    is_trial: bool = False

    def with_settings(self, **values: object) -> Request:
        """A trial with other settings, without cuDNN and NCCL, which follow CUDA's release.

        :param values: fields of the settings.
        """
        settings = self.settings.model_copy(update={"cudnn": None, "nccl": False, **values})
        return replace(self, settings=settings, is_trial=True)

    @property
    def devices(self) -> tuple[str, ...] | None:
        """The device ids of NVIDIA's cards; None where the cards aren't known."""
        cards = self.system.cards
        return (
            None
            if cards is None
            else tuple(card[5:].lower() for card in cards if card.lower().startswith(f"{VENDOR}:"))
        )

    @property
    def distribution(self) -> Distribution | None:
        """The row of the system's distribution; None where the system wasn't read, or the data has none."""
        return self.data.distribution(self.system.distribution or "", self.system.version or "")

    @cached_property
    def generations(self) -> dict[str, Generation | None]:
        """Device id -> generation, None for an id that isn't known; empty where the cards aren't known."""
        return {device: self.data.generation(device) for device in self.devices or ()}

    @cached_property
    def driver(self) -> Driver | None:
        """The wanted driver; None in a container whose host wasn't read and whose settings name none."""
        text = self.settings.driver
        if self.target == "lxc" and self.system.host_driver:
            return driver_of(self, self.system.host_driver)
        if text is None and self.target == "lxc":
            return None
        return driver_of(self, text) if text else self._recommended()

    def _recommended(self) -> Driver:
        """The first of the ranked branches that knows all the cards, and runs CUDA; if none runs it, that knows them;
        the recommended one where none does."""
        drivers = (driver_of(self, str(row.branch)) for row in ranked_branches(self))
        fitting = [driver for driver in drivers if all(self.knows(driver, device) for device in self.generations)]
        return next(filter(self.runs_cuda, fitting), next(iter(fitting), driver_of(self, str(self.data.recommended))))

    @property
    def least_of_cuda(self) -> Driver | None:
        """The driver that the wanted CUDA came with; for a release newer than the data, that of the newest known
        one."""
        if self.settings.cuda is None:
            return None
        release = parse(self.settings.cuda)
        row = self.data.cuda_release(release) or max(self.data.cuda.releases, key=lambda cuda: cuda.release)
        return Driver(row.least.major, True, row.least)

    def runs_cuda(self, driver: Driver, *, within_major: bool = False) -> bool:
        """Whether a driver runs what the wanted CUDA compiles.

        :param within_major: also with limits; the settings may say that, too.
        """
        if self.least_of_cuda is None or driver.version >= self.least_of_cuda.version:
            return True
        floor = self.data.cuda_major(parse(self.settings.cuda or "0").major)
        may_be_limited = within_major or self.settings.allow_minor_version_compatibility
        return may_be_limited and floor is not None and driver.version >= floor.least

    def knows(self, driver: Driver, device: str) -> bool:
        """Whether a driver may know a card: the card isn't known to be too new for it, or dropped.

        :param device: the card's device id.
        """
        generation = self.generations[device]
        return generation is None or not (generation.outlived_by(driver.branch) or driver.version < generation.least)

    def run_sha256(self, version: str) -> str:
        """The SHA-256 of NVIDIA's installer of a version: the settings' or the data's; empty where neither has it."""
        row = self.data.installers.get(version)
        return self.settings.run_sha256.get(version) or (row.sha256 if row else "")

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """The capabilities of the driver's libraries; without settings `compute`, and `video` where it is offered."""
        wanted = self.settings.capabilities
        return (
            ("compute", "video")
            if wanted is None
            else tuple(capability for capability in _CAPABILITIES if capability in wanted)
        )

    @property
    def branch(self) -> Branch | None:
        """The row of the driver's branch; None where the driver or its branch isn't known."""
        return self.data.branches.get(self.driver.branch) if self.driver else None

    @property
    def package_names(self) -> list[Names]:
        """The namings that the driver's packages may have: the branch's first, then the distribution's other ones,
        which are used only if the repositories offer them; empty where distribution, driver or names aren't known.
        """
        distribution = self.system.distribution
        if self.driver is None or distribution is None:
            return []
        branch_names = self.data.names(distribution, self.driver.branch)
        other_names = [
            row for row in self.data.packaging.names if row.distribution == distribution and row is not branch_names
        ]
        return [branch_names, *other_names] if branch_names else []


def ranked_branches(request: Request) -> list[Branch]:
    """All branches in the order in which one is chosen: the recommended ones, then the others that are maintained, the
    newest first; at the end those without fixes."""
    order = dict(zip(request.data.in_order, range(len(request.data.in_order)), strict=True))
    return sorted(
        request.data.branches.values(),
        key=lambda row: (order.get(row.branch, len(order)), row.ended(request.today), -row.branch),
    )


def driver_of(request: Request, text: str) -> Driver:
    """The driver that `580` or `580.105.08` means; for a branch its newest release that is offered, else the
    newest known one."""
    version = parse(text)
    if len(version.numbers) > 1:
        return Driver(version.major, True, version)
    row = request.data.branches.get(version.major)
    newest = max(offered_versions(request, version.major), default=row.newest if row else None)
    return Driver(version.major, False, newest or parse(f"{version.major}.{_NEWEST}"))


def offered_versions(request: Request, branch: int) -> list[Version]:
    """The driver's versions of a branch that the repositories offer, under any naming; empty where the repositories
    weren't read."""
    offered, distribution = request.system.offered or {}, request.system.distribution
    # Each naming has the libraries, whichever modules are wanted.
    packages = [
        row.userspace[0].format(branch=branch)
        for row in request.data.packaging.names
        if row.distribution == distribution
    ]
    versions = [of_package(text) for package in packages for text in offered.get(package, ())]
    return [version for version in versions if version and version.major == branch]
