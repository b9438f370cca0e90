"""Refusals of NVIDIA stacks that can't work, before anything is changed: each check is a function from a request to
errors.

A check that lacks a fact gives no error: it refuses once the system was read. What its repositories have, the system's
apt says (`plan.refused`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from homelab.errors import HomelabError
from homelab.facts.classes import NVIDIA
from homelab.nvidia.request import Request
from homelab.nvidia.versions import Version, fits, of_kernel, parse


def card_text(request: Request, *devices: str) -> str:
    """Cards for a message: their ids and generations.

    :param devices: their device ids, four hexadecimal digits.
    """
    return ", ".join(f"{NVIDIA}:{device} ({request.generations[device].name})" for device in devices)


def driver_text(driver: Version) -> str:
    """A driver for a message."""
    return f"branch {driver}" if driver.is_branch else str(driver)


# -- the system ------------------------------------------------------------------------------------------------
def supported_system(request: Request) -> Iterator[HomelabError]:
    """The data has the system's distribution."""
    system = request.system
    rows = [row for row in request.data.distributions if request.target in row.targets]
    if system.distribution is not None and request.distribution not in rows:
        yield request.refusal(
            wanted=", ".join(row.text for row in rows),
            found=f"{system.distribution.capitalize()} {system.version or ''}".strip(),
            why="each distribution has its own packages of NVIDIA's, with their own names and repository",
            next=f"use one of those systems; or leave {request.name}.nvidia out, and install the driver there in its "
            "own way (Windows: https://www.nvidia.com/drivers): a guest gets its card all the same",
        )


def has_a_card(request: Request) -> Iterator[HomelabError]:
    """Where the cards are known, one is NVIDIA's."""
    if request.devices == ():
        yield request.refusal(
            wanted=f"an NVIDIA card ({NVIDIA}:…)",
            found=f"graphics cards: {', '.join(request.system.cards or ()) or 'none'}",
            why="without a card no driver can be loaded, and nothing can be verified",
            next="give it a card (a guest: `gpus`; a host keeps one by `use: lxc` or `use: host`), or leave `nvidia` "
            "out",
        )


def secure_boot(request: Request) -> Iterator[HomelabError]:
    """Under Secure Boot, the firmware has the key by which DKMS signs the modules that it builds."""
    system = request.system
    if request.target != "lxc" and system.secure_boot and not system.mok_enrolled:
        yield request.refusal(
            wanted="a system that loads modules which DKMS built",
            found="Secure Boot is on, and DKMS's key isn't enrolled",
            why="the kernel would refuse the driver: `Key was rejected by service`; the key is confirmed on the "
            "console, at a boot, by a person",
            # On Ubuntu, DKMS signs with the key of Ubuntu's own program (dkms.in, prepare_mok).
            next="either turn Secure Boot off in its firmware (a VM's: an efidisk0 without pre-enrolled-keys=1); or "
            "enrol the key: `mokutil --import /var/lib/dkms/mok.pub` (made by `dkms generate_mok`), on Ubuntu "
            "`mokutil --import /var/lib/shim-signed/mok/MOK.der` (made by `update-secureboot-policy --new-key`), "
            "reboot, confirm in MokManager on the console; then `pulumi up --refresh`",
        )


def runtime_installed(request: Request) -> Iterator[HomelabError]:
    """The runtime of `nvidia.containerToolkit` is installed, or the settings have it installed."""
    wanted, installed = request.settings.container_toolkit, request.system.runtimes
    if wanted is None or installed is None or wanted in installed:
        return
    has_package = bool(request.data.toolkit.runtimes[wanted])
    if not has_package or request.settings.docker != "install":
        yield request.refusal(
            wanted=f"{wanted}, for nvidia.containerToolkit",
            found=f"installed: {', '.join(sorted(installed)) or 'no container runtime'}",
            why="the toolkit is configured in the runtime; a runtime is installed only if the settings ask for it",
            next="install it, or set nvidia.docker: install"
            if has_package
            else f"install {wanted} by its own installer, then run `pulumi up` again",
        )


