"""The plan of an NVIDIA stack: repositories, packages and pins, or NVIDIA's installer; modules, reboot, CUDA, container
toolkit.

What can't work is refused (`checks`); what isn't known is a note of the plan, which a person reads before `up` changes
anything.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from homelab.errors import HomelabError, raise_all
from homelab.nvidia.checks import card_text, cuda_to_be_had, refusals
from homelab.nvidia.compatibility import Flavour, Key, Target
from homelab.nvidia.driver_source import RunfilePlan, SourceKind, driver_source, header_packages, version_pattern
from homelab.nvidia.flavour import choose
from homelab.nvidia.request import Driver, Request
from homelab.nvidia.versions import Version, of_package, parse
from homelab.shapes import Capability, Runtime
from remote_scripts.both.nvidia_repository import AptFile, Repository

# Above 1000 apt also goes back to an older version.
_PRIORITY = 1001


@dataclass(frozen=True)
class CudaPlan:
    """CUDA's toolkit, which brings no driver. `nvcc`: the compiler's path; `library_packages`: those of cuDNN and NCCL;
    `libraries`: their sonames."""

    release: str
    packages: tuple[str, ...]
    nvcc: str
    library_packages: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolkitPlan:
    """The container toolkit. `package`: the runtime's, empty where it has its own installer; `cdi`: the path of the CDI
    specification, which is written anew after each change of the driver, empty where the toolkit's service writes it;
    `cdi_options`: its generator's."""

    runtime: Runtime
    packages: tuple[str, ...]
    package: str
    cdi: str
    cdi_options: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """An NVIDIA stack as it is to be. `driver`: a branch or an exact version; `version`: None where only the repository
    tells which release of a branch it has.

    `source`: `packages`; `run`, the installer; `either`: packages where the repositories have the version, and in a
    container without modules, else the installer. `capabilities`: of the driver's libraries; `demanded`: whether the
    settings name them, so that a library that is missing is installed; `unwanted`: packages of the other capabilities.
    `no_recommends`: whether packages come without those that they recommend: modules have no place in a container.
    `preferences`: apt's pins of the driver; `unattended`: keeps unattended-upgrades from replacing libraries of a
    loaded module; `run`: the installer; `notes`: for a person.
    """

    target: Target
    driver: str
    version: str | None
    flavour: Flavour | None
    source: SourceKind
    repositories: tuple[Repository, ...]
    prerequisites: tuple[str, ...]
    packages: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    demanded: bool
    unwanted: tuple[str, ...]
    no_recommends: bool
    preferences: AptFile | None
    unattended: AptFile | None
    run: RunfilePlan | None
    cuda: CudaPlan | None
    toolkit: ToolkitPlan | None
    notes: tuple[str, ...]


def plan_stack(request: Request) -> Plan:
    """The plan of a stack.

    :raises HomelabError: the stack is refused, or a fact that the plan needs isn't known; all errors at once.
    """
    raise_all(refusals(request))
    driver = _driver(request)
    _distribution_known(request)
    raise_all(_packages_not_offered(request))
    choice = choose(request) if request.target != "lxc" else None
    found = driver_source(request, driver, choice)
    source, run = found.source, found.run
    version = _version_of(found.packages) or (str(driver.version) if driver.exact else None)
    return Plan(
        target=request.target,
        driver=str(driver.version) if driver.exact else str(driver.branch),
        version=version or (run.version if run and source == "run" else None),
        flavour=choice.flavour if choice else None,
        source=source,
        repositories=_repositories(request, source),
        prerequisites=_prerequisites(request, source),
        packages=found.packages,
        capabilities=found.capabilities,
        demanded=request.settings.capabilities is not None,
        unwanted=_unwanted_packages(request, driver),
        no_recommends=request.target == "lxc",
        preferences=_preferences(request, driver, source),
        unattended=_unattended(request, source),
        run=run,
        cuda=_cuda(request),
        toolkit=_toolkit(request),
        notes=tuple([*_notes(request, driver), *_capability_notes(request, found.capabilities)]),
    )


