"""Refusals of NVIDIA stacks that can't work, before anything is changed: each check is a function from a request to
errors.

A check that lacks a fact gives no error: what the settings alone decide is refused from the settings alone, the rest
once the system was read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from homelab.errors import HomelabError
from homelab.nvidia.compatibility import VENDOR, Generation
from homelab.nvidia.driver_source import kernel_headers, source_of
from homelab.nvidia.flavour import allowed_by_branch, allowed_by_card, choose
from homelab.nvidia.request import Driver, Request, ranked_branches
from homelab.nvidia.versions import fits, parse
from remote_scripts.both.nvidia_driver import lacking_headers

Check = Callable[[Request], list[HomelabError]]


def refusals(request: Request) -> list[HomelabError]:
    """Every reason to refuse a stack, as far as its facts are known; empty where there is none."""
    return [error for check in CHECKS for error in check(request)]


def card_text(request: Request, device: str) -> str:
    """A card for a message: its id and generation.

    :param device: its device id, four hexadecimal digits.
    """
    generation = request.generations.get(device)
    return f"{VENDOR}:{device} ({generation.name if generation else 'unknown'})"


# -- the system ------------------------------------------------------------------------------------------------
def supported_system(request: Request) -> list[HomelabError]:
    """The data has the system's distribution and architecture."""
    system, errors = request.system, []
    rows = [row for row in request.data.packaging.distributions if request.target in row.targets]
    supported = ", ".join(f"{row.id.capitalize()} {row.version}" for row in rows)
    if system.distribution == "windows":
        errors.append(
            HomelabError(
                wanted=f"{request.name}: {supported}",
                found="Windows (ostype in the VM's configuration)",
                why="what this program installs is Linux's: packages of apt, by SSH and bash",
                next=f"leave {request.name}.nvidia out: the VM gets its card all the same. Inside, Windows Update or "
                "NVIDIA's own installer (https://www.nvidia.com/drivers) brings the driver, and NVIDIA's installer of "
                "CUDA for Windows the toolkit",
            )
        )
    elif system.distribution is not None and (system.distribution, system.version) not in {
        (row.id, row.version) for row in rows
    }:
        version = "without a VERSION_ID" if system.version is None else system.version
        errors.append(
            HomelabError(
                wanted=f"{request.name}: {supported}",
                found=f"{system.distribution} {version}".strip(),
                why="each distribution has its own packages of NVIDIA's, with their own names and repository",
                next="use one of those systems, or leave `nvidia` out and install the driver there in that system's "
                "own way",
            )
        )
    if system.architecture not in (None, "x86_64"):
        errors.append(
            HomelabError(
                wanted=f"{request.name}: an x86_64 system",
                found=f"{system.architecture}",
                why="the packages and the installer named here are for x86_64",
                next="leave `nvidia` out for this system",
            )
        )
    return errors


def has_a_card(request: Request) -> list[HomelabError]:
    """Where the cards are known, one is NVIDIA's."""
    if request.devices is None or request.devices:
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: an NVIDIA card ({VENDOR}:…)",
            found=f"graphics cards: {', '.join(request.system.cards or ()) or 'none'}",
            why="without a card no driver can be loaded, and nothing can be verified",
            next={
                "vm": "give the VM a card (`gpus`), or leave `nvidia` out",
                "lxc": "give the container a card, or leave `nvidia` out",
                "host": "keep a card with the host (`use: lxc` or `use: host`), or leave `nvidia` out",
            }[request.target],
        )
    ]


# -- the driver ------------------------------------------------------------------------------------------------
def known_branch(request: Request) -> list[HomelabError]:
    """The branch is one of NVIDIA's for Linux; one that is newer than the data passes."""
    driver, data = request.driver, request.data
    if driver is None or driver.branch in data.branches or driver.branch > data.newest_branch:
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: a branch of the driver: "
            f"{', '.join(str(branch) for branch in sorted(data.branches))}",
            found=driver.text,
            why="no release of such a branch for Linux is known (581 and the like are Windows versions)",
            next=f'set nvidia.driver: "{data.recommended}", the recommended branch',
        )
    ]


def cards_known_to_driver(request: Request) -> list[HomelabError]:
    """The driver knows each card: none is too new for it, and none was dropped."""
    if request.driver is None:
        return []
    errors = []
    for device, generation in request.generations.items():
        if generation and generation.outlived_by(request.driver.branch):
            errors.append(_card_dropped(request, device, generation, request.driver))
        elif problem := _driver_too_old(request, device, request.driver):
            errors.append(problem)
    return errors


