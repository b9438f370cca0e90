"""The source of a driver: packages of the system's repositories, or NVIDIA's installer. Decided here alone: what is
proposed, what a preview says and what is installed are the same.

While the repositories aren't read, the data tells which branches they have; then what they offer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homelab.errors import HomelabError
from homelab.nvidia.compatibility import Distribution, Flavour, Headers, Names
from homelab.nvidia.flavour import Choice, choose
from homelab.nvidia.request import Driver, Request, offered_versions
from homelab.nvidia.versions import Range, Version, fits, flavour_of_kernel, of_kernel, of_package, parse
from homelab.shapes import Capability

SourceKind = Literal["packages", "run", "either"]


@dataclass(frozen=True)
class RunfilePlan:
    """NVIDIA's installer. `sha256`: empty where neither data nor settings have it, and then the installer isn't run;
    `checksum_url`: where NVIDIA publishes it, for people; `prerequisites`: packages; `arguments`: the installer's.
    """

    version: str
    url: str
    sha256: str
    checksum_url: str
    prerequisites: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class DriverSource:
    """The source of a driver. `source`: `Plan.source`; `packages`: NAME=VERSION or NAME=PATTERN, empty under `run`;
    `capabilities`: the settings', or those of the default that the repositories offer; `run`: None under `packages`."""

    source: SourceKind
    packages: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    run: RunfilePlan | None


def source_of(request: Request) -> DriverSource | None:
    """The source of the wanted driver; None where driver or distribution aren't known, or no modules fit.

    :raises HomelabError: as of `driver_source`.
    """
    driver = request.driver
    choice = choose(request) if request.target != "lxc" and driver else None
    if driver is None or request.distribution is None or (choice is None and request.target != "lxc"):
        return None
    return driver_source(request, driver, choice)


def driver_source(request: Request, driver: Driver, choice: Choice | None) -> DriverSource:
    """The source of a driver.

    :param choice: None in a container, which has no modules.
    :raises HomelabError: it can be had in no way that the settings allow.
    """
    packages, source, capabilities = _packages(request, driver, choice)
    run = _runfile(request, driver, choice) if source != "packages" else None
    if run and source == "run" and not run.sha256:
        raise unknown_sha256(run, request.name)
    return DriverSource(source, packages, capabilities, run)


def _packages(
    request: Request, driver: Driver, choice: Choice | None
) -> tuple[tuple[str, ...], SourceKind, tuple[Capability, ...]]:
    """The packages with their versions, the driver's source, and its capabilities: the settings', or those of the
    default that the repositories offer.

    :raises HomelabError: the settings want packages, and there are none.
    """
    if request.settings.source == "run":
        return (), "run", request.capabilities
    if request.settings.capabilities is None and not _is_offered(request, driver, choice, request.capabilities):
        compute: tuple[Capability, ...] = ("compute",)
        packages, source = _packages_of(request, driver, choice, compute)
        # The installer has all libraries.
        return packages, source, request.capabilities if source == "run" else compute
    return *_packages_of(request, driver, choice, request.capabilities), request.capabilities


def _package_lists(
    request: Request, driver: Driver, choice: Choice | None, capabilities: tuple[Capability, ...]
) -> list[tuple[str, ...]]:
    """The driver's packages, once for each naming that the distribution may have.

    :param choice: None in a container, which has no modules.
    """
    branch = driver.branch
    return [
        tuple(
            name.format(branch=branch) for name in (row.userspace if choice is None else _module_packages(row, choice))
        )
        + row.packages_for(capabilities, branch)
        for row in request.package_names
    ]


def _is_offered(request: Request, driver: Driver, choice: Choice | None, capabilities: tuple[Capability, ...]) -> bool:
    """Whether the repositories offer all packages of the capabilities in one version, or weren't read yet."""
    offered, lists = request.system.offered, _package_lists(request, driver, choice, capabilities)
    if offered is None:
        return True
    return any(_common_version(request, driver, names) for names in lists if all(name in offered for name in names))