def all_refusals(request: Request) -> list[HomelabError]:
    """Every reason to refuse a stack, as far as its facts are known, those of its plan among them; empty where there is
    none. Proposals of init, previews and `up` ask it, so that none of them accepts a stack that another refuses.
    """
    errors = [*refusals(request), *cuda_to_be_had(request)]
    if errors or request.driver is None or request.system.distribution is None:
        return errors
    try:
        plan_stack(request)
    except HomelabError as error:
        return list(getattr(error, "errors", [error]))
    return []


def _driver(request: Request) -> Driver:
    if request.driver is not None:
        return request.driver
    raise HomelabError(
        wanted=f"{request.name}: the version of the host's driver",
        found="the host wasn't read, and nvidia.driver isn't set here",
        why="a container's libraries are of the host's version",
        next="read the host first (`pulumi up` does), or set nvidia.driver to the host's",
    )


def _distribution_known(request: Request) -> None:
    if request.system.distribution is None or request.system.version is None:
        raise HomelabError(
            wanted=f"{request.name}: the distribution, from its /etc/os-release",
            found="it wasn't read yet",
            why="repository and package names follow from it",
            next="make the system reachable; `pulumi up` reads it before it changes anything",
        )


def _packages_not_offered(request: Request) -> list[HomelabError]:
    """Errors for packages of CUDA, its libraries and the container toolkit that the repositories were asked for and
    don't offer."""
    if request.system.offered is None:
        return []
    cuda, offered, errors = _cuda(request), request.system.offered, cuda_to_be_had(request)
    names = [name.partition("=")[0] for name in cuda.library_packages] if cuda else []
    if request.settings.container_toolkit:
        names += request.data.packaging.toolkit.packages
    missing = [name for name in names if name in offered and not offered[name]]
    # NCCL is offered for several releases of CUDA under one name.
    patterns = [name.partition("=")[::2] for name in cuda.library_packages if "=" in name] if cuda else []
    missing += [name for name, pattern in patterns if offered.get(name) and not fnmatch.filter(offered[name], pattern)]
    if not missing:
        return errors
    return [
        *errors,
        HomelabError(
            wanted=f"{request.name}: {', '.join(missing)}, from NVIDIA's repository for {request.system.distribution} "
            f"{request.system.version}",
            found="its repositories don't offer it",
            why="apt could not install it: `Unable to locate package`; not every release is there for every "
            "distribution",
            next="leave nvidia.cudnn and nvidia.nccl out there, or set nvidia.cuda to a release of another major "
            "version"
            if any("cuda" in name or "nccl" in name for name in missing)
            else "check nvidia.mirror.containerToolkit, and the system's network",
        ),
    ]


def packages_to_ask_for(request: Request) -> tuple[str, ...]:
    """The packages whose offered versions decide a plan: a reading looks them up (`SystemFacts.offered`)."""
    branch = request.driver.branch if request.driver else 0
    lists = [names for row in request.package_names for names in (row.open, row.proprietary, row.userspace)]
    driver = [name.format(branch=branch) for names in lists for name in names]
    driver += [name for row in request.package_names for name in row.packages_for(request.capabilities, branch)]
    cuda = _cuda(request)
    toolkit = request.data.packaging.toolkit.packages if request.settings.container_toolkit else ()
    cuda_packages = (name.partition("=")[0] for name in (*cuda.packages, *cuda.library_packages)) if cuda else ()
    # Of all releases, so that an error can name those that are offered instead.
    other_cudas = request.data.cuda_packages if cuda else ()
    packages = [*driver, *cuda_packages, *toolkit, *other_cudas]
    return tuple(dict.fromkeys(packages))


# -- what else is installed ------------------------------------------------------------------------------------
def _unwanted_packages(request: Request, driver: Driver) -> tuple[str, ...]:
    """Packages of the capabilities that the settings leave out; empty where the settings name none."""
    if request.settings.capabilities is None:
        return ()
    capabilities = tuple(row.capability for row in request.data.packaging.capabilities)
    names = [
        name
        for row in request.package_names
        for name in row.packages_for(
            [capability for capability in capabilities if capability not in request.capabilities], driver.branch
        )
    ]
    return tuple(dict.fromkeys(names))


