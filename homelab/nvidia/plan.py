"""The plan of an NVIDIA stack on a host, in a VM or in a container: from the settings, what the system is, the facts of
data/facts.yaml, and what apt says on that system.

`tries` are the ways to the driver, the best first; the system simulates them (layers/nvidia_packages.py) and answers
with the first that apt can carry out. `refused` says what can't work: before apt's answer by facts and settings, then
by that answer. So the same functions serve a system that isn't there yet, a preview and `up`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from homelab.errors import HomelabError
from homelab.nvidia.checks import CHECKS, card_text, cuda_advice, driver_text, fitting_drivers, sha256_advice
from homelab.nvidia.compatibility import CudaLibrary, Flavour, Key
from homelab.nvidia.request import Request
from homelab.nvidia.settings import Nvidia
from homelab.nvidia.versions import Version, flavour_of_kernel, of_kernel, parse
from homelab.shapes import Capability, Runtime
from remote_scripts.both import container_toolkit, nvidia_index
from remote_scripts.both.apt import AptFile, Repository
from remote_scripts.both.nvidia_packages import Answer, Said, Try, Wanted, lacking_headers
from remote_scripts.both.software import Installer, Software
from remote_scripts.both.symptoms import Context

# What isn't offered beside the driver, as a system says it.
_ABSENT = re.compile(r"([^ =]+)(?:=\S+)? isn't offered(?:; there is (.+))?")


# -- the ways to the driver ------------------------------------------------------------------------------------
def tries(request: Request) -> tuple[Try, ...]:
    """The ways to the driver, the best first: by packages, of each driver that may be taken, then by NVIDIA's
    installer. One that is there may have the modules of either flavour: the open ones come first. Empty: distribution
    or a container's host version isn't known, or nothing fits."""
    kinds = ((driver, flavour) for driver in request.drivers for flavour in request.flavours(driver))
    ways = [way for kind in kinds for way in _ways(request, *kind) if request.distribution]
    # NVIDIA's installer, after which nothing looks, is the last one.
    return tuple(sorted(ways, key=lambda way: way.run is not None))


def _ways(request: Request, driver: Version, flavour: Flavour | None) -> Iterator[Try]:
    source, branch, every = request.settings.source, driver.major, request.capabilities
    rows = [row for row in request.data.names if row.id == request.system.distribution and source != "run"]
    alone: tuple[Capability, ...] = ("compute",)
    # Where nobody has said what the driver is for, also without video.
    for capabilities in [every] if request.settings.capabilities else [every, alone]:
        # The branch's own naming first.
        for row in sorted(rows, key=lambda row: row.before <= branch):
            packages = row.packages(branch, flavour, capabilities)
            yield Try(driver=str(driver), flavour=flavour, packages=packages, capabilities=capabilities)
    if source != "packages" and (run := _installer(request, driver, flavour)):
        data = request.data.run
        packages = data.prerequisites + (data.graphics if "graphics" in every else ()) + (data.build if flavour else ())
        yield Try(driver=str(driver), flavour=flavour, packages=packages, capabilities=every, run=run)


def _installer(request: Request, driver: Version, flavour: Flavour | None) -> Installer | None:
    """NVIDIA's installer of a driver; None: of none the SHA-256 is known."""
    data, version, sha256 = request.data.run, *(request.sha256(driver) or ("", ""))
    if not version:
        return None
    arguments = data.userspace
    if flavour:
        graphics = () if "graphics" in request.capabilities else (data.no_graphics,)
        old = "-m=kernel-open" if flavour == "open" else "-m=kernel"
        is_old = parse(version) < data.module_type_since
        arguments = (*data.driver, *graphics, old if is_old else f"--kernel-module-type={flavour}")
    url = data.url(request.settings.mirror.run or request.data.repositories.run, version)
    return Installer(version=version, url=url, sha256=sha256, arguments=arguments)


def coming(request: Request) -> Try | None:
    """The way that is taken, with the driver's version where that is known; the best one where apt wasn't asked. None:
    it isn't known."""
    ways, said = tries(request), request.said
    way = ways[(said and said.chosen) or 0] if ways else None
    return replace(way, driver=said.version or way.driver) if way and said else way


# -- what the system is asked, and told to do ------------------------------------------------------------------
def wanted(request: Request) -> Wanted:
    """What the system is asked to simulate, and then to carry out."""
    settings, cuda = request.settings, request.cuda
    return Wanted(
        target=request.target,
        software=software(settings, context(request)),
        tries=tries(request),
        repositories=tuple(_repositories(request)),
        pinned=request.data.pinned,
        files=tuple(_files(request)),
        beside=tuple(_beside(request)),
        headers=tuple(_headers(request)),
        recommends=request.target != "lxc",
        libraries=request.data.libraries(request.capabilities if settings.capabilities else ()),
        cuda=str(cuda or ""),
        nvcc=nvcc(cuda) if cuda else "",
    )