def _card_dropped(request: Request, device: str, generation: Generation, driver: Driver) -> HomelabError:
    last = generation.last_branch
    step = (
        f'set nvidia.driver: "{last}"'
        if last in request.data.branches
        else f"use a newer card: branch {last} is legacy and no supported distribution has it"
    )
    return HomelabError(
        wanted=f"{request.name}: a driver that knows {card_text(request, device)}",
        found=driver.text,
        why=f"branch {last} is the last one that knows {generation.name} cards; later ones say that they will "
        "ignore this GPU",
        next=step,
    )


def _driver_too_old(request: Request, device: str, driver: Driver) -> HomelabError | None:
    generation = request.generations[device]
    if generation is None or driver.version >= generation.least:
        return None
    open_alone = allowed_by_card(request, device) == ("open",)
    requirement = f"branch {generation.least.major} or later" + (", with the open kernel modules" if open_alone else "")
    # 565 is what many guides say of the RTX 50 series.
    correction = '; the often quoted "565+" is wrong' if generation.name == "Blackwell" else ""
    return HomelabError(
        wanted=f"{request.name}: a driver that knows {card_text(request, device)}: {requirement}",
        found=driver.text,
        why=f"{generation.name} cards are known from {generation.least} on{correction}; an older one finds no device",
        next=f'set nvidia.driver: "{first_driver_that_fits(request) or generation.least.major}"',
    )


def flavour_possible(request: Request) -> list[HomelabError]:
    """All cards, the branch and the settings take one flavour of the modules. A container has no modules."""
    if request.driver is None or request.target == "lxc" or choose(request) is not None:
        return []
    flavours = {device: allowed_by_card(request, device) for device in request.generations}
    open_alone = [device for device, allowed in flavours.items() if allowed == ("open",)]
    closed_alone = [device for device, allowed in flavours.items() if allowed == ("proprietary",)]
    if open_alone and closed_alone:
        return [_flavours_mixed(request, open_alone, closed_alone)]
    return [_flavour_refused(request, open_alone, closed_alone)]


def _flavours_mixed(request: Request, open_alone: list[str], closed_alone: list[str]) -> HomelabError:
    new, old = (", ".join(card_text(request, device) for device in cards) for cards in (open_alone, closed_alone))
    return HomelabError(
        wanted=f"{request.name}: one kind of kernel modules for all its cards",
        found=f"{new} works with the open ones alone, {old} with the proprietary ones alone",
        why="a running kernel has one nvidia module; one of the cards would stay without a driver",
        next="give one of them to a VM of its own (`use: vm`), whose driver is its own"
        if request.target != "vm"
        else "give them to different VMs",
    )


def _flavour_refused(request: Request, open_alone: list[str], closed_alone: list[str]) -> HomelabError:
    wanted, branch = request.settings.flavour, allowed_by_branch(request)
    driver = request.driver.text if request.driver else "the driver"
    if closed_alone and "proprietary" not in branch:
        found, why = driver, "from branch 615 on there are only the open modules, which need a GSP (Turing or later)"
        step = 'set nvidia.driver: "580"'
    elif open_alone and "open" not in branch:
        found, why = driver, "that branch has the proprietary modules alone"
        step = f'set nvidia.driver: "{request.data.recommended}"'
    elif wanted not in branch:
        found, why = f"flavour: {wanted}, with {driver}", f"{driver} has the {' and '.join(branch)} modules alone"
        step = "leave nvidia.flavour at auto, or choose another driver (580 has both)"
    else:
        cards = ", ".join(card_text(request, device) for device in open_alone or closed_alone)
        found = f"flavour: {wanted}, with {cards}"
        why = (
            "the proprietary modules don't initialise the card: `No devices were found`"
            if open_alone
            else "the open modules need a GSP, which cards have from Turing on"
        )
        step = "leave nvidia.flavour at auto"
    return HomelabError(
        wanted=f"{request.name}: kernel modules that fit cards and driver", found=found, why=why, next=step
    )


def driver_to_be_had(request: Request) -> list[HomelabError]:
    """The distribution's repositories have packages of the driver, or NVIDIA's installer of it is known, whichever the
    settings allow."""
    try:
        source_of(request)
    except HomelabError as error:
        return [error]
    return []


