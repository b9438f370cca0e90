"""NVIDIA's driver as it is installed and loaded: flavour, modules, libraries, kernels.

/var/lib/homelab/nvidia-driver is what the step for the driver has left: version, source (packages, run or found:
put there by others), target, flavour, tabs between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from remote_scripts.apt.packages import need_answer
from remote_scripts.boot import boot
from remote_scripts.nvidia import nvidia
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools import kernel
from remote_scripts.tools.done import NOT_FOUND
from remote_scripts.tools.files import HOME
from remote_scripts.tools.notes import Note
from remote_scripts.tools.pci import DEVICES, driver_of
from remote_scripts.tools.system import System

NVIDIA_SMI = "/usr/bin/nvidia-smi"
UNINSTALL = "/usr/bin/nvidia-uninstall"
#: The driver's own packages: what may be replaced by another version, flavour or source of it. Not the container
#: toolkit, not CUDA.
FAMILY = re.compile(
    r"^(nvidia-(driver|dkms|kernel|open|headless|utils|compute|firmware|smi|modprobe|persistenced|settings|alternative"
    r"|legacy|installer|support|vdpau|egl|opencl|vulkan|xconfig|prime|fabricmanager|imex|suspend|no-dkms|cuda-mps|powerd)"
    r"|libnvidia-([^c]|c[^o]|co[^n])|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|libgl1-nvidia-"
    r"|lib(egl|gles|glx)-nvidia"
    r"|cuda-drivers|firmware-nvidia-gsp|xserver-xorg-video-nvidia|linux-(modules|objects|signatures)-nvidia-)"
)
# modinfo's exit status.
_NO_MODULE = 1
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_LIBRARY = re.compile(r"\.so\.([0-9]{3}\.[0-9.]+)$")

Source = Literal["packages", "run", "found"]
#: Whose records and files the driver's are.
LAYER = "nvidia-packages"
#: Which versions of it apt may bring.
PINS = "/etc/apt/preferences.d/homelab-nvidia"
#: The digest of what the layer was last asked, and has carried out.
ASKED = f"{HOME}/nvidia-asked"


@dataclass(frozen=True)
class Left:
    """What the step for the driver has left; empty where nothing is noted."""

    version: str = ""
    source: str = ""
    target: str = ""
    flavour: Literal["open", "proprietary", ""] = ""


NOTE = Note(f"{HOME}/nvidia-driver", Left)


def kernels(system: System) -> list[str]:
    """The kernels of a host that must have the module, the oldest first: each that can be booted, as any of them may be
    the next one.
    """
    return sorted(boot.kernels(system), key=_by_version)


#: What the packages of a kernel's headers are called: this, and the kernel.
HEADERS = ("linux-headers-", "proxmox-headers-")


def kernels_of(system: System, target: str) -> list[str]:
    """The same of a host, a VM or a container: a VM's is the one that runs."""
    return kernels(system) if target == "host" else [kernel.running(system)]


def module(system: System, release: str) -> Module:
    """The module that a kernel would load.

    :raises Failure: modinfo doesn't say.
    """
    text = ""
    for name in nvidia.module_names(system):
        done = system.run.ask("modinfo", "-k", release, name)
        if done.status not in (_NO_MODULE, NOT_FOUND):
            need_answer(done, f"which module of NVIDIA's the kernel {release} would load", "modinfo")
            text = done.text
            break
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in text.split("\n"))}
    licence = fields.get("license", "")
    return Module(fields.get("version", ""), "proprietary" if licence == "NVIDIA" else "open" if licence else "")


def library(system: System, soname: str) -> str:
    """The file of the driver's that a library's name leads to; empty where the driver has none."""
    folders = [_LIBRARIES, *(f"{_LIBRARIES}/nvidia/{name}" for name in system.files.names(f"{_LIBRARIES}/nvidia"))]
    paths = (system.files.resolved(f"{folder}/{soname}") for folder in folders)
    return next((path for path in paths if path and _LIBRARY.search(path)), "")


def library_version(system: System) -> str:
    """The version of the libraries that nvidia-smi and CUDA programs load; empty: none."""
    match = _LIBRARY.search(library(system, "libnvidia-ml.so.1"))
    return match[1] if match else ""


def lacking(system: System, libraries: Iterable[str]) -> list[str]:
    """Those of the libraries that aren't there, of whatever version: a driver that was there may be for computing
    alone.
    """
    return [name for name in libraries if not library(system, name)]


def run_version(system: System) -> str:
    """The version that NVIDIA's installer has installed; empty: none."""
    return library_version(system) if system.files.is_file(UNINSTALL) else ""


def cards(system: System) -> dict[str, str]:
    """NVIDIA's graphics cards, by address, and the driver that each has; empty: none."""
    line, there = system.files.line, system.files.names(DEVICES)
    mine = [one for one in there if line(f"{DEVICES}/{one}/vendor") == "0x10de"]
    shown = (one for one in mine if line(f"{DEVICES}/{one}/class").startswith("0x03"))
    return {address: driver_of(system, address) for address in shown}


def held(system: System) -> dict[str, str]:
    """Of these cards those that nouveau has, or its successor, whose module is nova_core, and its driver NovaCore
    (drivers/gpu/nova-core/nova_core.rs).
    """
    return {one: name for one, name in cards(system).items() if name == "nouveau" or name.lower().startswith("nova")}


def holder(system: System) -> str:
    """The other driver that has one of NVIDIA's cards; or vfio-pci, if it has all of them and one comes back with the
    next boot; empty: none.
    """
    others = next(iter(held(system).values()), "")
    return others or ("vfio-pci" if {*cards(system).values()} == {"vfio-pci"} else "")


def left(system: System) -> Left:
    """What the step for the driver has left.

    :raises OSError: its note can't be read.
    """
    return NOTE.read(system.files) or Left()


def fits(version: str, driver: str) -> bool:
    """Whether a version is the wanted one, or of the wanted branch.

    :param driver: such as 580.105.08, or 580.
    """
    return bool(version) and (version == driver or ("." not in driver and version.startswith(f"{driver}.")))


def is_source_wanted(left: Left, source: str) -> bool:
    """Whether the driver that is there may stay: not if we installed it from packages and the installer's is wanted
    now, or the other way round.

    :param source: packages, run or either.
    """
    return (left.source, source) not in (("packages", "run"), ("run", "packages"))


def _by_version(name: str) -> list[tuple[int, str | int]]:
    """As `sort -V` has them."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]