def software(settings: Nvidia, of: Context) -> Software:
    """What every layer that installs something is told."""
    timeouts = settings.timeouts
    return Software(
        context=of,
        lock_seconds=timeouts.lock,
        download_seconds=timeouts.download,
        install_seconds=timeouts.install,
    )


def context(request: Request, version: str = "") -> Context:
    """The context of what fails on the system, without the flavour, which is that of the loaded modules.

    :param version: the driver's, where it is installed.
    """
    system, driver = request.system, version or (str(request.driver) if request.driver else None)
    return Context(
        name=request.name,
        target=request.target,
        needs_open=request.needs_open,
        secure_boot=system.secure_boot,
        driver=driver,
        host_driver=system.host_driver or None,
        kernel=system.running,
    )


def _repositories(request: Request) -> Iterator[Repository]:
    data, settings, row = request.data, request.settings, request.distribution
    if row and (settings.source != "run" or settings.cuda):
        url = f"{settings.mirror.cuda or data.repositories.cuda}/{row.path}"
        yield _repository("homelab-cuda", url, url, row.key)
    if settings.container_toolkit:
        base = _toolkits_base(request)
        yield _repository("homelab-nvidia-container-toolkit", f"{base}/{data.toolkit.path}", base, data.toolkit.key)


def _toolkits_base(request: Request) -> str:
    return str(request.settings.mirror.container_toolkit or request.data.repositories.container_toolkit)


def _repository(name: str, url: str, key_base: str, key: Key) -> Repository:
    # Armoured, as it is published: apt tells the forms by the name.
    keyring = f"/usr/share/keyrings/{name}.asc"
    return Repository(
        list_file=f"/etc/apt/sources.list.d/{name}.list",
        line=f"deb [signed-by={keyring},{key.fingerprint}] {url} /\n",
        key_url=f"{key_base}/{key.file}",
        keyring=keyring,
    )


def _files(request: Request) -> Iterator[AptFile]:
    data = request.data
    if request.settings.source != "run":
        # As its regular expressions, which begin where a name does.
        names = "".join(f'  "{name.replace("*", "")}";\n' for name in data.pinned)
        content = f"Unattended-Upgrade::Package-Blacklist {{\n{names}}};\n"
        yield AptFile(path="/etc/apt/apt.conf.d/52homelab-nvidia", content=content)
    if request.settings.container_toolkit:
        # The CUDA repository has the toolkit, too: without a pin the two compete. Above 1000 apt also goes back.
        origin = urlsplit(_toolkits_base(request)).hostname
        content = f"Package: {' '.join(data.toolkit.packages)}\nPin: origin {origin}\nPin-Priority: 1001\n"
        yield AptFile(path="/etc/apt/preferences.d/homelab-nvidia-container-toolkit", content=content)


def _beside(request: Request) -> Iterator[str]:
    settings, data, cuda = request.settings, request.data, request.cuda
    if cuda:
        package = f"cuda-toolkit-{cuda.short.replace('.', '-')}"
        yield f"{package}={cuda}-*" if len(cuda.numbers) > 2 else package
        # nvcc hands half of its work to the compiler, which its package doesn't bring everywhere.
        yield "build-essential"
        for row in beside_cuda(request):
            yield from (name.format(major=cuda.major) for name in row.packages)
    if runtime := settings.container_toolkit:
        yield from data.toolkit.packages
        if settings.docker == "install" and data.toolkit.runtimes[runtime]:
            yield data.toolkit.runtimes[runtime]


def beside_cuda(request: Request) -> tuple[CudaLibrary, ...]:
    """The wanted cuDNN, by its major version, and NCCL; the settings have neither without CUDA."""
    wanted = {"cudnn": request.settings.cudnn, "nccl": "2" if request.settings.nccl else None}
    return tuple(row for row in request.data.cuda_libraries if wanted[row.name] == row.version)


def index(request: Request) -> nvidia_index.Wanted:
    """What a host is asked about NVIDIA's repositories for a guest that isn't there yet: packages that come from them
    alone."""
    of_engines = request.data.toolkit.runtimes.values()
    names = tuple(name for name in _beside(request) if name != "build-essential" and name not in of_engines)
    settings = request.settings
    repositories = tuple(_repositories(request))
    return nvidia_index.Wanted(software=software(settings, context(request)), repositories=repositories, names=names)


def nvcc(release: Version) -> str:
    """The path of the compiler of a release of CUDA."""
    return f"/usr/local/cuda-{release.short}/bin/nvcc"