# -- kernels ---------------------------------------------------------------------------------------------------
def headers_to_be_had(request: Request) -> list[HomelabError]:
    """The headers that the driver's modules are built with are there, or in a repository: on a host for each installed
    kernel, in a guest for the running one. A driver that is there already is built."""
    system, driver = request.system, request.driver
    packages = kernel_headers(request)
    bare = [packages[kernel] for kernel in system.without_headers if kernel in packages]
    if not bare or (driver and system.loaded and fits(parse(system.loaded), driver.version_or_branch)):
        return []
    return [HomelabError(**vars(lacking_headers(request.name, bare, request.target)))]


def secure_boot(request: Request) -> list[HomelabError]:
    """Under Secure Boot, the firmware has the key by which DKMS signs the modules that it builds."""
    system = request.system
    if request.target == "lxc" or not system.secure_boot or system.mok_enrolled:
        return []
    turn_off = {
        "vm": "turn Secure Boot off in the VM's firmware (an efidisk0 without pre-enrolled-keys=1)",
        "host": "turn Secure Boot off in the host's firmware",
        "lxc": "",
    }[request.target]
    # On Ubuntu, DKMS signs with the key of Ubuntu's own program (dkms.in, prepare_mok).
    enrol = (
        "`mokutil --import /var/lib/shim-signed/mok/MOK.der` (made by `update-secureboot-policy --new-key`)"
        if system.distribution == "ubuntu"
        else "`mokutil --import /var/lib/dkms/mok.pub` (made by `dkms generate_mok`)"
    )
    return [
        HomelabError(
            wanted=f"{request.name}: a system that loads modules which DKMS built",
            found="Secure Boot is on, and DKMS's key isn't enrolled",
            why="the kernel would refuse the driver: `Key was rejected by service`; the key is confirmed on the "
            "console, at a boot, by a person",
            next=f"either {turn_off}; or enrol the key: {enrol}, reboot, confirm in MokManager on the console; then "
            "`pulumi up --refresh`",
        )
    ]


# -- containers ------------------------------------------------------------------------------------------------
def host_version(request: Request) -> list[HomelabError]:
    """A container's settings want the host's driver: its libraries are of that version, to the last digit."""
    system, wanted = request.system, request.settings.driver
    if request.target != "lxc" or not system.host_driver or wanted is None:
        return []
    if fits(parse(system.host_driver), parse(wanted)):
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: the host's driver, {system.host_driver}",
            found=f'nvidia.driver: "{wanted}"',
            why="the container's libraries must be of exactly the host's version, or programs fail with "
            "`Driver/library version mismatch`",
            next=f'leave nvidia.driver out for the container, or set "{wanted}" for the host, too: its containers '
            "follow it",
        )
    ]


# -- CUDA ------------------------------------------------------------------------------------------------------
def cuda_fits(request: Request) -> list[HomelabError]:
    """The CUDA release exists, the driver is new enough for it, and it can build for the cards."""
    if request.settings.cuda is None:
        return []
    data, release = request.data, parse(request.settings.cuda)
    newest = max(row.release for row in data.cuda.releases)
    row = data.cuda_release(release)
    if row is None and release < newest:
        releases = ", ".join(str(cuda.release) for cuda in data.cuda.releases)
        return [
            HomelabError(
                wanted=f"{request.name}: a release of CUDA: {releases}",
                found=f'nvidia.cuda: "{release}"',
                why="no such release is known; its packages and the oldest driver for it follow from the release",
                next=f"write it as `major.minor`: {cuda_advice(request)}",
            )
        ]
    least = request.least_of_cuda
    errors = [error for error in (_cuda_driver(request, least),) if error] if least else []
    return errors + [error for device in request.generations if (error := _cuda_card(request, device))]


def cudas_that_fit(request: Request) -> list[str]:
    """The releases of CUDA that cards, driver and distribution allow, the newest first; empty where none is."""
    newest_first = sorted(request.data.cuda.releases, key=lambda row: row.release, reverse=True)
    trials = ((str(row.release), request.with_settings(cuda=str(row.release))) for row in newest_first)
    return [release for release, trial in trials if not cuda_fits(trial) and not cuda_to_be_had(trial)]


def cuda_advice(request: Request) -> str:
    """What to do about a release of CUDA that doesn't fit: set the newest that does, else none. `-` in a trial."""
    if request.is_trial:
        return "-"
    fitting = cudas_that_fit(request)
    driver_alone = "the driver alone runs programs that bring their own CUDA"
    if not fitting:
        return (
            "leave nvidia.cuda out: no release of CUDA fits the cards, the driver and what NVIDIA's repository has for "
            f"the distribution; {driver_alone}"
        )
    older = f", or an older one that fits ({', '.join(fitting[1:])})" if len(fitting) > 1 else ""
    return f'set nvidia.cuda: "{fitting[0]}"{older}{_distributions_without(request, fitting)}'