# -- the driver ------------------------------------------------------------------------------------------------
def known_branch(request: Request) -> Iterator[HomelabError]:
    """The branch is one of NVIDIA's for Linux; one that is newer than the data passes."""
    driver, branches = request.driver, request.data.branches
    if driver and driver.major not in branches and driver.major < max(branches):
        yield request.refusal(
            wanted=f"a branch of the driver: {', '.join(map(str, sorted(branches)))}",
            found=driver_text(driver),
            why="no release of such a branch for Linux is known (581 and the like are Windows versions)",
            next=f'set nvidia.driver: "{request.data.recommended[0]}", the recommended branch',
        )


def cards_known_to_driver(request: Request) -> Iterator[HomelabError]:
    """The driver knows each card: none is too new for it, and none was dropped."""
    driver = request.driver
    for device, row in request.generations.items():
        if driver is None or row.known_to(driver):
            continue
        known = f"branch {row.first.major} or later" if driver.major <= row.last else f"branch {row.last} or earlier"
        fitting = fitting_drivers(request) or fitting_drivers(request.trial(cuda=None))
        yield request.refusal(
            wanted=f"a driver that knows {card_text(request, device)}: {known}",
            found=driver_text(driver),
            why=f"another one doesn't know {row.name} cards, and finds no device",
            next=f'set nvidia.driver: "{fitting[0]}"'
            if fitting
            else "use other cards: no driver for a supported distribution knows all of these",
        )


def flavour_possible(request: Request) -> Iterator[HomelabError]:
    """All cards, the branch and the settings take one flavour of the modules. A container has no modules."""
    driver, wanted, data = request.driver, request.settings.flavour, request.data
    if driver is None or request.flavours(driver):
        return
    found = [f"{driver_text(driver)} has the {' and '.join(data.flavours(driver.major))} ones"]
    found += [f"nvidia.flavour is {wanted}"] if wanted != "auto" else []
    for flavour in ("open", "proprietary"):
        if devices := [device for device, row in request.generations.items() if row.modules == flavour]:
            found.append(f"{card_text(request, *devices)} works with the {flavour} ones alone")
    yield request.refusal(
        wanted="kernel modules that fit cards and driver",
        found="; ".join(found),
        why="a running kernel has one nvidia module. The open ones need a GSP, which cards have from Turing on; where "
        "the proprietary ones don't know a card, `No devices were found`",
        next="leave nvidia.flavour at auto, with a branch that has these modules; cards that need different ones go "
        "to different systems: one of them to a VM of its own (`use: vm`)",
    )


def kernel_builds(request: Request) -> Iterator[HomelabError]:
    """The modules of a branch without further releases build for a host's kernel, where none but NVIDIA's installer has
    them."""
    driver, running = request.driver, of_kernel(request.system.running or "")
    last = request.data.last_kernels.get(driver.major) if driver else None
    if request.target == "host" and driver and running and last and parse(running.short) > last:
        cards = card_text(request, *request.generations) or "no card"
        yield request.refusal(
            wanted=f"a driver that builds for this kernel ({request.system.running})",
            found=f"{driver_text(driver)}, for {cards}: its last release builds for Linux {last} and earlier",
            why="no release follows, and containers use the host's driver; nothing was installed",
            next="give the card to a VM (use: vm) whose system has that branch, as Ubuntu has; or use a newer card",
        )


def installer_known(request: Request) -> Iterator[HomelabError]:
    """Where the settings want NVIDIA's installer, the SHA-256 of one is known."""
    driver = request.driver
    if request.settings.source == "run" and driver and not request.sha256(driver):
        yield request.refusal(
            wanted=f"the SHA-256 of NVIDIA's installer of {driver_text(driver)}",
            found="neither this program's data nor nvidia.runSha256 has it",
            why="the installer runs as root, and a server, mirror or proxy that has another file must not decide what "
            "is run",
            next=sha256_advice(request, driver),
        )


def sha256_advice(request: Request, driver: Version) -> str:
    """What to do about an installer whose SHA-256 isn't known."""
    if driver.is_branch:
        return "choose a version that is known here (docs/nvidia.md#nvidias-installer)"
    url = request.data.run.url(request.data.repositories.run, str(driver))
    return (
        f"read the installer's SHA-256 at {url}.sha256sum, from another network than the one that it is installed "
        f'over, and set nvidia.runSha256: {{"{driver}": "..."}}; or choose one that is known here '
        "(docs/nvidia.md#nvidias-installer)"
    )