def _headers(request: Request) -> Iterator[str]:
    """The packages with headers: on a host for every kernel, as the next boot may take any; in a VM for the running
    one. And the packages that bring those of later kernels, unless the kernel was built by hand."""
    system, row, running = request.system, request.distribution, request.system.running or ""
    version, flavour = of_kernel(running), flavour_of_kernel(running)
    if version is None or row is None or request.target == "lxc":
        return
    if request.target == "vm":
        yield f"linux-headers-{running}"
        hwe = row.kernel is not None and parse(version.short) > row.kernel
        yield from [f"linux-headers-{flavour}" + (f"-hwe-{row.version}" if hwe else "")] if flavour else []
        return
    # Proxmox VE's kernels bring headers of their own name (github proxmox/pve-kernel, debian/control.in).
    yield from (f"proxmox-headers-{kernel}" for kernel in system.kernels or ())
    # The default's aren't those of an opt-in kernel's series.
    yield from ["proxmox-default-headers", f"proxmox-headers-{version.short}"] if flavour else []


def cdi(request: Request) -> str:
    """The path of the CDI specification that is written anew after each change of the driver; empty where the toolkit's
    own service writes it, or there is none."""
    runtime = request.settings.container_toolkit
    # The toolkit's service skips systems without nvidia.ko in modules.dep, such as containers.
    return "/etc/cdi/nvidia.yaml" if runtime and (request.target == "lxc" or runtime == "podman") else ""


def toolkit(runtime: Runtime, request: Request, installed: Answer) -> container_toolkit.Wanted:
    """What the system is told to do for the container toolkit.

    :param runtime: that of the settings.
    :param installed: what the packages' step has answered.
    """
    settings, data = request.settings, request.data.toolkit
    return container_toolkit.Wanted(
        target=request.target,
        runtime=runtime,
        software=software(settings, context(request)),
        cdi=cdi(request),
        cdi_options=data.without_groups if runtime == "podman" else (),
        options_since=str(data.groups_since),
        podman_reads=str(data.podman_reads_groups),
        driver=installed.version,
        capabilities=(*installed.capabilities, *(("demanded",) if settings.capabilities else ())),
    )


# -- what can't be ---------------------------------------------------------------------------------------------
def refused(request: Request) -> list[HomelabError]:
    """Every reason against a stack; empty: none is known. What facts and settings forbid apt isn't asked for."""
    errors = [error for check in CHECKS for error in check(request)]
    return errors if errors or request.said is None else list(_by_apt(request, request.said))


def _by_apt(request: Request, said: Said) -> Iterator[HomelabError]:
    if said.chosen is None:
        drivers = dict.fromkeys(driver_text(parse(way.driver)) for way in tries(request))
        beside = ", and what comes beside it" if any(_beside(request)) else ""
        offered = [f"offered: {', '.join(said.offered)}"] if said.offered else []
        pinned = [f"pinned by its owner: {', '.join(said.pins)}"] if said.pins else []
        yield request.refusal(
            wanted=f"{' or '.join(drivers) or 'a driver'}{beside}",
            found="\n        ".join([*(_passed_over(said) or ["no way to it is known"]), *offered, *pinned]),
            why="apt was asked, with NVIDIA's repositories; nothing was changed",
            next=_way_out(request, said),
        )
    if said.removes:
        names = " ".join(said.removes)
        yield request.refusal(
            wanted="NVIDIA's stack beside what is installed",
            found=f"apt would remove {names}",
            why="they aren't this program's to remove",
            next=f"look at them, and remove them yourself (`apt-get remove {names}`)",
        )
    if said.lacking:
        yield HomelabError(**vars(lacking_headers(request.name, said.lacking, request.target)))
    if said.room is not None and said.room < said.needs:
        yield request.refusal(
            wanted=f"room below /usr: {said.needs // 10**6} MB, as apt has it",
            found=f"{said.room // 10**6} MB are free",
            why="apt, or the installer, would fail half-way, with no space left on the device",
            next="make room there, or give the system a larger disk"
            + (", or leave nvidia.cuda out" if request.cuda else ""),
        )


def _passed_over(said: Said) -> list[str]:
    return [re.sub("(?<!:) E: Unable to locate package", ",", " ".join(text.split())) for text in said.against]


