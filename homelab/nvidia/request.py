"""What is wanted, and of which system: the settings, what a reading of the system said, and the driver that both come
to."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from homelab.nvidia.compatibility import VENDOR, Branch, Compatibility, Flavour, Generation, Names, Target, load
from homelab.nvidia.lock import SystemLock
from homelab.nvidia.versions import Version, of_package, parse
from homelab.settings.nvidia import Nvidia
from homelab.shapes import Capability, Runtime

_CAPABILITIES: tuple[Capability, ...] = ("compute", "video", "graphics")
# In which order one is chosen.
_KINDS = ("LTSB", "PB", "NFB", "legacy")
# Stands for "the newest of its branch" where no release of the branch is known.
_NEWEST = 999


@dataclass(frozen=True)
class SystemFacts:
    """What the last reading of a system said; None for what no reading has said yet.

    `cards`: vendor:device of its graphics cards. `host_driver`: in a container, the version of the host's loaded
    driver, empty where none is loaded. `loaded`: the version of the loaded nvidia module, empty where none is;
    `nouveau`: it has the card. `offered`: package -> versions, as `apt-cache madison` lists them, for every package
    that was asked for (`packages_to_ask_for`), empty for one that isn't there. `runtimes`: those that are installed.
    `mok_enrolled`: DKMS's key is among those that Secure Boot takes. `room`: free bytes where packages go.
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


@dataclass(frozen=True)
class Driver:
    """A branch, or one version of it. `version`: exact, or the newest of the branch that is offered or known."""

    branch: int
    exact: bool
    version: Version

    @property
    def known(self) -> bool:
        """Whether `version` is a release at all."""
        return self.version.numbers[1:] != (_NEWEST,)

    @property
    def wanted(self) -> Version:
        """The version, or the branch as one, of which any version will do."""
        return self.version if self.exact else parse(str(self.branch))

    @property
    def text(self) -> str:
        """For a message."""
        return str(self.version) if self.exact else f"branch {self.branch}"


@dataclass(frozen=True)
class Request:
    """One system's stack. `name`: where it is in the settings, such as `vms.gaming`; `lock`: what the lock file has of
    it; `is_trial`: it is asked what would fit, so that nobody reads what to do about what doesn't."""

    target: Target
    settings: Nvidia
    system: SystemFacts = SystemFacts()
    name: str = "this system"
    lock: SystemLock | None = None
    data: Compatibility = field(default_factory=load)
    today: datetime.date = field(default_factory=datetime.date.today)
    is_trial: bool = False

    def with_settings(self, **values: object) -> Request:
        """The same with other settings, as a trial. Libraries beside CUDA are left out: they follow its release."""
        settings = self.settings.model_copy(update={"cudnn": None, "nccl": False, **values})
        return replace(self, settings=settings, is_trial=True)

    @property
    def devices(self) -> tuple[str, ...] | None:
        """The device ids of NVIDIA's cards; None where the cards aren't known."""
        cards = self.system.cards
        return None if cards is None else tuple(c[5:].lower() for c in cards if c.lower().startswith(f"{VENDOR}:"))

    @cached_property
    def generations(self) -> dict[str, Generation | None]:
        """Device id -> generation, None for an id that isn't known; empty where the cards aren't known."""
        return {device: self.data.generation(device) for device in self.devices or ()}

    @cached_property
    def driver(self) -> Driver | None:
        """The driver that is meant; None in a container whose host wasn't read and whose settings name none."""
        text = self.settings.driver
        if self.target == "lxc" and self.system.host_driver:
            return driver_of(self, self.system.host_driver)
        if text is None and self.target == "lxc":
            return None
        return driver_of(self, text) if text else self._recommended()

    def _recommended(self) -> Driver:
        """Of the branches that know all the cards, the one to choose first; the recommended one where none does."""
        drivers = (driver_of(self, str(row.branch)) for row in ranked_branches(self))
        fitting = (one for one in drivers if all(self.knows(one, device) for device in self.generations))
        return next(fitting, driver_of(self, str(self.data.recommended)))

    def knows(self, driver: Driver, device: str) -> bool:
        """Whether nothing says that a driver doesn't know a card: too new for it, or dropped."""
        row, generation = self.data.device(device), self.generations[device]
        if generation and (generation.outlived_by(driver.branch) or driver.version < generation.least):
            return False
        return row is None or driver.version > row.absent

    def run_sha256(self, version: str) -> str:
        """Of NVIDIA's installer of a version: the lock file's, the settings', or the known one; empty where nobody has
        it."""
        known = self.data.installers.get(version)
        locked = self.lock.installer if self.lock else None
        if locked is not None and locked.version == version:
            return locked.sha256
        return self.settings.run_sha256.get(version) or (known.sha256 if known else "")

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What the driver's libraries are for. Where the settings don't say it: also video, as far as it can be had."""
        named = self.settings.capabilities
        return ("compute", "video") if named is None else tuple(one for one in _CAPABILITIES if one in named)

    @property
    def branch(self) -> Branch | None:
        """What is known of the driver's branch."""
        return self.data.branches.get(self.driver.branch) if self.driver else None

    @property
    def naming(self) -> list[Names]:
        """The ways in which the driver's packages may be called: the branch's own first, then the others that the
        distribution has had, which are taken only if the repositories say so; empty where distribution or driver aren't
        known, or no names are.
        """
        distribution = self.system.distribution
        if self.driver is None or distribution is None:
            return []
        own = self.data.names(distribution, self.driver.branch)
        others = [row for row in self.data.packaging.names if row.distribution == distribution and row is not own]
        return [own, *others] if own else []


def ranked_branches(request: Request) -> list[Branch]:
    """All branches: the recommended one, maintained ones that are known to build for some kernel, of these those for
    long before shorter ones, and at the end those without fixes."""
    data = request.data
    return sorted(
        data.branches.values(),
        key=lambda row: (
            row.branch != data.recommended,
            row.ended(request.today),
            row.newest is None,
            not data.is_proved(row.branch),
            _KINDS.index(row.kind),
            -row.branch,
        ),
    )


def driver_of(request: Request, text: str) -> Driver:
    """A driver from `580` or `580.105.08`; a branch stands for its newest release that is offered, else known."""
    version = parse(text)
    if len(version.numbers) > 1:
        return Driver(version.major, True, version)
    row = request.data.branches.get(version.major)
    if request.lock and request.lock.driver and parse(request.lock.driver).major == version.major:
        return Driver(version.major, False, parse(request.lock.driver))
    newest = max(offered_versions(request, version.major), default=row.newest if row else None)
    return Driver(version.major, False, newest or parse(f"{version.major}.{_NEWEST}"))


def offered_versions(request: Request, branch: int) -> list[Version]:
    """The driver's versions of a branch that the repositories offer, under any of its names; empty where nothing is
    known of that."""
    offered, distribution = request.system.offered or {}, request.system.distribution
    # The libraries are there in every case, whichever modules are wanted.
    packages = [
        row.userspace[0].format(branch=branch)
        for row in request.data.packaging.names
        if row.distribution == distribution
    ]
    found = [of_package(text) for package in packages for text in offered.get(package, ())]
    return [version for version in found if version and version.major == branch]