def _packages_of(
    request: Request, driver: Driver, choice: Choice | None, capabilities: tuple[Capability, ...]
) -> tuple[tuple[str, ...], SourceKind]:
    offered = request.system.offered or {}
    lists = _package_lists(request, driver, choice, capabilities)
    looked_up = [names for names in lists if all(name in offered for name in names)]
    packages_alone = request.settings.source == "packages" or not driver.is_release
    for names in looked_up:
        if version := _common_version(request, driver, names):
            pinned = tuple(_pinned_package(request, Driver(driver.branch, True, version), name) for name in names)
            # Whether a container gets the libraries without modules, only apt tells, in the layer.
            return pinned, "packages" if packages_alone or request.target != "lxc" else "either"
    if lists and lists[0] not in looked_up and _may_be_offered(request, driver):
        names = tuple(_pinned_package(request, driver, name) for name in lists[0])
        # A branch's newest release is in the repositories; an old version may not be, nor anything in a mirror.
        is_sure = not (driver.exact or request.target == "lxc" or request.settings.mirror.cuda)
        return names, "packages" if packages_alone or is_sure else "either"
    if packages_alone:
        raise _no_packages(request, driver, _missing_packages(request, driver, lists[0]) if lists else [])
    return (), "run"


def _may_be_offered(request: Request, driver: Driver) -> bool:
    """Whether the distribution's repositories may have a driver's branch, by the data; a mirror may keep what NVIDIA's
    own has no more."""
    branches = None if request.settings.mirror.cuda else _branches_of_repositories(request)
    return branches is None or any(parse(str(driver.branch)) in part for part in branches)


def _branches_of_repositories(request: Request) -> tuple[Range, ...] | None:
    return request.distribution.drivers if request.distribution else None


def _module_packages(row: Names, choice: Choice) -> tuple[str, ...]:
    return row.open if choice.flavour == "open" else row.proprietary


def _common_version(request: Request, driver: Driver, packages: tuple[str, ...]) -> Version | None:
    """The newest fitting version in which all packages are offered, as modules and libraries must have the same; None
    where there is none."""
    offered = request.system.offered or {}
    versions_of_each = [
        {of_package(text) for text in offered[name] if fits(of_package(text), driver.version_or_branch)}
        for name in packages
    ]
    return max((version for version in set.intersection(*versions_of_each) if version), default=None)


def _missing_packages(request: Request, driver: Driver, packages: tuple[str, ...]) -> list[str]:
    offered = request.system.offered or {}
    return [
        name
        for name in packages
        if not any(fits(of_package(text), driver.version_or_branch) for text in offered.get(name, ()))
    ]


def _pinned_package(request: Request, driver: Driver, name: str) -> str:
    """`name=version`, as the repository writes the version; with a pattern where the repository wasn't read."""
    offered = (request.system.offered or {}).get(name, ())
    exact = [text for text in offered if of_package(text) == driver.version]
    return f"{name}={max(exact, key=_revision)}" if exact else f"{name}={version_pattern(driver)}"


def _revision(package_version: str) -> tuple[int, tuple[int, ...]]:
    """The key that orders packages of one version: NVIDIA's own come after a distribution's, then the newest.

    A distribution's revision has its release in it (0ubuntu1.24.04.1, 0+deb12u1). Its packages of a branch that has
    ended lead to the next branch's.
    """
    digits = "".join(character if character.isdigit() else " " for character in package_version.rpartition("-")[2])
    numbers = tuple(int(number) for number in digits.split())
    return -len(numbers), numbers


def version_pattern(driver: Driver) -> str:
    """The pattern of the versions of packages that a driver may have."""
    return f"{driver.version}-*" if driver.exact else f"{driver.branch}.*"


def _no_packages(request: Request, driver: Driver, missing: list[str]) -> HomelabError:
    system, branches = request.system, _branches_of_repositories(request)
    if not request.package_names:
        found = f"no package names of branch {driver.branch} are known there"
    elif system.offered is None and branches:
        found = f"its repositories have the branches {' and '.join(map(str, branches))}"
    else:
        versions = sorted({version.text for version in offered_versions(request, driver.branch)}, key=parse)
        found = (
            f"not offered: {', '.join(missing) or 'one version of all of them'}; offered: "
            f"{', '.join(versions) or 'nothing of that branch'}"
        )
    return HomelabError(
        wanted=f"{request.name}: packages of {driver.text} for {system.distribution} {system.version}",
        found=found,
        why="apt could not install them: `Unable to locate package`, or `Version … was not found`",
        next="leave nvidia.source out, or set nvidia.source: run for NVIDIA's installer; or set nvidia.driver to one "
        "that is offered"
        if driver.is_release
        else "set nvidia.driver to an exact version",
    )