def _version_of(packages: tuple[str, ...]) -> str | None:
    """The driver's version in a package list; None where it has patterns."""
    version = of_package(packages[0].partition("=")[2]) if packages and not packages[0].endswith("*") else None
    return str(version) if version else None


def _prerequisites(request: Request, source: str) -> tuple[str, ...]:
    data = request.data.packaging
    if request.target == "lxc":
        return data.prerequisites
    return data.prerequisites + (data.build[:1] if source == "packages" else data.build) + header_packages(request)


def _repositories(request: Request, source: str) -> tuple[Repository, ...]:
    data, mirror, repositories = request.data.packaging, request.settings.mirror, []
    if source != "run" or request.settings.cuda:
        row = request.distribution
        if row is not None:
            base = mirror.cuda or data.repositories.cuda
            repositories.append(_repository("homelab-cuda", f"{base}/{row.path}", f"{base}/{row.path}", row.key))
    if request.settings.container_toolkit:
        base = mirror.container_toolkit or data.repositories.container_toolkit
        repositories.append(
            _repository("homelab-nvidia-container-toolkit", f"{base}/{data.toolkit.path}", base, data.toolkit.key)
        )
    return tuple(repositories)


def _repository(name: str, url: str, key_base: str, key: Key) -> Repository:
    # Armoured, as it is published: apt tells the forms by the name.
    keyring = f"/usr/share/keyrings/{name}.asc"
    return Repository(
        list_file=f"/etc/apt/sources.list.d/{name}.list",
        line=f"deb [signed-by={keyring},{key.fingerprint}] {url} /\n",
        key_url=f"{key_base}/{key.file}",
        keyring=keyring,
    )


def _preferences(request: Request, driver: Driver, source: str) -> AptFile | None:
    data, parts = request.data.packaging, []
    if source != "run":
        packages = " ".join(data.pinned)
        parts.append(f"Package: {packages}\nPin: version {version_pattern(driver)}\nPin-Priority: {_PRIORITY}\n")
    if request.settings.container_toolkit:
        # The CUDA repository has the toolkit, too: without a pin the two compete.
        base = request.settings.mirror.container_toolkit or data.repositories.container_toolkit
        packages = " ".join(data.toolkit.packages)
        parts.append(f"Package: {packages}\nPin: origin {urlsplit(base).hostname}\nPin-Priority: {_PRIORITY}\n")
    return AptFile(path="/etc/apt/preferences.d/homelab-nvidia", content="\n".join(parts)) if parts else None


def _unattended(request: Request, source: str) -> AptFile | None:
    if source == "run":
        return None
    patterns = "".join(f'  "{pattern}";\n' for pattern in request.data.packaging.unattended)
    content = f"Unattended-Upgrade::Package-Blacklist {{\n{patterns}}};\n"
    return AptFile(path="/etc/apt/apt.conf.d/52homelab-nvidia", content=content)


def _cuda(request: Request) -> CudaPlan | None:
    if request.settings.cuda is None:
        return None
    release, data = parse(request.settings.cuda), request.data.cuda
    package = request.data.cuda_package(release)
    exact = f"{package}={release}-*" if len(release.numbers) > 2 else package
    rows = request.data.cuda_libraries(request.settings.cudnn, nccl=request.settings.nccl)
    return CudaPlan(
        str(release),
        (exact,),
        data.nvcc(release),
        tuple(_at_newest_offered(request, name) for row in rows for name in row.packages_for(release.major)),
        tuple(row.soname for row in rows),
    )


def _at_newest_offered(request: Request, name: str) -> str:
    """`NAME=VERSION` with the newest offered version for a `NAME=PATTERN`, as apt takes no pattern that begins with a
    star; unchanged where none is offered, or where it has no pattern."""
    package, _, pattern = name.partition("=")
    versions = fnmatch.filter((request.system.offered or {}).get(package, ()), pattern) if pattern else []
    newest = max(versions, key=lambda text: [int(number) for number in re.findall(r"\d+", text)], default=None)
    return f"{package}={newest}" if newest else name