def _distributions_without(request: Request, fitting: list[str]) -> str:
    """While the distribution isn't known: a clause that names those whose repositories have none of these releases."""
    if request.system.distribution is not None:
        return ""
    distributions = [
        f"{row.id.capitalize()} {row.version}"
        for row in request.data.packaging.distributions
        if request.target in row.targets and row.first_cuda is not None and row.first_cuda > parse(fitting[0])
    ]
    return f"; for {' and '.join(distributions)} NVIDIA has none of them: leave it out there" if distributions else ""


def cuda_to_be_had(request: Request) -> list[HomelabError]:
    """The distribution's repositories offer the release; while they aren't read, it isn't older than the first release
    that NVIDIA's repository for the distribution has."""
    if request.settings.cuda is None:
        return []
    system, release = request.system, parse(request.settings.cuda)
    # What a mirror keeps isn't known until it is read.
    is_own = request.settings.mirror.cuda is None
    row = request.distribution if is_own else None
    package = request.data.cuda_package(release)
    hint = ""
    if system.offered is not None:
        if system.offered.get(package, ("?",)):
            return []
        found = "its repositories don't offer it"
        hint = " (`apt-cache search --names-only '^cuda-toolkit-[0-9]'` lists what they have)"
    elif row is not None and row.first_cuda is not None and release.numbers[:2] < row.first_cuda.numbers[:2]:
        found = f"that repository begins with CUDA {row.first_cuda}"
    else:
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: {package}, from NVIDIA's repository for "
            f"{str(system.distribution).capitalize()} {system.version}",
            found=found,
            why="apt could not install it: `Unable to locate package`; not every release of CUDA is there for every "
            "distribution",
            next=f"{cuda_advice(request)}{hint}",
        )
    ]


def cuda_libraries_known(request: Request) -> list[HomelabError]:
    """The data has the wanted cuDNN and NCCL, for the major release of CUDA; while the repositories aren't read, for
    the distribution, too."""
    settings, data, system = request.settings, request.data, request.system
    if settings.cuda is None:
        return []
    major, errors = parse(settings.cuda).major, []
    rows = data.cuda_libraries(settings.cudnn, nccl=settings.nccl)
    if settings.cudnn is not None and not any(row.name == "cudnn" for row in rows):
        versions = ", ".join(row.version for row in data.cuda.libraries if row.name == "cudnn")
        errors.append(
            HomelabError(
                wanted=f"{request.name}: a major version of cuDNN: {versions}",
                found=f'nvidia.cudnn: "{settings.cudnn}"',
                why="the packages' names contain the major version, and are known here for these",
                next=f'set nvidia.cudnn: "{versions.rpartition(", ")[2]}", or leave it out and install cuDNN there by '
                "hand",
            )
        )
    errors += [
        HomelabError(
            wanted=f"{request.name}: {row.name} {row.version} for CUDA {major}",
            found=f"it is known for CUDA {', '.join(map(str, row.cuda))}",
            why="each of its packages is made for one major release of CUDA",
            next=f"set nvidia.cuda to a release of CUDA {row.cuda[-1]}, or leave nvidia.{row.name} out",
        )
        for row in rows
        if major not in row.cuda
    ]
    there = request.distribution if system.offered is None else None
    errors += [
        HomelabError(
            wanted=f"{request.name}: {row.name} {row.version} for CUDA {major}, from NVIDIA's repository for "
            f"{str(system.distribution).capitalize()} {system.version}",
            found=f"that repository has it for CUDA {', '.join(map(str, there.libraries[row.name]))} alone",
            why="apt could not install it: each of its packages is made for one major release of CUDA",
            next=f"leave nvidia.{row.name} out there, or set nvidia.cuda to a release of CUDA "
            f"{there.libraries[row.name][-1]}",
        )
        for row in rows
        if there and major in row.cuda and major not in there.libraries.get(row.name, row.cuda)
    ]
    return errors


