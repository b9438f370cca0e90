"""Newer versions than a system's: packages of NVIDIA's stack, releases of its driver's branch, later branches; and
whether they fit."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from homelab.nvidia.checks import refusals
from homelab.nvidia.compatibility import Compatibility
from homelab.nvidia.lock import LockedInstaller, LockedPackage, SystemLock
from homelab.nvidia.request import Request
from homelab.nvidia.versions import parse

# NVIDIA begins a branch, or a release of CUDA, some four times a year.
_DAYS_UNTIL_OLD = 90


@dataclass(frozen=True)
class InstalledPackage:
    """A package that this program has installed. `sha256`, `newest` (the newest version offered): `-` where no
    repository has it."""

    name: str
    version: str
    sha256: str
    newest: str


@dataclass(frozen=True)
class PackagesReading:
    """A reading of the layer read_packages."""

    distribution: str
    driver: str
    packages: tuple[InstalledPackage, ...]
    installer: LockedInstaller | None = None

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> PackagesReading:
        """The reading in the answer of read_packages."""
        lines = answer["packages"]
        assert isinstance(lines, list)
        packages = tuple(InstalledPackage(*str(line).split(" ")) for line in lines)
        version, _, sha256 = str(answer["installer"]).partition(" ")
        installer = LockedInstaller(version=version, sha256=sha256) if sha256 else None
        return cls(str(answer["distribution"]), str(answer["driver"]), packages, installer)

    @property
    def lock(self) -> SystemLock:
        """The system's entry for the lock file. A package whose version no repository has any more isn't in it, as no
        other system could install it."""
        lockable = [package for package in self.packages if package.sha256 != "-"]
        return SystemLock(
            distribution=self.distribution,
            driver=self.driver,
            packages={
                package.name: LockedPackage(version=package.version, sha256=package.sha256) for package in lockable
            },
            installer=self.installer,
        )

    @property
    def not_lockable(self) -> list[str]:
        """Packages that can't be locked, as no repository has their version: `NAME VERSION`."""
        return [f"{package.name} {package.version}" for package in self.packages if package.sha256 == "-"]


def lines(reading: PackagesReading, request: Request) -> list[str]:
    """Lines for a person: newer versions, and whether they fit the system's cards, kernels and CUDA.

    :param reading: the system's packages.
    :param request: with the system's facts, and the settings.
    """
    texts = [
        f"{package.name}: {package.version} -> {package.newest}"
        for package in reading.packages
        if package.newest not in ("-", package.version)
    ]
    driver = parse(reading.driver) if reading.driver else None
    rows = sorted(request.data.branches.values(), key=lambda row: row.branch)
    for row in rows:
        if driver is None or row.newest is None or row.ended(request.today):
            continue
        if row.branch == driver.major and row.newest > driver:
            texts.append(
                f"driver {reading.driver}: {row.newest} is known of its branch; {_fit_text(request, str(row.branch))}"
            )
        elif row.branch > driver.major:
            texts.append(
                f"driver branch {row.branch} ({row.kind}, {row.newest}): {_fit_text(request, str(row.branch))}"
            )
    current = next((row for row in rows if driver and row.branch == driver.major), None)
    if current is not None and current.ended(request.today):
        texts.insert(0, f"driver branch {current.branch}: it gets no more fixes")
    return texts


def age(data: Compatibility, today: datetime.date) -> str:
    """The age of the compatibility data, in a sentence for a person."""
    if data.as_of is None:
        return "the date of this program's data on NVIDIA's releases isn't known"
    days = (today - data.as_of).days
    text = f"this program's data on NVIDIA's releases is of {data.as_of}, {days} days old"
    if days <= _DAYS_UNTIL_OLD:
        return text
    return (
        f"{text}: newer drivers and releases of CUDA may be missing in what is said here; use a newer version of "
        "the program"
    )


def _fit_text(request: Request, driver: str) -> str:
    trial = dataclasses.replace(request, settings=request.settings.model_copy(update={"driver": driver}), lock=None)
    reasons: Iterable[str] = (f"{error.found}: {error.why}" for error in refusals(trial))
    return next((f"doesn't fit: {reason}" for reason in reasons), "fits")