def _toolkit(request: Request) -> ToolkitPlan | None:
    runtime = request.settings.container_toolkit
    if runtime is None:
        return None
    data, version = request.data.packaging.toolkit, _toolkit_version(request)
    in_container = request.target == "lxc"
    return ToolkitPlan(
        runtime=runtime,
        packages=tuple(f"{name}={version}-*" for name in data.packages) if version else data.packages,
        package=data.runtimes[runtime],
        # The toolkit's service skips systems without nvidia.ko in modules.dep, such as containers.
        cdi="/etc/cdi/nvidia.yaml" if in_container or runtime == "podman" else "",
        cdi_options=data.without_groups if _takes_no_groups(request) else (),
    )


def _takes_no_groups(request: Request) -> bool:
    """Whether podman refuses the CDI specifications that the toolkit writes without options, as they name groups."""
    data, row, version = request.data.packaging.toolkit, request.distribution, _toolkit_version(request)
    old = row is not None and row.podman < data.podman_reads_groups
    return request.settings.container_toolkit == "podman" and old and (version is None or version >= data.groups_since)


def _toolkit_version(request: Request) -> Version | None:
    offered = (request.system.offered or {}).get(request.data.packaging.toolkit.packages[0], ())
    return max((version for version in map(of_package, offered) if version), default=None)


# -- notes -----------------------------------------------------------------------------------------------------
def _notes(request: Request, driver: Driver) -> list[str]:
    return [
        *_card_notes(request, driver),
        *branch_notes(request),
        *_cuda_notes(request),
        *_podman_notes(request),
    ]


def _card_notes(request: Request, driver: Driver) -> list[str]:
    notes = []
    for device, generation in request.generations.items():
        if generation is None:
            notes.append(
                f"{card_text(request, device)}: taken for a card that is newer than this program's data, which needs "
                f"the open modules and a recent driver; whether {driver.text} knows it shows when the module is loaded"
            )
    if request.devices is None and request.target != "lxc":
        notes.append("the cards aren't known yet: whether driver and cards fit is checked before anything is installed")
    return notes


def branch_notes(request: Request) -> list[str]:
    """Of the driver's branch: that there are no more fixes, or that it isn't known. None where the driver isn't."""
    driver, row = request.driver, request.branch
    if driver is None:
        return []
    if row is None:
        return [f"branch {driver.branch} is newer than this program's data (up to {request.data.newest_branch})"]
    if row.ended(request.today):
        return [
            f"branch {row.branch} has reached its end of life ({row.ends}): no more fixes, also of security; "
            f"{request.data.recommended} is maintained"
        ]
    return []


def _capability_notes(request: Request, capabilities: tuple[Capability, ...]) -> list[str]:
    notes = []
    if lacking := [capability for capability in request.capabilities if capability not in capabilities]:
        notes.append(
            f"its repositories don't offer the packages of {', '.join(lacking)} in the driver's version: the driver is "
            "installed without them; to demand them, name them in nvidia.capabilities"
        )
    if "graphics" in capabilities and request.target == "lxc":
        notes.append(
            "graphics in a container needs the host's module nvidia-drm, and its nodes in /dev/dri, which the "
            "container must have been given; only the libraries are installed and checked here"
        )
    return notes


def _podman_notes(request: Request) -> list[str]:
    if not _takes_no_groups(request):
        return []
    data, system, row = request.data.packaging.toolkit, request.system, request.distribution
    return [
        f"podman {row.podman if row else ''} of {system.distribution} {system.version} refuses CDI specifications that "
        f"name groups, as the toolkit writes them from {data.groups_since} on (unknown field additionalGids): its own "
        "is made without them. Programs in a container that aren't root may then not open the nodes in /dev/dri; CUDA "
        "needs none of these"
    ]


def _cuda_notes(request: Request) -> list[str]:
    least = request.least_of_cuda
    if least is None or request.settings.cuda is None:
        return []
    notes = []
    release = parse(request.settings.cuda)
    if request.data.cuda_release(release) is None:
        notes.append(
            f"CUDA {request.settings.cuda} is newer than this program's data: that it takes {least.version} or "
            "later is assumed"
        )
    if request.driver and request.driver.version < least.version:
        notes.append(
            f"CUDA {request.settings.cuda} came with {least.version}; with {request.driver.text} its programs run "
            "within the major release, without PTX compiled at run time"
        )
    return notes