def _runfile(request: Request, driver: Driver, choice: Choice | None) -> RunfilePlan:
    """NVIDIA's installer for a driver.

    :param choice: None in a container, which has no modules.
    :raises HomelabError: no release of the branch is known, so that there is no file to download.
    """
    data = request.data.packaging.runfile
    if not driver.is_release:
        raise HomelabError(
            wanted=f"{request.name}: a version of the driver, for NVIDIA's installer",
            found=f"{driver.text}, of which no release is known",
            why="the installer is a file for each version",
            next="set nvidia.driver to an exact version, such as "
            f'"{request.data.branches[request.data.recommended].newest}"',
        )
    base = request.settings.mirror.run or request.data.packaging.repositories.run
    version = str(driver.version)
    return RunfilePlan(
        version=version,
        url=f"{base}/{data.url.format(version=version)}",
        sha256=request.run_sha256(version),
        checksum_url=f"{request.data.packaging.repositories.run}/{data.checksum.format(version=version)}",
        prerequisites=data.prerequisites
        + (data.graphics_prerequisites if "graphics" in request.capabilities else ())
        + (() if choice is None else request.data.packaging.build + header_packages(request)),
        arguments=data.userspace
        if choice is None
        else (
            *data.driver,
            *(() if "graphics" in request.capabilities else (data.no_graphics,)),
            _module_type(driver.version, data.module_type_since, choice.flavour),
        ),
    )


def unknown_sha256(run: RunfilePlan, name: str) -> HomelabError:
    """The error for an installer whose SHA-256 isn't known.

    :param name: the system's, in the settings.
    """
    return HomelabError(
        wanted=f"{name}: the SHA-256 of NVIDIA's installer {run.version}",
        found="neither this program's data nor nvidia.runSha256 has it",
        why="the installer runs as root, and a server, mirror or proxy that has another file must not decide what "
        "is run",
        next=f"read it at {run.checksum_url}, from another network than the one that it is installed over, and set "
        "nvidia.runSha256: "
        f'{{"{run.version}": "..."}}; or choose a version that is known here (docs/nvidia-installer.md)',
    )


def _module_type(version: Version, since: Version, flavour: Flavour) -> str:
    if version >= since:
        return f"--kernel-module-type={flavour}"
    return "-m=kernel-open" if flavour == "open" else "-m=kernel"


def kernel_headers(request: Request) -> dict[str, str]:
    """Each kernel that the modules are built for, and the package of its headers: on Proxmox VE every installed kernel,
    as the next boot may take any; in a guest the running one."""
    names, running = _header_names(request), _running(request)
    kernels = request.system.kernels if request.target == "host" else (running,)
    return {kernel: names.headers.format(kernel=kernel) for kernel in kernels or ()} if names and running else {}


def _header_names(request: Request) -> Headers | Distribution | None:
    return request.data.packaging.proxmox if request.target == "host" else request.distribution


def _running(request: Request) -> str:
    return request.system.running or (request.system.kernels or ("",))[-1]


def header_packages(request: Request) -> tuple[str, ...]:
    """The packages of `kernel_headers`, and those that follow kernel updates."""
    names, running, packages = _header_names(request), _running(request), kernel_headers(request)
    if names is None or not packages:
        return ()
    follow = names.headers_follow
    newer = names.newer_kernels if isinstance(names, Distribution) else None
    if newer and (of_kernel(running) or newer.than).numbers[:2] > newer.than.numbers:
        follow = newer.headers_follow
    flavour = flavour_of_kernel(running)
    # For a kernel that was built by hand there is no such package.
    followers = [follow.format(flavour=flavour)] if flavour else []
    if flavour and request.target == "host":
        # The default's aren't those of an opt-in kernel's series.
        followers.append(names.headers.format(kernel=".".join(running.split(".")[:2])))
    return (*packages.values(), *followers)