def _way_out(request: Request, said: Said) -> str:
    """What to do where no try can be carried out: about what isn't offered beside the driver, else about that."""
    driver, absent = request.driver, filter(None, map(_ABSENT.fullmatch, said.against))
    name, others = next((match.groups("") for match in absent), ("", ""))
    if name.startswith("cuda-toolkit-"):
        return cuda_advice(request, others.replace("cuda-toolkit-", "").replace("-", ".").split(", "))
    if name:
        return (
            f"see why apt there has no {name} (nvidia.mirror, the system's network), or leave out what brings it "
            "(nvidia.cudnn and nvidia.nccl, which aren't there for each major release of CUDA; nvidia.docker)"
        )
    step = f"set nvidia.driver{' of the host' if request.target == 'lxc' else ''} to one that is offered"
    if request.settings.source == "packages":
        return f"leave nvidia.source out, or set nvidia.source: run for NVIDIA's installer; or {step}"
    return step if driver is None or request.sha256(driver) else f"{step}; or {sha256_advice(request, driver)}"


# -- what a person reads ---------------------------------------------------------------------------------------
def described(request: Request) -> str:
    """The stack for a preview."""
    settings, way, said = request.settings, coming(request), request.said
    capabilities = way.capabilities if way else request.capabilities
    version = way.driver if way else str(request.driver or "")
    cards = ", ".join(sorted({row.name for row in request.generations.values()}))
    modules = f" ({way.flavour} kernel modules{cards and f', for {cards}'})" if way and way.flavour else ""
    source = ("by NVIDIA's installer" if way.run else "from packages") if way and said else None
    if said and said.version == said.was != "" and said.way_back is None:
        source = "which is there"
    parts = [
        f"driver {version}{modules}" if version else "the host's driver",
        said and said.version and said.was not in ("", said.version) and f"in place of {said.was}",
        source,
        f"its {' and '.join(capabilities)} libraries",
        settings.cuda and f"CUDA {settings.cuda}",
        settings.cudnn and f"cuDNN {settings.cudnn}",
        "NCCL" if settings.nccl else None,
        settings.container_toolkit and f"container toolkit for {settings.container_toolkit}",
        said and said.comes and f"{len(said.comes)} packages come or change ({said.needs // 10**6} MB)",
        None if said else "what its repositories have is asked when it can be reached",
    ]
    return ", ".join(part for part in parts if part)


def notes(request: Request) -> list[str]:
    """What a person is to know of a stack that is not refused."""
    way, said = coming(request), request.said
    driver = parse(way.driver) if way else request.driver
    found = [*_cards_notes(request), *_libraries_notes(request, way.capabilities if way else request.capabilities)]
    if driver:
        found += _driver_notes(request, driver)
    if said:
        found += [f"passed over: {text}" for text in _passed_over(said)]
        loaded = "nouveau" if request.system.nouveau else request.system.loaded
        if request.target == "vm" and loaded not in (None, "", said.version):
            found.append(f"the VM restarts once more: {loaded} is loaded until then")
    if said and said.pins and said.was not in ("", said.version):
        found.append(
            f"{', '.join(said.pins)} pins versions of NVIDIA's packages, which somebody else wants: {said.version} "
            f"comes in place of {said.was} all the same; take the pin out, or apt may go back to its version"
        )
    if said and said.way_back is False:
        found.append(f"there is no way back to {said.was}: it came by NVIDIA's installer, or no repository has it now")
    return found


def _cards_notes(request: Request) -> Iterator[str]:
    for device, row in request.generations.items():
        if not row.ranges:
            yield (
                f"{card_text(request, device)}: taken for a card that is newer than this program's data, which needs "
                "the open modules and a recent driver; whether the driver knows it shows when the module is loaded"
            )
    if request.devices is None and request.target != "lxc":
        yield "the cards aren't known yet: whether driver and cards fit is checked before anything is installed"


def _driver_notes(request: Request, driver: Version) -> Iterator[str]:
    data, branch, release = request.data, driver.major, request.cuda
    maintained = (one for one in fitting_drivers(request) if not data.ended(int(one), request.today))
    if data.ended(branch, request.today):
        yield (
            f"branch {branch} has reached its end of life ({data.branches[branch]}): no more fixes, also of security; "
            f"{next(maintained, 'none that knows the cards')} is maintained"
        )
    if release and not request.trial(allow_minor_version_compatibility=False).runs_cuda(driver):
        yield (
            f"CUDA {release} came with {data.least_for(release)}; with {driver_text(driver)} its programs run within "
            "the major release, without PTX compiled at run time"
        )


def _libraries_notes(request: Request, come: Sequence[str]) -> Iterator[str]:
    if lacking := [capability for capability in request.capabilities if capability not in come]:
        yield (
            f"its repositories don't offer the packages of {', '.join(lacking)} in the driver's version: the driver is "
            "installed without them; to demand them, name them in nvidia.capabilities"
        )
    if "graphics" in come and request.target == "lxc":
        yield (
            "graphics in a container needs the host's module nvidia-drm, and its nodes in /dev/dri, which the "
            "container must have been given; only the libraries are installed and checked here"
        )