def _cuda_driver(request: Request, least: Driver) -> HomelabError | None:
    if request.driver is None or request.runs_cuda(request.driver):
        return None
    within_major = request.runs_cuda(request.driver, within_major=True)
    fitting_driver = first_driver_that_fits(request)
    step = cuda_advice(request)
    if fitting_driver and request.target == "lxc":
        step = f'set nvidia.driver: "{fitting_driver}" or later for the host, whose driver this is; or here {step}'
    elif fitting_driver:
        step = f'set nvidia.driver: "{fitting_driver}"; or {step}'
    alternative = (
        "; or set nvidia.allowMinorVersionCompatibility: true, and do without PTX compiled at run time"
        if within_major
        else ""
    )
    return HomelabError(
        wanted=f"{request.name}: a driver for CUDA {request.settings.cuda}: {least.version} or later",
        found=f"{request.driver.text}"
        + ("" if request.driver.exact or not request.driver.is_release else f" ({request.driver.version} at most)"),
        why="CUDA's programs would fail: `the provided PTX was compiled with an unsupported toolchain`, or `CUDA "
        "driver version is insufficient for CUDA runtime version`",
        next=step + alternative,
    )


def _cuda_card(request: Request, device: str) -> HomelabError | None:
    generation, release = request.generations[device], parse(request.settings.cuda or "0")
    if generation is None:
        return None
    first, last = generation.first_cuda, generation.last_cuda
    if first is not None and release.numbers[:2] < first.numbers:
        fits, why = f"CUDA {first} or later", f"its nvcc can't build for {generation.name}"
    elif last is not None and release.numbers[:2] > last.numbers:
        fits, why = f"CUDA {last} or earlier", f"CUDA {release.major} no longer builds for {generation.name}"
    else:
        return None
    return HomelabError(
        wanted=f"{request.name}: {fits}, for {card_text(request, device)}",
        found=f'nvidia.cuda: "{release}"',
        why=why,
        next=cuda_advice(request),
    )


# -- containers' runtime ---------------------------------------------------------------------------------------
def runtime_installed(request: Request) -> list[HomelabError]:
    """The runtime of `nvidia.containerToolkit` is installed, or the settings have it installed."""
    wanted, installed = request.settings.container_toolkit, request.system.runtimes
    if wanted is None or installed is None or wanted in installed:
        return []
    can_be_installed = bool(request.data.packaging.toolkit.runtimes[wanted])
    if can_be_installed and request.settings.docker == "install":
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: {wanted}, for nvidia.containerToolkit",
            found=f"installed: {', '.join(sorted(installed)) or 'no container runtime'}",
            why="the toolkit is configured in the runtime; a runtime is installed only if the settings ask for it",
            next="install it, or set nvidia.docker: install"
            if can_be_installed
            else f"install {wanted} by its own installer, then run `pulumi up` again",
        )
    ]


def enough_room(request: Request) -> list[HomelabError]:
    """There is room below /usr for driver and toolkit, by the least that they take."""
    room, data = request.system.room, request.data
    parts = {"the driver": data.packaging.room, "CUDA's toolkit": data.cuda.room if request.settings.cuda else 0}
    needed = sum(parts.values()) * 10**6
    if room is None or room >= needed:
        return []
    return [
        HomelabError(
            wanted=f"{request.name}: room below /usr for {' and '.join(part for part, size in parts.items() if size)}: "
            f"{needed // 10**6} MB at the least",
            found=f"{room // 10**6} MB are free",
            why="apt, or the installer, would fail half-way, with no space left on the device",
            next="make room there, or give the system a larger disk"
            + (", or leave nvidia.cuda out" if request.settings.cuda else ""),
        )
    ]


def first_driver_that_fits(request: Request) -> str | None:
    """The first of `drivers_that_fit`; None where there is none, and in a trial."""
    return None if request.is_trial else next(iter(drivers_that_fit(request)), None)


def drivers_that_fit(request: Request) -> list[str]:
    """The branches that pass the checks of cards, flavour and CUDA, in the order of `ranked_branches`."""
    drivers = []
    for row in ranked_branches(request):
        # In a container, the trial is of another driver on the host.
        trial = request.with_settings(driver=str(row.branch), allow_minor_version_compatibility=False)
        trial = dataclasses.replace(trial, system=dataclasses.replace(trial.system, host_driver=None))
        if not any(check(trial) for check in _DRIVER_CHECKS):
            drivers.append(str(row.branch))
    return drivers


# The checks that depend on the driver.
_DRIVER_CHECKS: tuple[Check, ...] = (
    known_branch,
    cards_known_to_driver,
    flavour_possible,
    driver_to_be_had,
    cuda_fits,
    cuda_to_be_had,
)

CHECKS: tuple[Check, ...] = (
    supported_system,
    has_a_card,
    known_branch,
    cards_known_to_driver,
    flavour_possible,
    driver_to_be_had,
    headers_to_be_had,
    secure_boot,
    host_version,
    cuda_fits,
    cuda_libraries_known,
    runtime_installed,
    enough_room,
)
