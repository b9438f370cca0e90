"""What an NVIDIA stack is planned from, on a host, in a VM or in a container, and how far what was put there is still
so. Changes nothing, and asks no repository.
"""

from __future__ import annotations

from collections.abc import Iterator

from remote_scripts.apt.os_release import distribution
from remote_scripts.apt.packages import LIBRARIES, Installed, installed, recorded
from remote_scripts.both.read_system import Answer, Runtime, Wanted
from remote_scripts.notes import kept_agents
from remote_scripts.nvidia import driver, engine_conf, nvidia, replaced
from remote_scripts.tools import kernel
from remote_scripts.tools.files import HOME
from remote_scripts.tools.pci import DEVICES, driver_of, ids_of
from remote_scripts.tools.system import System

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: The key that DKMS signs with: Debian's and Proxmox VE's, Ubuntu's.
_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
# A package -> the runtime that comes with it.
_RUNTIMES: dict[str, Runtime] = {"docker.io": "docker", "docker-ce": "docker", "podman": "podman"}
_K3S = "/usr/local/bin/k3s"


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: what decides something can't be read."""
    files, loaded, packages = system.files, nvidia.loaded(system), installed(system)
    name, version = distribution(system)
    secure_boot, enrolled = _secure_boot(system)
    cards, held = _cards(system, wanted)
    return Answer(
        boot_id=kernel.boot_id(system),
        distribution=name or None,
        version=version or None,
        kernels=tuple(driver.kernels(system)) if not system.is_container else (),
        running=kernel.running(system),
        secure_boot=secure_boot,
        mok_enrolled=enrolled,
        cards=tuple(cards),
        nouveau=held,
        loaded=loaded.version,
        host_driver=loaded.version if system.is_container else None,
        runtimes=_runtimes(system, packages),
        steps=tuple(files.names(f"{HOME}/steps")),
        drift=(*_of_files(system), *_of_packages(system, packages), *_of_driver(system, loaded)),
        libraries=driver.library_version(system),
        asked=files.need_text(driver.ASKED).strip(),
        agents={} if system.is_container else kept_agents.versions(files, files.names(kept_agents.FOLDER)),
    )


# Cards.


def _cards(system: System, wanted: Wanted) -> tuple[list[str], bool]:
    """`vendor:device` of each card: a container's are those whose node it has, a host's those that no VM is to have;
    and whether nouveau has one.
    """
    if system.is_container:
        return [ids_of(system, address) for address in _with_node(system)], False
    words = system.files.need_text("/proc/cmdline").split() if wanted.released else []
    passthrough = {
        pair for word in words if word.startswith("homelab.vfio=") for pair in word.partition("=")[2].split(",")
    }
    cards = []
    for address in system.files.names(DEVICES):
        if not system.files.line(f"{DEVICES}/{address}/class").startswith("0x03"):
            continue
        slot, held = address.rpartition(".")[0], driver_of(system, address)
        if held == "vfio-pci" and f"{address}={ids_of(system, address)}" in passthrough:
            held = "released"
        if slot in wanted.staying or (held != "vfio-pci" and slot not in wanted.passed):
            cards.append(ids_of(system, address))
    return cards, any(address.rpartition(".")[0] not in wanted.passed for address in driver.held(system))


def _with_node(system: System) -> Iterator[str]:
    for address in system.files.names(nvidia.GPUS):
        minor, is_shown = nvidia.minor_of(system, address), system.files.is_file(f"{DEVICES}/{address}/vendor")
        if minor is not None and is_shown and system.files.exists(f"/dev/nvidia{minor}"):
            yield address


# What it boots with, and runs.


def _secure_boot(system: System) -> tuple[bool | None, bool | None]:
    """Whether the kernel takes only signed modules, and whether the key that DKMS signs with is among its own; None:
    nobody says.
    """
    if system.is_container:
        return None, None
    # Four bytes of attributes, then the value.
    value = (system.files.read(_SECURE_BOOT, 16) or b"")[4:5]
    is_on = value == b"\x01" if value or not system.files.is_folder("/sys/firmware/efi") else None
    if not is_on or not system.run.has("mokutil"):
        return is_on, None
    keys = (key for key in _KEYS if system.files.is_file(key))
    answers = [system.run.ask("mokutil", "--test-key", system.files.name(key)) for key in keys]
    return is_on, any(b"already enrolled" in done.output + done.error for done in answers)


def _runtimes(system: System, packages: Installed) -> tuple[Runtime, ...]:
    found = sorted({runtime for package, runtime in _RUNTIMES.items() if package in packages.present})
    return (*found, "k3s") if system.files.is_file(_K3S) else tuple(found)


# How far what was put there is still so.


def _of_files(system: System) -> Iterator[tuple[str, str]]:
    for layer in (driver.LAYER, engine_conf.LAYER):
        for path, state in system.files.of_layer(layer).items():
            if state != "ok":
                yield layer.removeprefix("nvidia-"), f"{path} is {state}"


def _of_packages(system: System, packages: Installed) -> Iterator[tuple[str, str]]:
    for layer in (driver.LAYER, LIBRARIES):
        for name, record in recorded(system, layer).items():
            version = packages.present.get(name, "")
            if (version or "-") != record.now:
                yield layer.removeprefix("nvidia-"), f"package {name} is {version or 'gone'}, it was {record.now}"


def _of_driver(system: System, loaded: nvidia.Module) -> Iterator[tuple[str, str]]:
    noted = driver.left(system)
    if not noted.version:
        return
    if replaced.is_open(system.files):
        yield "packages", "an update was cut short"
    version = driver.library_version(system)
    if version != noted.version:
        yield "packages", f"its libraries are {version or 'gone'}, they were {noted.version}"
    if system.is_container:
        if loaded.version not in ("", noted.version):
            yield "packages", f"its libraries are {version or 'gone'}, the host's driver is {loaded.version}"
        return
    for release in driver.kernels_of(system, noted.target):
        module = driver.module(system, release).version
        if module != noted.version:
            what = f"{module} as module" if module else "no module"
            yield "packages", f"the kernel {release} has {what}, the driver is {noted.version}"
    if not loaded.version:
        yield "boot", f"no module is loaded, the driver is {noted.version}"
    elif loaded.version != noted.version:
        yield "boot", f"{loaded.version} is loaded, the driver is {noted.version}"
    elif noted.flavour and loaded.flavour != noted.flavour:
        yield "boot", f"the {loaded.flavour} modules are loaded, the {noted.flavour} ones are installed"