def host_version(request: Request) -> Iterator[HomelabError]:
    """A container's host has a driver, and the settings want no other: its libraries are of that version, to the last
    digit. Without one a container has no node of a card either, which says all."""
    host, wanted = request.system.host_driver, request.settings.driver
    if request.target != "lxc" or host is None or request.devices == ():
        return
    if not host or (wanted and not fits(parse(host), parse(wanted))):
        yield request.refusal(
            wanted="the version of the host's driver",
            found=f'the host has {host}, and nvidia.driver is "{wanted}"' if host else "the host has loaded none",
            why="the container's libraries must be of exactly the host's version, or programs fail with "
            "`Driver/library version mismatch`",
            next="give the host that driver (`nvidia`), or load it there; leave nvidia.driver out for the container, "
            "which follows its host",
        )


def fitting_drivers(request: Request) -> list[str]:
    """The branches that suit cards, flavour and CUDA, the best first: for init's proposals, and for advice. In a
    container, of another driver on the host."""
    trial = request.trial(allow_minor_version_compatibility=False)
    is_known = (branch for branch in trial.branches() if trial.settings.source != "run" or trial.sha256(branch))
    return [str(branch) for branch in is_known if trial.suits(branch) and not trial.unbuilt]


# -- CUDA ------------------------------------------------------------------------------------------------------
def cuda_fits(request: Request) -> Iterator[HomelabError]:
    """The driver is new enough for the CUDA release, and that can build for the cards. Whether it exists, apt says."""
    release, driver = request.cuda, request.driver
    if release is None:
        return
    if driver and not request.runs_cuda(driver):
        of_host = " or later for the host, whose driver this is" if request.target == "lxc" else ""
        steps = [f'set nvidia.driver: "{one}"{of_host}' for one in fitting_drivers(request)[:1]]
        steps.append(cuda_advice(request))
        if request.trial(allow_minor_version_compatibility=True).runs_cuda(driver):
            steps.append("set nvidia.allowMinorVersionCompatibility: true, and do without PTX compiled at run time")
        yield request.refusal(
            wanted=f"a driver for CUDA {release}: {request.data.least_for(release)} or later",
            found=driver_text(driver),
            why="CUDA's programs would fail: `the provided PTX was compiled with an unsupported toolchain`, or `CUDA "
            "driver version is insufficient for CUDA runtime version`",
            next="; or ".join(steps),
        )
    for device in request.unbuilt:
        row = request.generations[device]
        first, last = row.cuda
        is_old = first is not None and release < first
        yield request.refusal(
            wanted=f"CUDA {f'{first} or later' if is_old else f'{last} or earlier'}, for {card_text(request, device)}",
            found=f'nvidia.cuda: "{release}"',
            why=f"its nvcc can't build for {row.name} cards",
            next=cuda_advice(request),
        )


def fitting_cudas(request: Request) -> list[str]:
    """The releases of CUDA that cards and driver allow, the newest first; empty where none is."""
    trials = ((release, request.trial(cuda=release)) for release in request.data.cuda_releases)
    fitting = ((release, trial) for release, trial in trials if not trial.unbuilt)
    return [release for release, trial in fitting if trial.driver is None or trial.runs_cuda(trial.driver)]


def cuda_advice(request: Request, offered: Container[str] | None = None) -> str:
    """What to do about a release of CUDA that doesn't fit: set the newest other one that does, else none.

    :param offered: those that can be had; None: that isn't known.
    """
    short = request.cuda.short if request.cuda else ""
    fitting = [release for release in fitting_cudas(request) if offered is None or release in offered]
    newest, *others = [release for release in fitting if release != short] or [""]
    if not newest:
        return (
            f"leave nvidia.cuda out: no other {'offered ' if offered else ''}release of CUDA fits the cards and the "
            "driver; the driver alone runs programs that bring their own CUDA"
        )
    return f'set nvidia.cuda: "{newest}"' + (f", or an older one that fits ({', '.join(others)})" if others else "")


#: All of them, in the order in which they are said.
CHECKS: tuple[Callable[[Request], Iterator[HomelabError]], ...] = (
    supported_system,
    has_a_card,
    known_branch,
    cards_known_to_driver,
    flavour_possible,
    kernel_builds,
    installer_known,
    secure_boot,
    host_version,
    cuda_fits,
    runtime_installed,
)
