"""What is newer than what a system has: packages of NVIDIA's stack, releases of its driver's branch, later branches;
and whether they fit."""

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
_OLD_DAYS = 90


@dataclass(frozen=True)
class Installed:
    """A package that this program has put there. `sha256`, `newest`: `-` where no repository tells."""

    name: str
    version: str
    sha256: str
    newest: str


@dataclass(frozen=True)
class Packages:
    """A reading of remote_scripts/read_packages.sh."""

    distribution: str
    driver: str
    packages: tuple[Installed, ...]
    installer: LockedInstaller | None = None

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> Packages:
        """The reading in a script's answer."""
        lines = answer["packages"]
        assert isinstance(lines, list)
        packages = tuple(Installed(*str(line).split(" ")) for line in lines)
        version, _, sha256 = str(answer["installer"]).partition(" ")
        installer = LockedInstaller(version=version, sha256=sha256) if sha256 else None
        return cls(str(answer["distribution"]), str(answer["driver"]), packages, installer)

    @property
    def lock(self) -> SystemLock:
        """What the lock file is to have of it. Packages of which no repository has the version any more can't be
        locked: nobody could install them."""
        known = [one for one in self.packages if one.sha256 != "-"]
        return SystemLock(
            distribution=self.distribution,
            driver=self.driver,
            packages={one.name: LockedPackage(version=one.version, sha256=one.sha256) for one in known},
            installer=self.installer,
        )

    @property
    def unknown(self) -> list[str]:
        """Packages that can't be locked."""
        return [f"{one.name} {one.version}" for one in self.packages if one.sha256 == "-"]


def lines(found: Packages, request: Request) -> list[str]:
    """For a person, a line each: what is newer, and whether it fits the system's cards, kernels and CUDA.

    :param request: with a reading of the system, and the settings.
    """
    said = [
        f"{one.name}: {one.version} -> {one.newest}" for one in found.packages if one.newest not in ("-", one.version)
    ]
    driver = parse(found.driver) if found.driver else None
    rows = sorted(request.data.branches.values(), key=lambda row: row.branch)
    for row in rows:
        if driver is None or row.newest is None or row.ended(request.today):
            continue
        if row.branch == driver.major and row.newest > driver:
            said.append(f"driver {found.driver}: {row.newest} is known of its branch; {_fit(request, str(row.branch))}")
        elif row.branch > driver.major:
            said.append(f"driver branch {row.branch} ({row.kind}, {row.newest}): {_fit(request, str(row.branch))}")
    current = next((row for row in rows if driver and row.branch == driver.major), None)
    if current is not None and current.ended(request.today):
        said.insert(0, f"driver branch {current.branch}: it gets no more fixes")
    return said


def age(data: Compatibility, today: datetime.date) -> str:
    """How old the data is that decides what is known and what fits, for a person."""
    if data.as_of is None:
        return "of which day this program's data on NVIDIA's releases is isn't known"
    days = (today - data.as_of).days
    said = f"this program's data on NVIDIA's releases is of {data.as_of}, {days} days old"
    if days <= _OLD_DAYS:
        return said
    return (
        f"{said}: newer drivers and releases of CUDA may be missing in what is said here; use a newer version of "
        "the program"
    )


def _fit(request: Request, driver: str) -> str:
    trial = dataclasses.replace(request, settings=request.settings.model_copy(update={"driver": driver}), lock=None)
    against: Iterable[str] = (f"{error.found}: {error.why}" for error in refusals(trial))
    return next((f"doesn't fit: {why}" for why in against), "fits")
